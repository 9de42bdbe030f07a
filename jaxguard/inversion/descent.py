"""One step of Neural Cleanse: patches of several classes, each with its own cost schedule and early stop."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxguard import training
from jaxguard.types import ApplyFn, Batch, Variables

Patch = tuple[jax.Array, jax.Array]
"""Masks `[S, H, W, 1]` and patterns `[S, H, W, C]`."""


class State(NamedTuple):
    """Descents of `S` classes; every leaf has the leading axis `S`.

    Attributes:
        target: the classes.
        theta: masks and patterns before `squash`.
        opt_state: Adam's.
        step: steps taken by each class.
        hits: images turned into the class in this epoch.
        seen: images counted in this epoch.
        cost: weight `c` of the mask's norm.
        good: epochs in a row in which the patch worked.
        bad: epochs in a row in which it did not.
        raised: whether the cost ever went up.
        lowered: whether the cost ever went down.
        best_norm: smallest norm of a patch that worked, or infinity.
        best: that patch, or the latest one if none worked.
        mark: `best_norm` after the previous epoch.
        stalled: epochs in a row without progress.
        stopped: whether the class is done.
    """

    target: jax.Array
    theta: Patch
    opt_state: Any
    step: jax.Array
    hits: jax.Array
    seen: jax.Array
    cost: jax.Array
    good: jax.Array
    bad: jax.Array
    raised: jax.Array
    lowered: jax.Array
    best_norm: jax.Array
    best: Patch
    mark: jax.Array
    stalled: jax.Array
    stopped: jax.Array


@dataclass(frozen=True)
class Descent:
    """One step of several classes; a value, so that equal settings share a compiled program.

    Attributes: see `invert`.
    """

    apply_fn: ApplyFn
    batch_size: int
    steps: int
    epoch_steps: int
    learning_rate: float
    betas: tuple[float, float]
    cost: float
    multiplier: float
    patience: int
    threshold: float
    stop_patience: int
    stop_ratio: float

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam."""
        return optax.adam(self.learning_rate, *self.betas)

    def start(self, targets: jax.Array, shape: tuple[int, ...], key: jax.Array) -> State:
        """The state before the first step; that of a class does not depend on the others.

        Args:
            targets: int `[S]`, the classes.
            shape: `(H, W, C)` of an image.
            key: draws the first masks and patterns, uniformly.
        """

        def draw(target: jax.Array, channels: int, salt: int) -> jax.Array:
            own = jax.random.fold_in(jax.random.fold_in(key, target), salt)
            return _inverse(jax.random.uniform(own, (*shape[:2], channels), minval=0.01, maxval=0.99))

        # Folding in the class makes its start the same whichever other classes are inverted beside it.
        theta = (jax.vmap(lambda y: draw(y, 1, 0))(targets), jax.vmap(lambda y: draw(y, shape[2], 1))(targets))
        number = len(targets)
        count, real = jnp.zeros(number, jnp.int32), jnp.zeros(number)
        no = jnp.zeros(number, bool)
        return State(
            target=targets.astype(jnp.int32),
            theta=theta,
            opt_state=jax.vmap(self.optimizer.init)(theta),
            step=count,
            hits=real,
            seen=real,
            cost=jnp.full(number, self.cost),
            good=count,
            bad=count,
            raised=no,
            lowered=no,
            best_norm=jnp.full(number, jnp.inf),
            best=jax.tree.map(squash, theta),
            mark=jnp.full(number, jnp.inf),
            stalled=count,
            stopped=no,
        )

    def __call__(
        self,
        variables: Variables,
        data: Batch,
        key: jax.Array,
        state: State,
        index: jax.Array,
    ) -> tuple[State, dict[str, jax.Array]]:
        """Takes one step; `index` is ignored, since every class counts its own steps.

        Returns:
            The new state, and `loss`, `success` and `norm`, means over the classes that have not stopped.
        """
        del index
        counted = min(training.steps_per_epoch(len(data.images), self.batch_size), self.epoch_steps)
        chosen = jax.vmap(partial(self._draw, key, len(data.images)))(state.step)
        batch = Batch(data.images[chosen], data.labels[chosen])
        # [S, B]: images of the target class itself do not count towards its loss or success.
        weights = (batch.labels != state.target[:, None]).astype(jnp.float32)

        def loss_fn(theta: Patch) -> tuple[jax.Array, Any]:
            patch = jax.tree.map(squash, theta)
            logits = stamped_logits(self.apply_fn, variables, batch.images, patch)
            wanted = jnp.broadcast_to(state.target[:, None], weights.shape)
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
            norm = patch[0].sum((1, 2, 3))
            losses = (weights * entropy).sum(1) / jnp.maximum(weights.sum(1), 1) + state.cost * norm
            hits = jnp.where(logits.argmax(-1) == wanted, weights, 0).sum(1)
            # Classes share no parameters, so the gradient of the sum is that of each class by itself.
            return losses.sum(), (patch, losses, hits, norm)

        # The success rate of an epoch counts its last `counted` steps, at most one pass over the images.
        fresh = state.step % self.epoch_steps == self.epoch_steps - counted
        gradient, (patch, losses, hits, norm) = jax.grad(loss_fn, has_aux=True)(state.theta)
        update, opt_state = jax.vmap(partial(training.update, self.optimizer))(gradient, state.opt_state)
        new = state._replace(
            theta=optax.apply_updates(state.theta, update),
            opt_state=opt_state,
            step=state.step + 1,
            hits=jnp.where(fresh, 0, state.hits) + hits,
            seen=jnp.where(fresh, 0, state.seen) + weights.sum(1),
        )
        # All classes compute the end of an epoch at every step; `where` keeps it for those that have reached it.
        is_last = new.step >= self.steps
        new = where((new.step % self.epoch_steps == 0) | is_last, self._judge(new, patch, norm), new)
        new = new._replace(stopped=new.stopped | is_last)
        active = ~state.stopped
        number = jnp.maximum(active.sum(dtype=losses.dtype), 1)
        success = hits / jnp.maximum(weights.sum(1), 1)
        metrics = {
            name: jnp.where(active, values, 0).sum() / number
            for name, values in (("loss", losses), ("success", success), ("norm", norm))
        }
        return where(active, new, state), metrics  # stopped classes keep their state

    def _draw(self, key: jax.Array, num_images: int, step: jax.Array) -> jax.Array:
        """Images of one step, `[B]`: the next ones of an epoch's permutation, as in `training.draw`."""
        if self.batch_size == num_images:
            return jnp.arange(num_images)
        epoch, position = jnp.divmod(step, training.steps_per_epoch(num_images, self.batch_size))
        order = jax.random.permutation(jax.random.fold_in(key, epoch), num_images)
        return order[(position * self.batch_size + jnp.arange(self.batch_size)) % num_images]

    def _judge(self, state: State, patch: Patch, norm: jax.Array) -> State:
        """The end of an epoch: updates the best patch, the cost, and whether to stop."""
        works = (state.seen > 0) & (state.hits >= self.threshold * state.seen - 1e-3)  # sums of ones, up to rounding
        better = works & (norm < state.best_norm)
        # Before any patch works there is no best one; until then the current one stands in.
        ever = jnp.isfinite(state.best_norm) | works
        best_norm = jnp.where(better, norm, state.best_norm)
        stalled = jnp.where(ever & (best_norm >= self.stop_ratio * state.mark), state.stalled + 1, 0)
        good, bad = jnp.where(works, state.good + 1, 0), jnp.where(works, 0, state.bad + 1)
        up, down = good >= self.patience, bad >= self.patience
        # Down in larger steps than up, as in the paper's code: a patch that fails must recover quickly.
        factor = jnp.where(up, self.multiplier, jnp.where(down, self.multiplier**-1.5, 1.0))
        raised, lowered = state.raised | up, state.lowered | down
        return state._replace(
            cost=state.cost * factor,
            good=jnp.where(up, 0, good),
            bad=jnp.where(down, 0, bad),
            raised=raised,
            lowered=lowered,
            best_norm=best_norm,
            best=where(better | ~ever, patch, state.best),
            mark=jnp.minimum(best_norm, state.mark),
            stalled=stalled,
            stopped=raised & lowered & (stalled >= self.stop_patience),
        )


