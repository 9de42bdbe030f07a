"""Permutation sampling: unbiased estimates from uniformly random orders."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxguard import programs
from jaxguard.kernels import loops
from jaxguard.kernels.shapley.estimate import Estimate, Moments
from jaxguard.kernels.shapley.game import ValuesFn, traced
from jaxguard.kernels.shapley.passes import marginals

Pairing = Literal["none", "antithetic", "rotations"]
ROTATIONS = 4
PASSES: dict[str, int] = {"none": 1, "antithetic": 2, "rotations": ROTATIONS}
"""Passes in one sample."""


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
) -> Estimate:
    """Estimate all Shapley values from passes in random orders.

    One program, one sample after the other; `sample` draws a single one, for callers that share them out.

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

    Returns:
        The estimate; `converged` says that the tolerance was met.

    Raises:
        ValueError: an unknown pairing.

    Example:
        >>> game = lambda gates: gates @ jnp.array([1.0, -2.0, 0.5])
        >>> permutation_sampling(game, 3, jax.random.key(0), samples=2).values.tolist()
        [1.0, -2.0, 0.5]
    """
    return _sampled(
        traced(values_fn, players, rows(pairing, chunk)),
        key,
        # Budgets are traced: another number of samples, threshold or tolerance does not compile again.
        jnp.asarray(samples),
        jnp.asarray(-jnp.inf if threshold is None else threshold, jnp.result_type(float)),
        jnp.asarray(tolerance, jnp.result_type(float)),
        players=players,
        pairing=pairing,
        chunk=chunk,
    )


class _State(NamedTuple):
    number: jax.Array
    moments: Moments
    evaluations: jax.Array
    is_precise: jax.Array


@functools.partial(programs.jit, static_argnames=("players", "pairing", "chunk"))
def _sampled(
    values_fn: Partial,
    key: jax.Array,
    samples: jax.Array,
    threshold: jax.Array,
    tolerance: jax.Array,
    *,
    players: int,
    pairing: Pairing,
    chunk: int,
) -> Estimate:
    full = values_fn(jnp.ones((1, players)))[0]

    def step(state: _State) -> _State:
        # The key is folded with the number of the sample, so that samples may be computed in any order, by any worker.
        values, count = _sample(
            values_fn, key, state.number, full, threshold, players=players, pairing=pairing, chunk=chunk
        )
        moments, is_precise = add(state.moments, values, tolerance)
        return _State(state.number + 1, moments, state.evaluations + count, is_precise)

    start = _State(jnp.zeros((), jnp.int32), Moments.none(players), jnp.ones((), jnp.int32), jnp.zeros((), bool))
    end = loops.while_loop(lambda state: (state.number < samples) & ~state.is_precise, step, start)
    return end.moments.estimate(end.evaluations, end.is_precise)


def add(moments: Moments, values: jax.Array, tolerance: jax.typing.ArrayLike) -> tuple[Moments, jax.Array]:
    """Moments with one more sample, and whether no standard error exceeds the tolerance.

    Args:
        moments: so far.
        values: `[N]` of `sample`.
        tolerance: of the standard errors.

    Returns:
        The moments, and a bool.
    """
    moments = moments.add(values, jnp.ones_like(values, bool))
    return moments, (moments.standard_errors() <= tolerance).all()


def sample(
    values_fn: ValuesFn,
    players: int,
    key: jax.Array,
    number: jax.typing.ArrayLike,
    *,
    full: jax.typing.ArrayLike,
    pairing: Pairing = "antithetic",
    threshold: float | None = None,
    chunk: int = 32,
) -> tuple[jax.Array, jax.Array]:
    """One independent sample of all marginals.

    Args:
        values_fn: `gates [B, N] -> values [B]`.
        players: `N`.
        key: `jax.random.key`, the same for all samples.
        number: of the sample; it draws the orders.
        full: value of all players.
        pairing: see `permutation_sampling`.
        threshold: see `marginals`.
        chunk: coalitions of each pass evaluated together.

    Returns:
        `[N]` marginals, mean over the passes of the sample; and the coalitions evaluated.

    Raises:
        ValueError: an unknown pairing.
    """
    return _sample(
        traced(values_fn, players, rows(pairing, chunk)[1:]),
        key,
        jnp.asarray(number),
        jnp.asarray(full),
        jnp.asarray(-jnp.inf if threshold is None else threshold, jnp.result_type(float)),
        players=players,
        pairing=pairing,
        chunk=chunk,
    )


@functools.partial(programs.jit, static_argnames=("players", "pairing", "chunk"))
def _sample(
    values_fn: Partial,
    key: jax.Array,
    number: jax.Array,
    full: jax.Array,
    threshold: jax.Array,
    *,
    players: int,
    pairing: Pairing,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    orders = _orders(jax.random.fold_in(key, number), players, pairing)
    values, evaluations = marginals(values_fn, orders, full=full, threshold=threshold, chunk=chunk)
    return values.mean(axis=0), evaluations


def _orders(key: jax.Array, players: int, pairing: Pairing) -> jax.Array:
    """`[P, N]` orders of one sample."""
    order = jax.random.permutation(key, players)
    if pairing == "antithetic":
        return jnp.stack([order, order[::-1]])
    # Rotating by quarters moves every player through early, middle and late places in one sample. A single pass is a
    # rotation by nothing.
    return jnp.stack([jnp.roll(order, shift * players // PASSES[pairing]) for shift in range(PASSES[pairing])])


def rows(pairing: Pairing, chunk: int) -> tuple[int, int]:
    """Numbers of coalitions with which a value function is called: for the whole, and for a sample.

    Args:
        pairing: see `permutation_sampling`.
        chunk: coalitions of each pass evaluated together.

    Returns:
        1, and the passes of a sample times `chunk`.

    Raises:
        ValueError: an unknown pairing.
    """
    if pairing not in get_args(Pairing):
        raise ValueError(f"expected pairing of {', '.join(get_args(Pairing))}, got {pairing!r}; take 'antithetic'")
    return 1, PASSES[pairing] * chunk
