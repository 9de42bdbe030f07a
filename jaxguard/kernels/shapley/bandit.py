"""The truncated bandit: which players have the largest values, decided with as few evaluations as possible."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxguard import programs
from jaxguard.kernels import loops
from jaxguard.kernels.shapley.estimate import Estimate, Moments
from jaxguard.kernels.shapley.game import ValuesFn, traced


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
        threshold: as in `permutation_sampling`; players that leave later in a pass count as 0.
        delta: error probability of one interval.
        value_range: width of the interval the marginals lie in.
        chunk: players evaluated together; each takes two coalitions.

    Returns:
        The estimate; `converged` says that at most one player is undecided.

    Raises:
        ValueError: `k` is out of range.
    """
    if not 0 < k < players:
        raise ValueError(f"expected k between 1 and {players - 1} of {players} players, got {k}")
    return _top_k(
        traced(values_fn, players, (2 * chunk,)),
        key,
        players=players,
        k=k,
        samples=samples,
        threshold=threshold,
        delta=delta,
        value_range=value_range,
        chunk=chunk,
    )


@functools.partial(
    programs.jit, static_argnames=("players", "k", "samples", "threshold", "delta", "value_range", "chunk")
)
def _top_k(
    values_fn: Partial,
    key: jax.Array,
    *,
    players: int,
    k: int,
    samples: int,
    threshold: float | None,
    delta: float,
    value_range: float,
    chunk: int,
) -> Estimate:
    log = jnp.log(2 / delta)

    def undecided(moments: Moments) -> jax.Array:
        # Empirical Bernstein: the first term shrinks with the variance, the second covers its own uncertainty.
        count = jnp.maximum(moments.samples, 2).astype(jnp.float32)
        half = jnp.sqrt(2 * moments.variance() * log / count) + 7 * value_range * log / (3 * (count - 1))
        # With one sample there is no variance yet: nothing is decided.
        half = jnp.where(moments.samples > 1, half, jnp.inf)
        # Halfway between the k-th and the (k + 1)-th largest mean; ascending order puts them at N - k and N - k - 1.
        bar = jnp.sort(moments.mean)[-k - 1 : players - k + 1].mean()
        return (moments.mean - half < bar) & (bar < moments.mean + half)

    def step(state: tuple[jax.Array, Moments, jax.Array]) -> tuple[jax.Array, Moments, jax.Array]:
        number, moments, evaluations = state
        # The order is of all players, decided ones too: an order of the undecided alone would change the game.
        active = undecided(moments)
        order = jax.random.permutation(jax.random.fold_in(key, number), players)
        values, count = _active_marginals(values_fn, order, active, threshold=threshold, chunk=chunk)
        return number + 1, moments.add(values, active), evaluations + count

    def unfinished(state: tuple[jax.Array, Moments, jax.Array]) -> jax.Array:
        return (state[0] < samples) & (undecided(state[1]).sum() > 1)

    start = (jnp.zeros((), jnp.int32), Moments.none(players), jnp.zeros((), jnp.int32))
    _, moments, evaluations = loops.while_loop(unfinished, step, start)
    return moments.estimate(evaluations, undecided(moments).sum() <= 1)


def _active_marginals(
    values_fn: ValuesFn, order: jax.Array, active: jax.Array, *, threshold: float | None, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Marginals of the active players in an order, and the coalitions evaluated: two for each."""
    players = order.shape[0]
    # The inverse permutation: rank[i] is when player i leaves.
    rank = jnp.argsort(order)
    # The active ones first, in their order; the last one repeated fills the last block.
    *_, wanted = jax.lax.sort((~active, rank, jnp.arange(players)), num_keys=2)
    wanted = jnp.concatenate([wanted, jnp.broadcast_to(wanted[-1:], (-players % chunk,))])
    # Traced, unlike the shapes: fewer active players take fewer turns of the loop, not a smaller program.
    blocks = -(-active.sum() // chunk)

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        block, values, _ = state
        chosen = jax.lax.dynamic_slice_in_dim(wanted, block * chunk, chunk)
        place = rank[chosen][:, None, None] + jnp.arange(2)[None, :, None]  # with the player, and without
        # Those who leave at or after a place are still in: `place + 1` is the coalition without the player.
        gates = (rank[None, None] >= place).reshape(2 * chunk, players)
        before, after = values_fn(gates.astype(values.dtype)).reshape(chunk, 2).T
        # A player whose predecessors have brought the value below the threshold counts as 0, and ends the loop.
        spent = jnp.zeros(chunk, bool) if threshold is None else before <= threshold
        return block + 1, values.at[chosen].set(jnp.where(spent, 0, before - after)), spent.any()

    state = (jnp.zeros((), jnp.int32), jnp.zeros(players), jnp.zeros((), bool))
    done, values, _ = loops.while_loop(lambda state: (state[0] < blocks) & ~state[2], step, state)
    return jnp.where(active, values, 0), 2 * jnp.minimum(done * chunk, active.sum())
