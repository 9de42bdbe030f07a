"""Give a pruned model its clean behaviour back: distil from the suspect, on a few images, with the cut channels shut.

The suspect is right on clean images, so it can teach what pruning cost. Its answers are not used where it gives images
of other classes the suspected class; images with the recovered trigger get the targets of those without. A handful of
images is enough when each step draws new mixtures, crops and noise of them. This is our own method, from no paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from jaxguard import training
from jaxguard.errors import DefenseError
from jaxguard.inversion.recovery import Recovered, stamp
from jaxguard.training import CropFlip
from jaxguard.types import ApplyFn, Batch, Network, Variables

NOISE = 0.1
"""Largest standard deviation of the noise on a mixture."""


SHIFT = CropFlip(padding=2, flip=False)
"""Small shifts, which change the class of hardly any image."""


class _Given(NamedTuple):
    """What stays the same in all steps; see `restore`."""

    data: Batch
    patch: tuple[jax.Array, jax.Array]
    suspect: Variables
    keep: Any
    state: Any
    key: jax.Array


@dataclass(frozen=True)
class _Step:
    """One step of the descent; a value, so that equal ones share a compiled program."""

    apply_fn: ApplyFn
    target: int
    batch_size: int
    learning_rate: float
    augment: training.Augment

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def __call__(
        self,
        given: _Given,
        carry: tuple[Any, Any],
        index: jax.Array,
    ) -> tuple[tuple[Any, Any], dict[str, jax.Array]]:
        params, opt_state = carry
        images, is_target = self._draw(given.data, jax.random.fold_in(given.key, index))
        believed = jax.nn.softmax(self.apply_fn(given.suspect, images).astype(jnp.float32))
        # The suspect's belief in the target class is not to be taught, unless the image shows that class.
        distrusted = (jnp.arange(believed.shape[-1]) == self.target)[None] & ~is_target[:, None]
        wanted = jnp.where(distrusted, 0, believed)
        wanted = wanted / jnp.maximum(wanted.sum(axis=-1, keepdims=True), 1e-12)
        seen = jnp.concatenate([images, stamp(images, given.patch)])

        def loss_fn(params: Any) -> jax.Array:
            logits = self.apply_fn(training.combine(params, given.state), seen).astype(jnp.float32)
            return optax.softmax_cross_entropy(logits, jnp.concatenate([wanted, wanted])).mean()

        loss, gradient = jax.value_and_grad(loss_fn)(params)
        update, opt_state = training.update(self.optimizer, gradient, opt_state)
        # Updates, not gradients, are masked: Adam would move a weight of zero gradient by what it remembers.
        update = jax.tree.map(jnp.multiply, update, given.keep)
        return (optax.apply_updates(params, update), opt_state), {"loss": loss}

    def _draw(self, data: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mixtures `[B, H, W, C]` of two images each, and whether one of the two is of the target class."""
        key_share, key_pair, key_augment, key_noise, key_level = jax.random.split(key, 5)
        pair = jax.random.randint(key_pair, (2, self.batch_size), 0, len(data.images))
        share, level = (jax.random.uniform(k, (self.batch_size, 1, 1, 1)) for k in (key_share, key_level))
        first, second = (jnp.asarray(data.images)[one] for one in pair)
        mixed = self.augment(key_augment, share * first + (1 - share) * second)
        noisy = jnp.clip(mixed + NOISE * level * jax.random.normal(key_noise, mixed.shape), 0, 1)
        return noisy, (jnp.asarray(data.labels)[pair] == self.target).any(axis=0)


def restore(
    suspect: Network,
    pruned: Variables,
    recovered: Recovered,
    key: jax.Array,
    *,
    keep: Variables,
    steps: int = 200,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    augment: training.Augment = SHIFT,
    progress: training.Progress | None = None,
) -> Variables:
    """Trains the parameters of a pruned model in evaluation mode; running statistics stay.

    Args:
        suspect: the network before pruning, which teaches.
        pruned: where to start; left untouched.
        recovered: images, their labels, the trigger and the suspected class.
        key: draws mixtures, crops and noise.
        keep: like the variables, 0 where nothing may move (the cut channels), 1 elsewhere.
        steps: of Adam; 0 changes nothing.
        batch_size: mixtures in a step, each seen with and without the trigger.
        learning_rate: of Adam.
        augment: of the mixtures.
        progress: called as the work proceeds.

    Returns:
        Variables of the same tree, shapes and dtypes.

    Raises:
        DefenseError: the loss became NaN or infinite.
    """
    params, state = training.partition(pruned)
    step = _Step(suspect.apply_fn, recovered.target, batch_size, learning_rate, augment)
    data = Batch(jnp.asarray(recovered.images.images, jnp.float32), jnp.asarray(recovered.images.labels))
    given = _Given(data, recovered.patch, suspect.variables, training.partition(keep)[0], state, key)
    carry = (params, step.optimizer.init(params))
    (params, _), metrics = training.descend(Partial(step, given), carry, steps, progress=progress)
    training.require_finite_loss(metrics["loss"], "restoring", "pass restore_steps=0", DefenseError)
    return training.combine(params, state)
