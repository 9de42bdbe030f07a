"""Activeness-aware fine-tuning: backdoor weights have large gradients, so their norm is kept down (TSBD)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxguard.training import abreast, objective, sampling
from jaxguard.training.augmentation import Augment
from jaxguard.training.descent import Progress
from jaxguard.training.step import Step, TrainState
from jaxguard.types import Batch, TrainFn, Variables

Norm = Literal["global", "per_tensor"]
Statistics = Literal["after", "before"]
Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class ActivenessAwareGradient:
    """The gradient of `L + alpha r ||grad L||` to first order in `r`, by a step along the gradient.

        g1 = grad L(w),  g2 = grad L(w + r g1 / ||g1||),  (1 - alpha) g1 + alpha g2

    Attributes:
        gradient_fn: the plain gradient.
        r: length of the step, >= 0.
        alpha: weight of the second gradient, in [0, 1]; 0 is plain fine-tuning, in one pass.
        norm: `global` over all parameters, or `per_tensor` as in the reference code: `sum_p ||grad_p L||`, which is
            up to `sqrt(tensors)` times as large.
    """

    gradient_fn: objective.GradientFn
    r: float
    alpha: float
    norm: Norm = "global"

    def __call__(self, params: Any, state: Any, batch: Batch) -> tuple[dict[str, jax.Array], Any, Any]:
        """A `GradientFn` that differentiates twice; records `loss` and the global `gradient_norm` at `w`."""
        metrics, after, first = self.gradient_fn(params, state, batch)
        metrics = {**metrics, "gradient_norm": optax.tree.norm(jax.tree.map(_float32, first))}
        if self.alpha == 0 or self.r == 0:
            return metrics, after, first
        # The gradient of the norm to first order: a finite difference of gradients, (g(w + r g/|g|) - g(w)) / r.
        _, _, second = self.gradient_fn(jax.tree.map(jnp.add, params, self.climb(first)), state, batch)
        mixture = jax.tree.map(lambda a, b: ((1 - self.alpha) * a + self.alpha * b).astype(a.dtype), first, second)
        return metrics, after, mixture

    def climb(self, gradient: Any) -> Any:
        """`r g / ||g||`.

        Args:
            gradient: `g`.

        Returns:
            The step, shaped like `g`; zero where the norm is, for which the reference code gives NaN.

        Example:
            >>> gradient = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0]), "dead": jnp.zeros(1)}
            >>> step = ActivenessAwareGradient(None, r=13.0, alpha=0.5).climb(gradient)
            >>> step["a"].tolist(), step["b"].tolist(), step["dead"].tolist()
            ([3.0, 4.0], [12.0], [0.0])
            >>> step = ActivenessAwareGradient(None, r=10.0, alpha=0.5, norm="per_tensor").climb(gradient)
            >>> step["a"].tolist(), step["b"].tolist(), step["dead"].tolist()
            ([6.0, 8.0], [10.0], [0.0])
        """
        norms = jax.tree.map(lambda g: jnp.linalg.norm(_float32(g)), gradient)
        if self.norm == "global":
            # The norm of the norms is that of all leaves together.
            whole = optax.tree.norm(norms)
            norms = jax.tree.map(lambda _: whole, norms)
        scales = jax.tree.map(lambda norm: self.r / jnp.where(norm == 0, 1, norm), norms)
        return jax.tree.map(lambda g, scale: (scale * _float32(g)).astype(g.dtype), gradient, scales)


@dataclass(frozen=True)
class StatisticsAfterwards:
    """A step that ends with a forward pass of the updated weights, the only one that moves running statistics.

    Attributes:
        step: what descends.
        train_fn: training-mode model.
    """

    step: Step
    train_fn: TrainFn

    def __call__(
        self, data: Batch, key: jax.Array, carry: TrainState, step: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Takes one step; see `Step`."""
        after, metrics = self.step(data, key, carry, step)
        key_order, key_augment = jax.random.split(key)  # the step's own draw, once more
        _, batch = sampling.draw(key_order, carry.order, step, data, self.step.batch_size)
        images = jnp.asarray(batch.images)
        if self.step.augment is not None:
            images = self.step.augment(jax.random.fold_in(key_augment, step), images)
        _, variables = self.train_fn(objective.combine(after.params, carry.state), images)
        moved = objective.partition(variables)[1]
        state = jax.tree.map(lambda new, old: jnp.asarray(new).astype(old.dtype), moved, carry.state)
        return after._replace(state=state), metrics


@dataclass(frozen=True)
class _OnSameBatches:
    """A step that is the same for all networks but for their states.

    Attributes:
        step_fn: of one network.
    """

    step_fn: Any

    def __call__(self, shared: tuple[Batch, jax.Array], own: Any, carry: Any, index: jax.Array) -> Any:
        del own
        return self.step_fn(*shared, carry, index)


def fine_tune(
    models: Sequence[Variables],
    train_fn: TrainFn,
    clean: Batch,
    key: jax.Array,
    *,
    epochs: int = 20,
    batch_size: int = 256,
    learning_rate: float = 0.01,
    schedule: Schedule = "constant",
    momentum: float = 0.9,
    r: float = 0.05,
    alpha: float = 0.7,
    norm: Norm = "global",
    statistics: Statistics = "after",
    augment: Augment | None = None,
    side_by_side: bool | None = None,
    progress: Progress | None = None,
) -> list[tuple[Variables, dict[str, np.ndarray]]]:
    """Fine-tunes models of one structure on the same batches, with one compiled step.

    Args:
        models: variables of each.
        train_fn: training-mode model.
        clean: clean images.
        key: draws batches and augmentation.
        epochs: passes over the images, >= 0.
        batch_size: images per step; all of them where there are fewer.
        learning_rate: of SGD, without weight decay.
        schedule: `constant`, as the reference code runs, or `cosine` down to 0 epoch by epoch, as its settings say.
        momentum: of SGD, in [0, 1).
        r: see `ActivenessAwareGradient`.
        alpha: see `ActivenessAwareGradient`.
        norm: see `ActivenessAwareGradient`.
        statistics: whether running statistics come from a forward pass of the weights `after` each step, as in the
            reference code, or, a pass less, of those `before` it.
        augment: `(key, images) -> images`.
        side_by_side: see `jaxguard.training.abreast.descend_all`.
        progress: called as the work proceeds.

    Returns:
        Per model its variables and the curves `loss` and `gradient_norm`, each `[steps]`.
    """
    batch_size = min(batch_size, len(clean.images))
    epoch_steps = sampling.steps_per_epoch(len(clean.images), batch_size)
    rate = learning_rate if schedule == "constant" else objective.cosine(learning_rate, epochs, stride=epoch_steps)
    gradient_fn = ActivenessAwareGradient(objective.CrossEntropyGradient(train_fn), r, alpha, norm)
    optimizer = objective.sgd(rate, momentum=momentum, weight_decay=0.0)
    step = Step(gradient_fn, optimizer, batch_size, augment)
    step_fn = StatisticsAfterwards(step, train_fn) if statistics == "after" else step
    carries = [step.init(variables, clean) for variables in models]
    ends = abreast.descend_all(
        _OnSameBatches(step_fn),
        (clean, key),
        [()] * len(models),
        carries,
        epochs * epoch_steps,
        bytes_fn=lambda: abreast.bytes_of_step(train_fn, models[0], clean, batch_size),
        side_by_side=side_by_side,
        progress=progress,
    )
    return [(end.variables(like=model), curves) for (end, curves), model in zip(ends, models, strict=True)]


def _float32(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.float32)
