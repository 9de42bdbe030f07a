"""Epsilon-greedy orders: the players that matter leave first, so that the value falls early and the pass is short."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxguard import programs
from jaxguard.kernels import loops
from jaxguard.kernels.shapley.estimate import Estimate, Moments
from jaxguard.kernels.shapley.game import ValuesFn, traced
from jaxguard.kernels.shapley.passes import marginals


def greedy_order(key: jax.Array, values: jax.Array, *, epsilon: float | jax.Array = 0.2) -> tuple[jax.Array, jax.Array]:
    """With probability `epsilon` a uniform order, else by falling value, ties at random.

    Marginals in the latter are biased: the first players are credited with what they share with later ones.

    Args:
        key: `jax.random.key`.
        values: `[N]` present estimates.
        epsilon: share of uniform orders.

    Returns:
        `[N]` permutation, and whether it is a uniform one.
    """
    # Both orders are made and one is chosen: inside a compiled loop a branch would trace both anyway.
    key_choice, key_order = jax.random.split(key)
    uniform = jax.random.permutation(key_order, values.shape[0])
    # By falling value, equal ones in the order of `uniform`. A sort by two keys needs no indices into the values.
    *_, by_value = jax.lax.sort((-values, jnp.argsort(uniform), jnp.arange(values.shape[0])), num_keys=2)
    is_uniform = jax.random.uniform(key_choice) < epsilon
    return jnp.where(is_uniform, uniform, by_value), is_uniform


class _Greedy(NamedTuple):
    number: jax.Array
    uniform: Moments
    greedy: Moments
    evaluations: jax.Array


def epsilon_greedy(
    values_fn: ValuesFn,
    players: int,
    key: jax.Array,
    *,
    samples: int = 100,
    epsilon: float = 0.2,
    warmup: int = 10,
    threshold: float | None = None,
    chunk: int = 32,
) -> tuple[Estimate, Estimate]:
    """Passes in epsilon-greedy orders, those that happen to be uniform kept apart from the others.

    Args:
        values_fn: `gates [B, N] -> values [B]`.
        players: `N`.
        key: `jax.random.key`.
        samples: passes.
        epsilon: share of uniform orders after the warm-up.
        warmup: uniform passes at the beginning.
        threshold: see `marginals`.
        chunk: coalitions evaluated together.

    Returns:
        The unbiased estimate, of the uniform passes alone; and the greedy one, biased, of the others. Both carry the
        evaluations of all passes and never converge.
    """
    return _epsilon_greedy(
        traced(values_fn, players, (1, chunk)),
        key,
        players=players,
        samples=samples,
        epsilon=epsilon,
        warmup=warmup,
        threshold=threshold,
        chunk=chunk,
    )


@functools.partial(programs.jit, static_argnames=("players", "samples", "epsilon", "warmup", "threshold", "chunk"))
def _epsilon_greedy(
    values_fn: Partial,
    key: jax.Array,
    *,
    players: int,
    samples: int,
    epsilon: float,
    warmup: int,
    threshold: float | None,
    chunk: int,
) -> tuple[Estimate, Estimate]:
    full = values_fn(jnp.ones((1, players)))[0]

    def step(state: _Greedy) -> _Greedy:
        number, uniform, greedy, evaluations = state
        share = jnp.where(number < warmup, 1.0, epsilon)
        # The mean over all passes, of either kind; each kind's own mean has its own number of samples.
        total = sum(moments.mean * moments.samples.astype(jnp.float32) for moments in (uniform, greedy))
        present = total / jnp.maximum(number, 1).astype(jnp.float32)
        order, is_uniform = greedy_order(jax.random.fold_in(key, number), present, epsilon=share)
        values, count = marginals(values_fn, order[None], full=full, threshold=threshold, chunk=chunk)
        # `is_uniform` masks rather than branches: the sample is added to one of the two moments.
        return _Greedy(
            number + 1, uniform.add(values[0], is_uniform), greedy.add(values[0], ~is_uniform), evaluations + count
        )

    none = Moments.none(players)
    start = _Greedy(jnp.zeros((), jnp.int32), none, none, jnp.ones((), jnp.int32))
    end = loops.while_loop(lambda state: state.number < samples, step, start)
    converged = jnp.zeros((), bool)
    return end.uniform.estimate(end.evaluations, converged), end.greedy.estimate(end.evaluations, converged)
