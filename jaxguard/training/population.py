"""Supervised training of many networks of one architecture at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxguard.errors import DataError, JaxguardError
from jaxguard.training import abreast, descent, objective, sampling
from jaxguard.training.augmentation import Augment
from jaxguard.training.step import Step, TrainState
from jaxguard.types import Batch, TrainFn, Variables


class Own(NamedTuple):
    """What differs between networks that are trained together.

    Attributes:
        key: draws batches and augmentation.
        rows: int `[N]`, the network's images among all.
        learning_rate: float32 `[]`, factor of the optimizer's updates.
        weight_decay: float32 `[]`, coefficient of the L2 penalty's gradient.
    """

    key: jax.Array
    rows: jax.Array
    learning_rate: jax.Array
    weight_decay: jax.Array


@dataclass(frozen=True)
class OwnStep:
    """A `Step` of one of many networks; a value, so that equal settings share a compiled program.

    Attributes:
        step: whose optimizer has a rate of 1 and no decay.
    """

    step: Step

    def __call__(
        self, data: Batch, own: Own, carry: TrainState, index: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Takes one step; see `Step`."""
        order, batch = self.step.draw(data, own.key, carry.order, index, rows=own.rows)
        metrics, state, gradient = self.step.gradient_fn(carry.params, carry.state, batch)
        decayed = jax.tree.map(lambda g, w: g + own.weight_decay.astype(g.dtype) * w, gradient, carry.params)
        updates, opt_state = objective.update(self.step.optimizer, decayed, carry.opt_state, carry.params)
        # SGD's updates are proportional to its rate, so that the rate may be traced and the optimizer shared.
        updates = jax.tree.map(lambda update: own.learning_rate.astype(update.dtype) * update, updates)
        return TrainState(optax.apply_updates(carry.params, updates), state, opt_state, order), metrics


def fit_many(
    train_fn: TrainFn,
    variables: Sequence[Variables],
    data: Batch,
    keys: Sequence[jax.Array],
    *,
    rows: Sequence[np.ndarray] | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float | Sequence[float] = 0.1,
    momentum: float = 0.9,
    weight_decay: float | Sequence[float] = 5e-4,
    schedule: Literal["cosine", "constant"] = "cosine",
    label_smoothing: float = 0.0,
    augment: Augment | None = None,
    side_by_side: bool | None = None,
    progress: descent.Progress | None = None,
) -> list[tuple[Variables, np.ndarray]]:
    """Trains networks that differ in their seeds, images, rates and decays; each as `fit` would alone.

    One step is compiled for all. On accelerators the networks of a stack take it together, divided among the devices.

    Args:
        train_fn: training-mode model.
        variables: initial values of each network, of equal shapes.
        data: images of all networks together, on the device once.
        keys: `jax.random.key` of each network.
        rows: int `[N]`, which images are each network's; equally many. All by default.
        steps: steps to take; pass this or `epochs`.
        epochs: passes over a network's images.
        batch_size: images per step and network, at most `N`.
        learning_rate: of the first step; one for all or one each.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD; one for all or one each.
        schedule: `cosine` falls to 0 at the last step.
        label_smoothing: in [0, 1].
        augment: `(key, images) -> images`, such as `CropFlip()`.
        side_by_side: see `jaxguard.training.abreast.descend_all`.
        progress: called with the steps of all networks together.

    Returns:
        Of each network the trained variables, of the structure, shapes and dtypes of the input, and the loss of every
        step, float32 `[steps]`.

    Raises:
        DataError: no network, no images, a row that is no image, or networks with different numbers of images.
        ValueError: not one key and setting for each network, or not exactly one of `steps` and `epochs`.
        JaxguardError: a loss became NaN or infinite; it names the network.

    Example:
        >>> linear = lambda w, images: (images.reshape(len(images), -1) @ w, w)
        >>> data = Batch(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.arange(4))
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> found = fit_many(linear, [np.zeros((4, 4), np.float32)] * 2, data, keys, steps=20)
        >>> [bool(losses[-1] < losses[0]) for _, losses in found]
        [True, True]
    """
    number = len(variables)
    chosen = [np.arange(len(data.images))] * number if rows is None else [np.asarray(row) for row in rows]
    _check(data, chosen, number)
    rates, decays = (np.broadcast_to(np.asarray(one, np.float32), number) for one in (learning_rate, weight_decay))
    if len(keys) != number or (steps is None) == (epochs is None) or min(steps or 0, epochs or 0) < 0:
        raise ValueError(
            f"expected a key for each network, and one of steps >= 0 and epochs >= 0, got {number} networks, "
            f"{len(keys)} keys, {steps=}, {epochs=} in fit_many()"
        )
    size = min(batch_size, len(chosen[0]))
    epoch_steps = sampling.steps_per_epoch(len(chosen[0]), size)
    total = steps if steps is not None else (epochs or 0) * epoch_steps
    rate = objective.cosine(1.0, total) if schedule == "cosine" else 1.0
    optimizer = objective.sgd(rate, momentum=momentum, weight_decay=0.0)
    step = Step(objective.CrossEntropyGradient(train_fn, label_smoothing), optimizer, size, augment)
    ends = abreast.descend_all(
        OwnStep(step),
        data,
        own_of(keys, chosen, rates.tolist(), decays.tolist()),
        [step.init(one, Batch(chosen[0], chosen[0])) for one in variables],
        total,
        bytes_fn=lambda: abreast.bytes_of_step(train_fn, variables[0], data, size),
        side_by_side=side_by_side,
        progress=progress,
    )
    for k, (_, curves) in enumerate(ends):
        where = f"fit_many(), network {k} of {number}"
        descent.require_finite_loss(curves["loss"], where, "lower learning_rate", JaxguardError)
    return [(end.variables(like=one), curves["loss"]) for one, (end, curves) in zip(variables, ends, strict=True)]


def own_of(
    keys: Sequence[jax.Array], rows: Sequence[np.ndarray], rates: Sequence[float], decays: Sequence[float]
) -> list[Own]:
    """What differs between networks, one entry each; see `Own`."""
    return [
        Own(key, jnp.asarray(row, jnp.int32), jnp.float32(rate), jnp.float32(decay))
        for key, row, rate, decay in zip(keys, rows, rates, decays, strict=True)
    ]


def _check(data: Batch, rows: Sequence[np.ndarray], number: int) -> None:
    most = len(data.images)
    if number == 0 or most == 0 or np.shape(data.labels) != (most,):
        raise DataError(
            f"expected networks, images and a label for each image, got {number} networks, {most} images and labels of "
            f"shape {np.shape(data.labels)} in fit_many()"
        )
    lengths = sorted({len(row) for row in rows})
    if len(rows) != number or len(lengths) != 1 or lengths[0] == 0:
        raise DataError(
            f"expected rows for each network, equally many, got {len(rows)} of lengths {lengths[:5]} for {number} "
            "networks in fit_many(rows=...); train networks of another number of images in a call of their own"
        )
    least, largest = min(int(row.min()) for row in rows), max(int(row.max()) for row in rows)
    if least < 0 or largest >= most:
        raise DataError(f"expected rows in [0, {most}), got {least} to {largest} in fit_many(rows=...)")
