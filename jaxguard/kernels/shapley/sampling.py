"""Permutation sampling: unbiased estimates from uniformly random orders."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jax.tree_util import Partial

from jaxguard.kernels.shapley.estimate import Estimate, Moments
from jaxguard.kernels.shapley.passes import ValuesFn, marginals, partial

Pairing = Literal["none", "antithetic", "rotations"]
ROTATIONS = 4
PASSES: dict[str, int] = {"none": 1, "antithetic": 2, "rotations": ROTATIONS}
"""Passes in one sample."""

Progress = Callable[[int, int], None]
"""`(samples drawn, samples in all)`."""


class _Sampling(NamedTuple):
    number: jax.Array
    moments: Moments
    evaluations: jax.Array

    def is_precise(self, tolerance: float | jax.Array) -> jax.Array:
        return (self.moments.samples > 1).all() & (self.moments.standard_errors() <= tolerance).all()


def permutation_sampling(
    values_fn: ValuesFn,
    players: int,
    key: jax.Array,
    *,
    samples: int = 100,
    pairing: Pairing = "antithetic",
    threshold: float | None = None,
    tolerance: float = 0.0,
    chunk: int = 32,
    devices: Sequence[Any] = (),
    progress: Progress | None = None,
) -> Estimate:
    """Estimate all Shapley values from passes in random orders.

    Args:
        values_fn: `gates [B, N] -> values [B]`.
        players: `N`.
        key: `jax.random.key`.
        samples: most independent samples; one is a group of passes evaluated at once, see `pairing`.
        pairing: `none`, one pass; `antithetic`, an order and its reverse; `rotations`, an order and its rotations by
            quarters, so that every player leaves early, late and in between (stratified by position).
        threshold: see `marginals`; the bias of a player is at most `threshold - V(no players)`, None has none.
        tolerance: stop when no standard error exceeds it.
        chunk: coalitions of each pass evaluated together.
        devices: among which samples are shared out; by default one device draws them all.
        progress: told after each sample (of all devices); the call cannot be traced then.

    Returns:
        The estimate; `converged` says that the tolerance was met.

    Raises:
        ValueError: an unknown pairing.

    >>> game = lambda gates: gates @ jnp.array([1.0, -2.0, 0.5])
    >>> permutation_sampling(game, 3, jax.random.key(0), samples=2).values.tolist()
    [1.0, -2.0, 0.5]
    """
    if pairing not in get_args(Pairing):
        raise ValueError(f"expected pairing of {', '.join(get_args(Pairing))}, got {pairing!r}")
    step = functools.partial(
        _until,
        partial(values_fn),
        key,
        players=players,
        pairing=pairing,
        threshold=threshold,
        chunk=chunk,
        devices=tuple(devices),
    )
    zero = jnp.zeros((), jnp.int32)
    state = _Sampling(zero, Moments.none(players), zero)
    if progress is None:
        state = step(state, samples, tolerance)
    else:
        for drawn in range(0, samples, max(len(devices), 1)):
            state = step(state, drawn + 1, tolerance)
            progress(int(state.moments.samples[0]), samples)
            if state.is_precise(tolerance):
                break
    return state.moments.estimate(state.evaluations + 1, state.is_precise(tolerance))


@functools.partial(jax.jit, static_argnames=("players", "pairing", "threshold", "chunk", "devices"))
def _until(
    values_fn: Partial,
    key: jax.Array,
    state: _Sampling,
    samples: jax.Array,
    tolerance: jax.Array,
    *,
    players: int,
    pairing: Pairing,
    threshold: float | None,
    chunk: int,
    devices: tuple[Any, ...],
) -> _Sampling:
    """Draw samples until there are so many, or the tolerance is met."""
    full = values_fn(jnp.ones((1, players)))[0]
    width = max(len(devices), 1)

    def sample(values_fn: Partial, full: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        orders = _orders(keys[0], players, pairing)
        values, evaluations = marginals(values_fn, orders, full=full, threshold=threshold, chunk=chunk)
        return values.mean(axis=0)[None], evaluations[None]

    if devices:
        mesh = Mesh(np.array(devices), ("samples",))
        shared, split = PartitionSpec(), PartitionSpec("samples")
        sample = jax.shard_map(
            sample, mesh=mesh, in_specs=(shared, shared, split), out_specs=(split, split), check_vma=False
        )

    def step(state: _Sampling) -> _Sampling:
        number, moments, evaluations = state
        keys = jax.vmap(lambda k: jax.random.fold_in(key, k))(number * width + jnp.arange(width))
        values, counts = sample(values_fn, full, keys)
        for one in values:
            moments = moments.add(one, jnp.ones(players, bool))
        return _Sampling(number + 1, moments, evaluations + counts.sum())

    return jax.lax.while_loop(
        lambda state: (state.number * width < samples) & ~state.is_precise(tolerance), step, state
    )


def _orders(key: jax.Array, players: int, pairing: Pairing) -> jax.Array:
    """`[P, N]` orders of one sample."""
    order = jax.random.permutation(key, players)
    if pairing == "antithetic":
        return jnp.stack([order, order[::-1]])
    return jnp.stack([jnp.roll(order, shift * players // PASSES[pairing]) for shift in range(PASSES[pairing])])
