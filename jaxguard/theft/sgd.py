"""How networks are trained here: the settings of SGD as one value, and the descent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import jax
import numpy as np
import optax

from jaxguard import training
from jaxguard.errors import TheftError
from jaxguard.methods import Count, Momentum, NonNegative, Steps
from jaxguard.training import Augmentation, GradientFn, Progress
from jaxguard.types import Batch, Variables

Schedule = Literal["constant", "cosine"]
"""`cosine` falls to 0 epoch by epoch."""


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Settings of stochastic gradient descent; the defaults are those of SAC's code for CIFAR-10.

    Args:
        epochs: passes over the images; 0 trains nothing.
        learning_rate: of the first step.
        batch_size: images per step; all of them where there are fewer.
        momentum: of the descent.
        weight_decay: coefficient of the L2 penalty's gradient.
        schedule: how the rate falls.
        augment: `(key, images) -> images`, or None.
    """

    epochs: Steps = field(kw_only=False)
    learning_rate: NonNegative = field(kw_only=False)
    batch_size: Count = 512
    momentum: Momentum = 0.9
    weight_decay: NonNegative = 5e-4
    schedule: Schedule = "constant"
    augment: Augmentation = None

    def optimizer(self, num_images: int) -> optax.GradientTransformation:
        """The optimizer for `num_images` training images; equal settings give the identical one."""
        rate: float | optax.Schedule = self.learning_rate
        if self.schedule != "constant":
            stride = training.steps_per_epoch(num_images, min(self.batch_size, num_images))
            rate = training.cosine(self.learning_rate, self.epochs, stride=stride)
        return training.sgd(rate, momentum=self.momentum, weight_decay=self.weight_decay)

    def learn(
        self,
        gradient_fn: GradientFn,
        variables: Variables,
        data: Batch,
        key: jax.Array,
        *,
        progress: Progress | None = None,
    ) -> tuple[Variables, np.ndarray]:
        """Trains; the trained variables, of the same structure, and the loss of every step.

        Args:
            gradient_fn: what is descended; a value, so that equal ones share a compiled step.
            variables: where to start; left untouched.
            data: `N` images and what is learned of them, `[N, ...]`.
            key: draws batches and augmentation.
            progress: called as the work proceeds.

        Raises:
            TheftError: the loss became NaN or infinite.
        """
        num_images = len(data.images)
        batch_size = min(self.batch_size, num_images)
        step = training.Step(gradient_fn, self.optimizer(num_images), batch_size, self.augment)
        num_steps = self.epochs * training.steps_per_epoch(num_images, batch_size)
        start = step.init(variables, data)
        end, curves = training.descend(step.on(data, key), start, num_steps, progress=progress, trains=True)
        training.require_finite_loss(curves["loss"], "a theft", "lower learning_rate", TheftError)
        return end.variables(like=variables), curves["loss"]
