"""Passes: players leave one by one, and each is credited with what the value loses."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxguard import programs
from jaxguard.kernels import loops
from jaxguard.kernels.shapley.game import ValuesFn, traced


def marginals(
    values_fn: ValuesFn,
    orders: jax.Array,
    *,
    full: jax.Array | float,
    threshold: jax.Array | float | None = None,
    chunk: int = 32,
) -> tuple[jax.Array, jax.Array]:
    """What the value loses as players are removed in some orders, all orders at once.

    Args:
        values_fn: `gates [B, N] -> values [B]`; `B` is the number of orders times `chunk`.
        orders: `[P, N]` permutations, first to go first.
        full: value of all players.
        threshold: once the value is at or below it, the players that are left get 0; None removes all.
        chunk: coalitions of each order evaluated together.

    Returns:
        `[P, N]` marginals by player, whose sum is `full` less the last value; and the coalitions evaluated.

    >>> values, evaluations = marginals(lambda gates: gates @ jnp.array([1.0, 2.0]), jnp.array([[1, 0]]), full=3.0)
    >>> values.tolist(), int(evaluations)
    ([[1.0, 2.0]], 2)
    """
    full = jnp.asarray(full, jnp.result_type(float))
    game = traced(values_fn, orders.shape[1], (len(orders) * chunk,))
    return _marginals(game, orders, full, threshold, chunk=chunk)


@functools.partial(programs.jit, static_argnames="chunk")
def _marginals(
    values_fn: Partial, orders: jax.Array, full: jax.Array, threshold: jax.Array | float | None, *, chunk: int
) -> tuple[jax.Array, jax.Array]:
    passes, players = orders.shape
    ranks = jnp.argsort(orders, axis=1)  # ranks[p, i]: when player i leaves in order p
    blocks = -(-players // chunk)

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        block, values, last, is_open, evaluations = state
        # A pass that has stopped repeats the coalition before it in the batch, which a values_fn that compares
        # neighbours need not compute: the last one of the nearest open pass before it, or, where there is none, the
        # first one of the first open pass.
        row = jnp.arange(passes * chunk).reshape(passes, chunk)
        latest = jax.lax.cummax(jnp.where(is_open, jnp.arange(passes), -1))
        stand_in = jnp.where(latest >= 0, (latest + 1) * chunk - 1, jnp.argmax(is_open) * chunk)
        row = jnp.where(is_open[:, None], row, stand_in[:, None]).reshape(-1)
        # Row r of the batch is coalition r % chunk of pass r // chunk: those stay who leave after `gone` others. The
        # last block may reach beyond the end of the order; it then repeats the empty coalition.
        gone = jnp.minimum(block * chunk + row % chunk + 1, players)
        gates = ranks[row // chunk] >= gone[:, None]
        found = values_fn(gates.astype(full.dtype)).astype(full.dtype).reshape(passes, chunk)
        # Where a value falls to the threshold the pass ends: later coalitions of the block keep that value, so that
        # the players in between lose nothing. Passes that had ended keep their last value throughout.
        stops = jnp.zeros_like(found, bool) if threshold is None else found <= threshold
        end = jnp.where(stops.any(axis=1), jnp.argmax(stops, axis=1), chunk - 1)[:, None]
        found = jnp.where(jnp.arange(chunk)[None] > end, jnp.take_along_axis(found, end, axis=1), found)
        found = jnp.where(is_open[:, None], found, last[:, None])
        evaluations += is_open.sum() * jnp.minimum(chunk, players - block * chunk)
        values = jax.lax.dynamic_update_slice(values, found, (0, block * chunk))
        return block + 1, values, found[:, -1], is_open & ~stops.any(axis=1), evaluations

    start = (
        jnp.zeros((), jnp.int32),
        jnp.zeros((passes, blocks * chunk), full.dtype),
        jnp.broadcast_to(full, passes),
        jnp.ones(passes, bool),
        jnp.zeros((), jnp.int32),
    )
    done, values, last, _, evaluations = loops.while_loop(
        lambda state: (state[0] < blocks) & state[3].any(), step, start
    )
    # Blocks that were not reached, since all passes had stopped, keep the last values.
    values = jnp.where(jnp.arange(blocks * chunk) < done * chunk, values, last[:, None])[:, :players]
    # values[p, k] is left when the first k + 1 of the order have gone; the k-th to go is credited with the drop.
    losses = jnp.concatenate([jnp.broadcast_to(full, (passes, 1)), values[:, :-1]], axis=1) - values
    return jnp.take_along_axis(losses, ranks, axis=1), evaluations
