"""Shapley values by permutation sampling, of any value function and any number of players.

A coalition is a vector of gates, 1 for a player that takes part. A pass removes the players one by one in some order
and credits each with what the value loses. Passes in uniformly random orders estimate the Shapley value without bias
(Castro, Gomez and Tejada, "Polynomial calculation of the Shapley value based on sampling", 2009). Everything is one
compiled program; coalitions are evaluated `chunk` at a time, which bounds memory.

Two ways to save evaluations bias the estimate, and both are kept apart or bounded: a pass that stops where the value
has fallen to `threshold` leaves each later player's marginal out, an error of at most what was left of the value; and
an epsilon-greedy order (`greedy_order`) is not uniform, so its marginals are for proposing players, not for values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

ValuesFn = Callable[[jax.Array], jax.Array]
"""`gates [B, N] -> values [B]`; `jax.vmap` of a function of one coalition will do."""

Pairing = Literal["none", "antithetic", "rotations"]
ROTATIONS = 4


class Estimate(NamedTuple):
    """Shapley values.

    Attributes:
        values: `[N]`.
        standard_errors: `[N]`, from the spread of independent samples; infinite where there are fewer than two.
        counts: `[N]` independent samples behind each value.
        evaluations: coalitions whose value was computed.
        converged: whether the stop rule was met, rather than the budget spent.
    """

    values: jax.Array
    standard_errors: jax.Array
    counts: jax.Array
    evaluations: jax.Array
    converged: jax.Array


class _Moments(NamedTuple):
    """Number of samples, mean and sum of squared deviations, each `[N]` (Welford)."""

    samples: jax.Array
    mean: jax.Array
    deviation: jax.Array

    def add(self, sample: jax.Array, active: jax.Array) -> _Moments:
        samples = self.samples + active
        shift = jnp.where(active, sample - self.mean, 0)
        mean = self.mean + shift / jnp.maximum(samples, 1)
        return _Moments(samples, mean, self.deviation + shift * (sample - mean) * active)

    def variance(self) -> jax.Array:
        return jnp.where(self.samples > 1, self.deviation / jnp.maximum(self.samples - 1, 1), jnp.inf)

    def estimate(self, evaluations: jax.Array, converged: jax.Array) -> Estimate:
        errors = jnp.sqrt(self.variance() / jnp.maximum(self.samples, 1))
        return Estimate(self.mean, errors, self.samples, evaluations, converged)


def marginals(
    values_fn: ValuesFn, order: jax.Array, *, full: jax.Array, threshold: float | None = None, chunk: int = 32
) -> tuple[jax.Array, jax.Array]:
    """What the value loses as players are removed in an order.

    Args:
        values_fn: `gates [B, N] -> values [B]`.
        order: `[N]` permutation, first to go first.
        full: value of all players.
        threshold: once the value is at or below it, the players that are left get 0; None removes all.
        chunk: coalitions evaluated together.

    Returns:
        `[N]` marginals by player, whose sum is `full` less the last value; and the coalitions evaluated.

    >>> values, evaluations = marginals(lambda gates: gates @ jnp.array([1.0, 2.0]), jnp.array([1, 0]), full=3.0)
    >>> values.tolist(), int(evaluations)
    ([1.0, 2.0], 2)
    """
    players = order.shape[0]
    rank = jnp.argsort(order)
    blocks = -(-players // chunk)
    within = jnp.arange(chunk)

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        block, values, *_ = state
        removed = jnp.minimum(block * chunk + within + 1, players)
        found = values_fn((rank[None] >= removed[:, None]).astype(values.dtype))
        stopping = jnp.zeros(chunk, bool) if threshold is None else found <= threshold
        end = jnp.where(stopping.any(), jnp.argmax(stopping), chunk - 1)
        found = jnp.where(within > end, found[end], found)
        return block + 1, jax.lax.dynamic_update_slice(values, found, (block * chunk,)), found[-1], stopping.any()

    full = jnp.asarray(full, jnp.result_type(float))
    state = (jnp.zeros((), jnp.int32), jnp.zeros(blocks * chunk, full.dtype), full, jnp.zeros((), bool))
    done, values, last, _ = jax.lax.while_loop(lambda state: (state[0] < blocks) & ~state[3], step, state)
    values = jnp.where(jnp.arange(blocks * chunk) < done * chunk, values, last)[:players]
    losses = jnp.concatenate([full[None], values[:-1]]) - values
    return jnp.zeros_like(losses).at[order].set(losses), jnp.minimum(done * chunk, players)


@functools.partial(jax.jit, static_argnames=("values_fn", "players", "samples", "pairing", "threshold", "chunk"))
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

    Args:
        values_fn: `gates [B, N] -> values [B]`.
        players: `N`.
        key: `jax.random.key`.
        samples: most independent samples; one is a group of passes, see `pairing`.
        pairing: `none`, one pass; `antithetic`, an order and its reverse; `rotations`, an order and its rotations by
            quarters, so that every player leaves early, late and in between (stratified by position).
        threshold: see `marginals`; the bias of a player is at most `threshold - V(no players)`, None has none.
        tolerance: stop when no standard error exceeds it.
        chunk: coalitions evaluated together.

    Returns:
        The estimate; `converged` says that the tolerance was met.

    >>> game = lambda gates: gates @ jnp.array([1.0, -2.0, 0.5])
    >>> permutation_sampling(game, 3, jax.random.key(0), samples=2).values.tolist()
    [1.0, -2.0, 0.5]
    """
    if pairing not in get_args(Pairing):
        raise ValueError(f"expected pairing of {', '.join(get_args(Pairing))}, got {pairing!r}")
    full = values_fn(jnp.ones((1, players)))[0]

    def sample(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        order = jax.random.permutation(key, players)
        orders = {
            "none": [order],
            "antithetic": [order, order[::-1]],
            "rotations": [jnp.roll(order, shift * players // ROTATIONS) for shift in range(ROTATIONS)],
        }[pairing]
        found = [marginals(values_fn, order, full=full, threshold=threshold, chunk=chunk) for order in orders]
        values, counts = (jnp.stack(parts) for parts in zip(*found, strict=True))
        return values.mean(axis=0), counts.sum()

    def step(state: tuple[jax.Array, _Moments, jax.Array]) -> tuple[jax.Array, _Moments, jax.Array]:
        number, moments, evaluations = state
        values, count = sample(jax.random.fold_in(key, number))
        return number + 1, moments.add(values, jnp.ones(players, bool)), evaluations + count

    def unfinished(state: tuple[jax.Array, _Moments, jax.Array]) -> jax.Array:
        return (state[0] < samples) & ~_is_precise(state[1], tolerance)

    start = (jnp.zeros((), jnp.int32), _nothing(players), jnp.ones((), jnp.int32))
    _, moments, evaluations = jax.lax.while_loop(unfinished, step, start)
    return moments.estimate(evaluations, _is_precise(moments, tolerance))


def _nothing(players: int) -> _Moments:
    return _Moments(jnp.zeros(players, jnp.int32), jnp.zeros(players), jnp.zeros(players))


def _is_precise(moments: _Moments, tolerance: float) -> jax.Array:
    return (moments.samples > 1).all() & (
        jnp.sqrt(moments.variance() / jnp.maximum(moments.samples, 1)) <= tolerance
    ).all()


def greedy_order(key: jax.Array, values: jax.Array, *, epsilon: float = 0.2) -> jax.Array:
    """With probability `epsilon` a uniform order, else by falling value, ties at random.

    Players that carry the value leave first, so that it falls below a threshold early and the pass is short. Marginals
    in such orders are biased: the first players are credited with what they share with later ones.

    Args:
        key: `jax.random.key`.
        values: `[N]` present estimates.
        epsilon: share of uniform orders.

    Returns:
        `[N]` permutation.
    """
    key_choice, key_order = jax.random.split(key)
    uniform = jax.random.permutation(key_order, values.shape[0])
    by_value = uniform[jnp.argsort(-values[uniform])]
    return jnp.where(jax.random.uniform(key_choice) < epsilon, uniform, by_value)


@functools.partial(
    jax.jit, static_argnames=("values_fn", "players", "k", "samples", "threshold", "chunk", "delta", "value_range")
)
def top_k(
    values_fn: ValuesFn,
    players: int,
    key: jax.Array,
    *,
    k: int,
    samples: int = 1000,
    threshold: float | None = None,
    delta: float = 0.2,
    value_range: float = 1.0,
    chunk: int = 32,
) -> Estimate:
    """Find the `k` players of largest value, spending evaluations on undecided ones only.

    The truncated multi-armed bandit of Ghorbani and Zou, "Neuron Shapley" (NeurIPS 2020): a player whose confidence
    interval (empirical Bernstein) lies wholly above or below the `k`-th largest estimate is decided and no longer
    evaluated; it still leaves in its turn, so the others' orders stay uniform.

    Args:
        values_fn: `gates [B, N] -> values [B]`.
        players: `N`.
        key: `jax.random.key`.
        k: players wanted, `0 < k < N`.
        samples: most passes.
        threshold: as in `permutation_sampling`; players that leave later in a pass count with 0.
        delta: error probability of one interval.
        value_range: width of the interval the marginals lie in.
        chunk: players evaluated together; each takes two coalitions.

    Returns:
        The estimate; `converged` says that at most one player is undecided.
    """
    if not 0 < k < players:
        raise ValueError(f"expected k between 1 and {players - 1} of {players} players, got {k}")
    log = jnp.log(2 / delta)

    def undecided(moments: _Moments) -> jax.Array:
        count = jnp.maximum(moments.samples, 2)
        half = jnp.sqrt(2 * moments.variance() * log / count) + 7 * value_range * log / (3 * (count - 1))
        half = jnp.where(moments.samples > 1, half, jnp.inf)
        bar = jnp.sort(moments.mean)[-k - 1 : players - k + 1].mean()
        return (moments.mean - half < bar) & (bar < moments.mean + half)

    def step(state: tuple[jax.Array, _Moments, jax.Array]) -> tuple[jax.Array, _Moments, jax.Array]:
        number, moments, evaluations = state
        active = undecided(moments)
        order = jax.random.permutation(jax.random.fold_in(key, number), players)
        values, count = _active_marginals(values_fn, order, active, threshold=threshold, chunk=chunk)
        return number + 1, moments.add(values, active), evaluations + count

    def unfinished(state: tuple[jax.Array, _Moments, jax.Array]) -> jax.Array:
        return (state[0] < samples) & (undecided(state[1]).sum() > 1)

    start = (jnp.zeros((), jnp.int32), _nothing(players), jnp.zeros((), jnp.int32))
    _, moments, evaluations = jax.lax.while_loop(unfinished, step, start)
    return moments.estimate(evaluations, undecided(moments).sum() <= 1)


def _active_marginals(
    values_fn: ValuesFn, order: jax.Array, active: jax.Array, *, threshold: float | None, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Marginals of the active players in an order, and the coalitions evaluated: two for each."""
    players = order.shape[0]
    rank = jnp.argsort(order)
    wanted = order[jnp.argsort(~active[order], stable=True)]  # the active ones first, in their order
    wanted = jnp.concatenate([wanted, jnp.broadcast_to(wanted[-1:], (-players % chunk,))])
    blocks = -(-active.sum() // chunk)

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        block, values, _ = state
        chosen = jax.lax.dynamic_slice_in_dim(wanted, block * chunk, chunk)
        place = rank[chosen][:, None]
        gates = jnp.concatenate([rank[None] >= place, rank[None] > place]).astype(values.dtype)
        before, after = jnp.split(values_fn(gates), 2)
        spent = jnp.zeros(chunk, bool) if threshold is None else before <= threshold
        return block + 1, values.at[chosen].set(jnp.where(spent, 0, before - after)), spent.any()

    state = (jnp.zeros((), jnp.int32), jnp.zeros(players), jnp.zeros((), bool))
    done, values, _ = jax.lax.while_loop(lambda state: (state[0] < blocks) & ~state[2], step, state)
    return jnp.where(active, values, 0), 2 * jnp.minimum(done * chunk, active.sum())
