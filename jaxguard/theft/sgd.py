"""How networks are trained here: the settings of SGD as one value, and the descent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import jax
import numpy as np
import optax

from jaxguard import training
from jaxguard.errors import TheftError
from jaxguard.methods import Count, Momentum, NonNegative, Steps
from jaxguard.training import Augmentation, GradientFn, Progress, abreast, population
from jaxguard.types import Batch, TrainFn, Variables

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
        step, num_steps = self._descent(gradient_fn, len(data.images))
        start = step.init(variables, data)
        end, curves = training.descend(step.on(data, key), start, num_steps, progress=progress, trains=True)
        training.require_finite_loss(curves["loss"], "a theft", "lower learning_rate", TheftError)
        return end.variables(like=variables), curves["loss"]

    def learn_all(
        self,
        train_fn: TrainFn,
        variables: Sequence[Variables],
        data: Batch,
        rows: Sequence[np.ndarray],
        keys: Sequence[jax.Array],
        *,
        progress: Progress | None = None,
    ) -> list[tuple[Variables, np.ndarray]]:
        """Trains several networks of one structure on true labels; see `learn`.

        Args:
            train_fn: training-mode model.
            variables: where each starts.
            data: images of all of them.
            rows: int `[N]`, which are each one's; equally many.
            keys: of each.
            progress: called with the steps of all networks together.

        Raises:
            TheftError: a loss became NaN or infinite.
        """
        step, num_steps = self._descent(training.CrossEntropyGradient(train_fn), len(rows[0]))
        # The optimizer has the rate and the decay already.
        own = population.own_of(keys, rows, [1.0] * len(keys), [0.0] * len(keys))
        ends = abreast.descend_all(
            population.OwnStep(step),
            data,
            own,
            [step.init(one, Batch(rows[0], rows[0])) for one in variables],
            num_steps,
            bytes_fn=lambda: abreast.bytes_of_step(train_fn, variables[0], data, step.batch_size),
            progress=progress,
        )
        for _, curves in ends:
            training.require_finite_loss(curves["loss"], "a theft", "lower learning_rate", TheftError)
        return [(end.variables(like=one), curves["loss"]) for one, (end, curves) in zip(variables, ends, strict=True)]

    def _descent(self, gradient_fn: GradientFn, num_images: int) -> tuple[training.Step, int]:
        batch_size = min(self.batch_size, num_images)
        step = training.Step(gradient_fn, self.optimizer(num_images), batch_size, self.augment)
        return step, self.epochs * training.steps_per_epoch(num_images, batch_size)
