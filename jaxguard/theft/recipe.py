"""How a copy is trained: SGD's settings as one value, and the descent."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import jax
import numpy as np
import optax
from jax.tree_util import Partial

from jaxguard import training
from jaxguard.theft.protocol import TheftError
from jaxguard.training import Augment, GradientFn, Progress
from jaxguard.types import Batch, Variables

Schedule = Literal["constant", "cosine", "cosine by step"]
"""`cosine` falls to 0 epoch by epoch; `by step` it counts steps as epochs, and so falls and rises again and again."""


@dataclass(frozen=True)
class Recipe:
    """SGD's settings.

    Attributes:
        method: who trains, for messages.
        epochs: passes over the images; 0 trains nothing.
        batch_size: images per step; all of them where there are fewer.
        learning_rate: of the first step.
        momentum: in [0, 1).
        weight_decay: coefficient of the L2 penalty's gradient.
        schedule: how the rate falls.
        augment: `(key, images) -> images`, or None.

    Raises:
        TheftError: one of them is out of range.
    """

    method: str
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: Schedule = "constant"
    augment: Augment | None = None

    def __post_init__(self):
        in_range = self.epochs >= 0 and self.batch_size >= 1 and self.learning_rate >= 0 and 0 <= self.momentum < 1
        if not in_range or self.schedule not in get_args(Schedule):
            raise TheftError(
                f"expected epochs >= 0, batch_size >= 1, learning_rate >= 0, momentum in [0, 1) and a schedule of "
                f"{', '.join(get_args(Schedule))}, came {self.options()} in {self.method}()"
            )

    def options(self) -> dict[str, Any]:
        """The settings by name, for a report."""
        named = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "method"}
        return {**named, "augment": repr(self.augment)}

    def optimizer(self, num_images: int) -> optax.GradientTransformation:
        """The optimizer; equal settings give the identical one.

        Args:
            num_images: `N` training images.

        Returns:
            SGD.
        """
        rate: float | optax.Schedule = self.learning_rate
        if self.schedule != "constant":
            by_step = self.schedule == "cosine by step"
            stride = 1 if by_step else training.steps_per_epoch(num_images, min(self.batch_size, num_images))
            rate = training.cosine(self.learning_rate, self.epochs, stride=stride, periodic=by_step)
        return training.sgd(rate, momentum=self.momentum, weight_decay=self.weight_decay)

    def learn(
        self,
        gradient_fn: GradientFn,
        variables: Variables,
        data: Batch,
        key: jax.Array,
        *,
        teacher: tuple[Any, Variables] | None = None,
        progress: Progress | None = None,
    ) -> tuple[Variables, np.ndarray]:
        """Trains.

        Args:
            gradient_fn: what is descended; a value, so that equal ones share a compiled step.
            variables: where to start; left untouched.
            data: `N` images and what is learned of them, `[N, ...]`.
            key: draws batches and augmentation.
            teacher: `(answer_fn, its variables)` where every augmented view is to be asked about anew: its answers
                then take the labels' place.
            progress: told how far the descent is.

        Returns:
            The trained variables, of the same structure, and the loss of every step.

        Raises:
            TheftError: the loss became NaN or infinite.
        """
        num_images = len(data.images)
        batch_size = min(self.batch_size, num_images)
        step = training.Step(gradient_fn, self.optimizer(num_images), batch_size, self.augment)
        step_fn = step.on(data, key)
        if teacher is not None:
            answer_fn, weights = teacher
            step_fn = Partial(_Views(step, answer_fn), weights, jax.device_put(data), key)
        num_steps = self.epochs * training.steps_per_epoch(num_images, batch_size)
        end, curves = training.descend(step_fn, step.init(variables, data), num_steps, progress=progress)
        self.require_finite(curves["loss"])
        return end.variables(like=variables), curves["loss"]

    def require_finite(self, losses: np.ndarray) -> None:
        """Refuses a training that diverged.

        Args:
            losses: `[steps]`.

        Raises:
            TheftError: one is NaN or infinite.
        """
        finite = np.isfinite(losses)
        if not finite.all():
            at = int(np.argmin(finite))
            raise TheftError(
                f"expected a finite loss, came {losses[at]} at step {at} of {len(losses)} in {self.method}(); "
                "lower learning_rate, or check the weights and the images for NaN"
            )


@dataclass(frozen=True)
class _Views:
    """A step whose labels are the teacher's answers to the very views that are learned; a value like the step."""

    step: training.Step
    answer_fn: Any

    def __call__(
        self, teacher: Variables, data: Batch, key: jax.Array, carry: training.TrainState, index: jax.Array
    ) -> tuple[training.TrainState, dict[str, jax.Array]]:
        def gradient_fn(params: Any, state: Any, batch: Batch) -> tuple[dict[str, jax.Array], Any, Any]:
            answered = batch._replace(labels=self.answer_fn(teacher, batch.images))
            return self.step.gradient_fn(params, state, answered)

        asking = training.Step(gradient_fn, self.step.optimizer, self.step.batch_size, self.step.augment)
        return asking(data, key, carry, index)