def squash(theta: jax.Array) -> jax.Array:
    """Pixels from parameters: `tanh(theta) / (2 + 1e-7) + 1/2`, in (0, 1)."""
    return jnp.tanh(theta) / (2 + 1e-7) + 0.5


def _inverse(values: jax.Array) -> jax.Array:
    return jnp.arctanh((values - 0.5) * (2 + 1e-7))


def where(condition: jax.Array, new: Any, old: Any) -> Any:
    """`jnp.where` over two pytrees with leaves `[S, ...]`, by row: condition bool `[S]`."""

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)


def stamped_logits(apply_fn: ApplyFn, variables: Variables, images: jax.Array | np.ndarray, patch: Patch) -> jax.Array:
    """Logits of stamped images, as one batch.

    Args:
        apply_fn: the model.
        variables: its variables.
        images: `[B, H, W, C]` for all patches, or `[S, B, H, W, C]`.
        patch: `S` masks and patterns.

    Returns:
        float32 `[S, B, K]`.
    """
    mask, pattern = (part[:, None] for part in patch)
    images = images[None] if images.ndim == 4 else images
    stamped = (1 - mask) * images + mask * pattern
    logits = apply_fn(variables, stamped.reshape(-1, *stamped.shape[2:]))
    return logits.astype(jnp.float32).reshape(*stamped.shape[:2], -1)
