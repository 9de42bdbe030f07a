"""Passes: players leave one by one, and each is credited with what the value loses."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

ValuesFn = Callable[[jax.Array], jax.Array]
"""`gates [B, N] -> values [B]`; `jax.vmap` of a function of one coalition will do.

Large arrays belong in the arguments of a `jax.tree_util.Partial`, where they are traced, not in a closure, where they
would be compiled in as constants. Neighbours among the `B` coalitions differ as little as possible.
"""


def partial(values_fn: ValuesFn) -> Partial:
    """The function as a pytree, so that it can be an argument of compiled code."""
    return values_fn if isinstance(values_fn, Partial) else Partial(values_fn)


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
    passes, players = orders.shape
    ranks = jnp.argsort(orders, axis=1)
    blocks = -(-players // chunk)
    full = jnp.asarray(full, jnp.result_type(float))

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        block, values, last, open_, evaluations = state
        left = jnp.minimum(block * chunk + jnp.arange(chunk) + 1, players)
        # A closed pass repeats the coalition before it, which a values_fn that compares neighbours need not compute.
        row = jnp.arange(passes * chunk).reshape(passes, chunk)
        latest = jax.lax.cummax(jnp.where(open_, jnp.arange(passes), -1))
        stand_in = jnp.where(latest >= 0, (latest + 1) * chunk - 1, jnp.argmax(open_) * chunk)
        row = jnp.where(open_[:, None], row, stand_in[:, None]).reshape(-1)
        gates = ranks[row // chunk] >= left[row % chunk][:, None]
        found = values_fn(gates.astype(full.dtype)).astype(full.dtype).reshape(passes, chunk)
        stopping = jnp.zeros_like(found, bool) if threshold is None else found <= threshold
        end = jnp.where(stopping.any(axis=1), jnp.argmax(stopping, axis=1), chunk - 1)[:, None]
        found = jnp.where(jnp.arange(chunk) > end, jnp.take_along_axis(found, end, axis=1), found)
        found = jnp.where(open_[:, None], found, last[:, None])
        evaluations += open_.sum() * jnp.minimum(chunk, players - block * chunk)
        values = jax.lax.dynamic_update_slice(values, found, (0, block * chunk))
        return block + 1, values, found[:, -1], open_ & ~stopping.any(axis=1), evaluations

    state = (
        jnp.zeros((), jnp.int32),
        jnp.zeros((passes, blocks * chunk), full.dtype),
        jnp.broadcast_to(full, passes),
        jnp.ones(passes, bool),
        jnp.zeros((), jnp.int32),
    )
    done, values, last, _, evaluations = jax.lax.while_loop(
        lambda state: (state[0] < blocks) & state[3].any(), step, state
    )
    values = jnp.where(jnp.arange(blocks * chunk) < done * chunk, values, last[:, None])[:, :players]
    losses = jnp.concatenate([jnp.full((passes, 1), full), values[:, :-1]], axis=1) - values
    return jnp.take_along_axis(losses, ranks, axis=1), evaluations
