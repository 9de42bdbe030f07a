"""A training step whose gradient needs more than weights and a batch: a teacher, or a perturbation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

from jaxguard.training.augmentation import Augment
from jaxguard.training.step import Step, TrainState
from jaxguard.types import Batch

GuidedGradientFn = Callable[[Any, Any, Any, Batch], tuple[dict[str, jax.Array], Any, Any]]
"""`(guide, params, state, batch) -> (scalars to record, state, gradient)`."""


@dataclass(frozen=True)
class GuidedStep:
    """A step for `training.descend`; a value, so that equal ones share a compiled program whatever guides them.

        step = GuidedStep(gradient_fn, sgd(0.1), batch_size=128)
        state, metrics = descend(Partial(step, guide, data, key), step.guided(guide).init(variables, data), num_steps)

    Attributes:
        gradient_fn: what is descended.
        optimizer: makes updates of gradients.
        batch_size: images per step, at most the number of images.
        augment: `(key, images) -> images`, or None.
    """

    gradient_fn: GuidedGradientFn
    optimizer: optax.GradientTransformation
    batch_size: int
    augment: Augment | None = None

    def __call__(
        self, guide: Any, data: Batch, key: jax.Array, carry: TrainState, index: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Takes one step; `guide` is a pytree of arrays, what the gradient needs. See `Step`."""
        return self.guided(guide)(data, key, carry, index)

    def guided(self, guide: Any) -> Step:
        """The plain step, its guide bound.

        Args:
            guide: see above.

        Returns:
            A step that is equal to no other.
        """
        return Step(functools.partial(self.gradient_fn, guide), self.optimizer, self.batch_size, self.augment)
