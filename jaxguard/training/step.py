"""One step of training on data on the device: draw, augment, differentiate, update."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from jaxguard.training import objective, sampling
from jaxguard.training.augmentation import Augment
from jaxguard.types import Batch, Variables


class TrainState(NamedTuple):
    """The carry of a step.

    Attributes:
        params: trained parameters.
        state: the other collections, such as running statistics.
        opt_state: the optimizer's state.
        order: int32 `[N]`, this epoch's permutation.
    """

    params: Any
    state: Any
    opt_state: Any
    order: jax.Array

    def variables(self, like: Variables) -> Variables:
        """The model's variables, with the mapping types of `like`, which training began with."""
        leaves = jax.tree.leaves(objective.combine(self.params, self.state))
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


@dataclass(frozen=True)
class Step:
    """A step function for `descend`; a value, so that equal settings share a compiled program.

        step = Step(CrossEntropyGradient(train_fn), sgd(0.1), batch_size=128)
        state, metrics = descend(step.on(data, key), step.init(variables, data), num_steps)

    Attributes:
        gradient_fn: gradient of the objective, such as `CrossEntropyGradient`.
        optimizer: turns gradients into updates.
        batch_size: images per step, at most the number of images.
        augment: `(key, images) -> images`, or None.
    """

    gradient_fn: objective.GradientFn
    optimizer: optax.GradientTransformation
    batch_size: int
    augment: Augment | None = None

    def init(self, variables: Variables, data: Batch) -> TrainState:
        """The state before the first step."""
        params, state = objective.partition(variables)
        return TrainState(params, state, self.optimizer.init(params), jnp.zeros(len(data.images), jnp.int32))

    def on(self, data: Batch, key: jax.Array) -> Partial:
        """The step function `(carry, step index) -> (carry, metrics)`; moves the data to the device once.

        Args:
            data: `N` training images.
            key: draws batches and augmentation.
        """
        return Partial(self, jax.device_put(data), key)

    def draw(
        self, data: Batch, key: jax.Array, order: jax.Array, step: jax.Array, *, rows: jax.Array | None = None
    ) -> tuple[jax.Array, Batch]:
        """The batch of a step, augmented, and the order to carry on; see `sampling.draw`."""
        key_order, key_augment = jax.random.split(key)
        order, batch = sampling.draw(key_order, order, step, data, self.batch_size, rows=rows)
        if self.augment is not None:
            key_step = jax.random.fold_in(key_augment, step)
            batch = batch._replace(images=self.augment(key_step, jnp.asarray(batch.images)))
        return order, batch

    def __call__(
        self, data: Batch, key: jax.Array, carry: TrainState, step: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Takes one step, counted from 0 over all epochs: the new state, and the metrics of `gradient_fn`."""
        order, batch = self.draw(data, key, carry.order, step)
        metrics, state, gradient = self.gradient_fn(carry.params, carry.state, batch)
        updates, opt_state = objective.update(self.optimizer, gradient, carry.opt_state, carry.params)
        return TrainState(optax.apply_updates(carry.params, updates), state, opt_state, order), metrics
