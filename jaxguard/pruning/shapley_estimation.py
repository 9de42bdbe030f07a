"""Shapley values with samples shared out among host threads and devices.

`jaxguard.kernels.shapley.permutation_sampling` is one program, and on CPU a loop inside a program runs on one core.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxguard import execution, programs
from jaxguard.kernels import shapley

Progress = Callable[[int, int], None]
"""`(samples drawn, samples in all)`."""


def permutation_sampling(
    values_fn: shapley.ValuesFn,
    players: int,
    key: jax.Array,
    *,
    samples: int = 100,
    pairing: shapley.Pairing = "antithetic",
    threshold: float | None = None,
    tolerance: float = 0.0,
    chunk: int = 32,
    devices: Sequence[Any] = (),
    workers: int | None = None,
    progress: Progress | None = None,
) -> shapley.Estimate:
    """`jaxguard.kernels.shapley.permutation_sampling`, several samples at once.

    Samples are added up in their order, so the estimate depends on neither `devices` nor `workers`.

    Args:
        values_fn: `gates [B, N] -> values [B]`.
        players: `N`.
        key: `jax.random.key`.
        samples: most independent samples.
        pairing: as there.
        threshold: as there.
        tolerance: as there.
        chunk: as there.
        devices: among which samples are shared out, each with its copy of the arrays in `values_fn`; all by default.
        workers: samples drawn at once on each device, >= 1; by default `jaxguard.execution.workers()`.
        progress: called after each sample.

    Returns:
        The estimate.

    Raises:
        ValueError: an unknown pairing, or no worker.
    """
    game = shapley.traced(values_fn, players, shapley.rows(pairing, chunk))
    shared = (game, _whole(game, players))
    workers = execution.workers() if workers is None else workers
    devices = devices or execution.devices()
    places = [shared] if len(devices) == 1 else [jax.device_put(shared, device) for device in devices]

    def draw(number: int) -> tuple[jax.Array, jax.Array]:
        # Samples go round the devices. Their number, not their place, draws the orders, so that any number of workers
        # gives the same estimate.
        own, full = places[number % len(places)]
        return jax.block_until_ready(
            shapley.sample(own, players, key, number, full=full, pairing=pairing, threshold=threshold, chunk=chunk)
        )

    moments, evaluations, is_precise = shapley.Moments.none(players), 1, jnp.zeros((), bool)
    drawn = execution.in_threads(draw, range(samples), threads=workers * len(places))
    with contextlib.closing(drawn):
        for done, sample in enumerate(drawn, start=1):
            # Samples arrive in their order, whatever worker was first: sums in another order would round differently.
            values, count = jax.device_put(sample, moments.mean.sharding)
            moments, is_precise = _add(moments, values, tolerance)
            evaluations += int(count)
            if progress is not None:
                progress(done, samples)
            if is_precise:
                break
    return moments.estimate(jnp.asarray(evaluations), is_precise)


_add = programs.jit(shapley.add)


@functools.partial(programs.jit, static_argnames="players")
def _whole(game: Partial, players: int) -> jax.Array:
    return game(jnp.ones((1, players)))[0]
