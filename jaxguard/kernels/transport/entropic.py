"""Transport on the device, in float32: Sinkhorn's algorithm of OTT-JAX, and optax's Hungarian algorithm."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxguard import programs
from jaxguard.kernels.division import or_one
from jaxguard.kernels.transport.problem import Problem

ANNEAL_FROM, ANNEAL_BY = 300.0, 0.95
"""Epsilon begins at 300 times its target and falls by 5 % an iteration: steps large enough to cross the layer first."""

Result = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


@functools.partial(programs.jit, static_argnames=("threshold", "max_iterations"))
def sinkhorn(
    problems: Problem,
    *,
    epsilon: float = 0.001,
    threshold: float = 1e-3,
    max_iterations: int = 5000,
) -> Result:
    """Entropic transport of the residual, log-domain, epsilon annealed; a stack of problems of equal size at once.

    Args:
        problems: `P` of them along one leading axis.
        epsilon: weight of the entropy, in units of the mean cost. 0.003 is about as fast, with costs up to 0.3 %
            above the optimum where 0.001 stays within 0.02 % (512 channels).
        threshold: L1 error of the residual's marginals, as a share of its mass, at which it has converged.
        max_iterations: per problem.

    Returns:
        What `Plan` holds: matrices, columns, errors, whether converged.
    """
    chex.assert_rank(list(problems), [3, 2, 2, 2, 2])
    solve_one = functools.partial(_sinkhorn, epsilon=epsilon, threshold=threshold, max_iterations=max_iterations)
    return _mapped(solve_one, problems)


@programs.jit
def hungarian(problems: Problem) -> Result:
    """Exact transport of equal masses, a permutation.

    Args:
        problems: `P` of them along one leading axis, `N = M`.

    Returns:
        What `Plan` holds: matrices, columns, errors, whether converged.
    """
    chex.assert_rank(list(problems), [3, 2, 2, 2, 2])
    return _mapped(_hungarian, problems)


def _mapped(solve_one: Callable[[Problem], Result], problems: Problem) -> Result:
    """One after the other on CPU, where a stack would iterate until its slowest member is done."""
    in_turn = functools.partial(jax.lax.map, solve_one)
    return jax.lax.platform_dependent(problems, cpu=in_turn, default=jax.vmap(solve_one))


def _sinkhorn(problem: Problem, *, epsilon: float, threshold: float, max_iterations: int) -> Result:
    # OTT takes 2.5 s to import, and JAXopt, which it imports, warns that it is no longer developed.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from ott.geometry.epsilon_scheduler import Epsilon
        from ott.geometry.geometry import Geometry
        from ott.problems.linear.linear_problem import LinearProblem
        from ott.solvers.linear import sinkhorn as ott_sinkhorn

    cost = problem.cost.astype(jnp.float32)
    kept = _kept(problem)
    # Only what cannot stay is transported: an entropic plan of the whole would blur the channels that did not change.
    left, wanted = _residual(problem.source, kept.sum(1)), _residual(problem.target, kept.sum(0))
    total = left.sum()
    moves = total > 0
    # Sinkhorn expects masses that sum to one; the plan is scaled back below.
    unit = jnp.where(moves, total, 1)
    # Where nothing moves a uniform problem stands in, and its plan is not used.
    left, wanted = (jnp.where(moves, mass / unit, 1 / mass.shape[0]) for mass in (left, wanted))
    schedule = Epsilon(jnp.asarray(epsilon, jnp.float32), init=ANNEAL_FROM, decay=ANNEAL_BY)
    # Not to stop while epsilon is still large: the marginals fit early, but to the plan of another problem.
    annealing = math.ceil(math.log(ANNEAL_FROM) / -math.log(ANNEAL_BY))
    geometry = Geometry(cost_matrix=cost / or_one(cost.mean()), epsilon=schedule)
    solver = ott_sinkhorn.Sinkhorn(
        threshold=threshold,
        min_iterations=min(annealing, max_iterations),
        max_iterations=max_iterations,
        # Plans are not differentiated here; the implicit rule would bring in a linear solver.
        implicit_diff=None,
    )
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # OTT promotes implicitly
        output: Any = solver(LinearProblem(geometry, left, wanted))
    matrix = kept + jnp.where(moves, output.matrix * unit, 0)
    return *_finished(matrix, problem), output.converged | ~moves


def _hungarian(problem: Problem) -> Result:
    import optax

    rows, columns = optax.assignment.hungarian_algorithm(problem.cost)
    matrix = jnp.zeros(problem.cost.shape, jnp.float32).at[rows, columns].set(problem.source[rows])
    return *_finished(matrix, problem), jnp.array(True)


def _residual(masses: jax.Array, kept: jax.Array) -> jax.Array:
    """What is left of masses. Inside a larger program both may be rounded differently: such a gap is 0, not 1e-9."""
    gap = masses - kept
    return jnp.where(gap > 4 * jnp.finfo(gap.dtype).eps * masses, gap, 0)


def _kept(problem: Problem) -> jax.Array:
    """What stays in place, `[N, M]`: `min(a_i, b_i)` on the diagonal where the cost is zero."""
    cost, source, target, *_ = problem
    shared = jnp.arange(min(cost.shape))
    stays = jnp.where(cost[shared, shared] == 0, jnp.minimum(source[shared], target[shared]), 0)
    return jnp.zeros(cost.shape, source.dtype).at[shared, shared].set(stays)


def _finished(matrix: jax.Array, problem: Problem) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Equal channels treated alike, columns normalised by the realised marginal, and the error of both marginals."""
    cost, source, target, source_ties, target_ties = problem
    error = jnp.abs(matrix.sum(1) - source).sum() + jnp.abs(matrix.sum(0) - target).sum()
    matrix = _spread(matrix, source, source_ties)
    matrix = _spread(matrix.T, target, target_ties).T
    sums = matrix.sum(0)
    # A target without mass still needs a mixture for fusion: its nearest source, shared among ties.
    empty = (target <= 0) | (sums <= 0)
    nearest = (source_ties[:, None] == source_ties[cost.argmin(0)][None]).astype(matrix.dtype)
    columns = jnp.where(empty, nearest / nearest.sum(0, keepdims=True), matrix / jnp.where(empty, 1, sums)[None])
    return matrix, columns, error


def _spread(matrix: jax.Array, masses: jax.Array, ties: jax.Array) -> jax.Array:
    # A 0/1 matrix of ties: `equal @ x` sums over each row's equals, in a fixed shape whatever the ties are.
    equal = (ties[:, None] == ties[None]).astype(matrix.dtype)
    share = masses / or_one(equal @ masses)
    return share[:, None] * jnp.matmul(equal, matrix)
