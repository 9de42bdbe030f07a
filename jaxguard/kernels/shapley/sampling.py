"""Permutation sampling: unbiased estimates from uniformly random orders."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxguard import backend
from jaxguard.kernels.shapley.estimate import Estimate, Moments
from jaxguard.kernels.shapley.passes import ValuesFn, marginals, partial

Pairing = Literal["none", "antithetic", "rotations"]
ROTATIONS = 4
PASSES: dict[str, int] = {"none": 1, "antithetic": 2, "rotations": ROTATIONS}
"""Passes in one sample."""

Progress = Callable[[int, int], None]
"""`(samples drawn, samples in all)`."""


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
    workers: int | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Estimate all Shapley values from passes in random orders.

    The estimate depends on neither `devices` nor `workers`. Samples are drawn from host threads, so the call cannot
    be traced; `marginals` can.

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
        devices: among which samples are shared out, each with its copy of the arrays in `values_fn`; by default JAX's.
        workers: samples drawn at once on each device, >= 1; by default `jaxguard.backend.workers()`.
        progress: told after each sample.

    Returns:
        The estimate; `converged` says that the tolerance was met.

    Raises:
        ValueError: an unknown pairing, or no worker.

    >>> game = lambda gates: gates @ jnp.array([1.0, -2.0, 0.5])
    >>> permutation_sampling(game, 3, jax.random.key(0), samples=2).values.tolist()
    [1.0, -2.0, 0.5]
    """
    if pairing not in get_args(Pairing):
        raise ValueError(f"expected pairing of {', '.join(get_args(Pairing))}, got {pairing!r}")
    workers = backend.workers() if workers is None else workers
    if workers < 1:
        raise ValueError(f"expected workers >= 1, got {workers}; leave it out for one per core")
    draw = functools.partial(_sample, players=players, pairing=pairing, chunk=chunk)
    game = partial(values_fn)
    full = _whole(game, players)
    shared = (game, key, full, jnp.asarray(-jnp.inf if threshold is None else threshold, full.dtype))
    places = [jax.device_put(shared, device) for device in devices] or [shared]
    moments, evaluations, precise = Moments.none(players), 1, jnp.zeros((), bool)
    pool = ThreadPoolExecutor(workers * len(places))
    try:
        drawn = [
            pool.submit(lambda number: jax.block_until_ready(draw(*places[number % len(places)], number)), number)
            for number in range(samples)
        ]
        for number, sample in enumerate(drawn):
            values, count = jax.device_put(sample.result(), moments.mean.sharding)
            moments, precise = _add(moments, values, tolerance)
            evaluations += int(count)
            if progress is not None:
                progress(number + 1, samples)
            if precise:
                break
    finally:
        pool.shutdown(cancel_futures=True)
    return moments.estimate(jnp.asarray(evaluations), precise)


@functools.partial(jax.jit, static_argnames="players")
def _whole(values_fn: Partial, players: int) -> jax.Array:
    return values_fn(jnp.ones((1, players)))[0]


@jax.jit
def _add(moments: Moments, values: jax.Array, tolerance: float) -> tuple[Moments, jax.Array]:
    moments = moments.add(values, jnp.ones(values.shape, bool))
    return moments, (moments.standard_errors() <= tolerance).all()


@functools.partial(jax.jit, static_argnames=("players", "pairing", "chunk"))
def _sample(
    values_fn: Partial,
    key: jax.Array,
    full: jax.Array,
    threshold: jax.Array,
    number: jax.Array,
    *,
    players: int,
    pairing: Pairing,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """`[N]` marginals, mean over the passes of one sample; and the coalitions evaluated."""
    orders = _orders(jax.random.fold_in(key, number), players, pairing)
    values, evaluations = marginals(values_fn, orders, full=full, threshold=threshold, chunk=chunk)
    return values.mean(axis=0), evaluations


def _orders(key: jax.Array, players: int, pairing: Pairing) -> jax.Array:
    """`[P, N]` orders of one sample."""
    order = jax.random.permutation(key, players)
    if pairing == "antithetic":
        return jnp.stack([order, order[::-1]])
    return jnp.stack([jnp.roll(order, shift * players // PASSES[pairing]) for shift in range(PASSES[pairing])])
