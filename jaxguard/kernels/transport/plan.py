"""Plans, and the choice of a solver."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.kernels.transport import entropic, exact
from jaxguard.kernels.transport.problem import Problem, is_traced, problem

Solver = Literal["exact", "sinkhorn", "hungarian"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("matrix", "columns", "error", "converged"),
    meta_fields=("solver",),
)
@dataclass(frozen=True)
class Plan:
    """A transport plan; leading axes are those of the problem. NumPy float64 from the host, float32 from a program.

    Attributes:
        matrix: `[..., N, M]` mass moved from source channel `i` to target channel `j`; 1 in all.
        columns: `[..., N, M]` the plan with each column divided by its own sum: of what source channels a target
            channel is a mixture. A target channel without mass is its nearest source channel, or all that are as near.
        error: `[...]` L1 distance between the masses asked for and the plan's row and column sums.
        converged: `[...]` bool, False where a solver ran out of iterations or the masses have no plan.
        solver: that found it.
    """

    matrix: Any
    columns: Any
    error: Any
    converged: Any
    solver: Solver


def objective(plan: Plan, cost: jax.typing.ArrayLike) -> Any:
    """Cost of a plan, `sum_ij T_ij C_ij`, in float64 unless it is traced.

    Args:
        plan: of the problem.
        cost: `[..., N, M]`.

    Returns:
        `[...]`.
    """
    if is_traced(plan, cost):
        return jnp.sum(plan.matrix * cost, (-2, -1))
    return np.sum(np.asarray(plan.matrix, np.float64) * np.asarray(cost, np.float64), (-2, -1))


def solve(
    cost: jax.typing.ArrayLike,
    source: jax.typing.ArrayLike | None = None,
    target: jax.typing.ArrayLike | None = None,
    *,
    source_ties: jax.typing.ArrayLike | None = None,
    target_ties: jax.typing.ArrayLike | None = None,
    solver: Solver = "exact",
    **settings: Any,
) -> Plan:
    """Optimal transport of one problem, or of a stack of equal size.

    Args:
        cost: `[..., N, M]`, distances in a metric space, as `distances` gives them.
        source: `[..., N]` masses >= 0, of any sum; uniform where None.
        target: `[..., M]` likewise.
        source_ties: `[..., N]` int, the same for channels that are equal, see `equal_rows`: they are treated alike.
            None where no two are.
        target_ties: `[..., M]` likewise.
        solver: `exact` is SciPy's linear_sum_assignment where the residual masses are all equal, and POT's network
            simplex otherwise, on the host on every machine. On the device, `sinkhorn` is OTT-JAX's and `hungarian`
            optax's, for equal masses only.
        **settings: of `sinkhorn`.

    Returns:
        The plan. Inside a transformed function the exact solver is called back on the host, its result is float32, and
        masses that have no plan make it NaN and `converged` False.

    Raises:
        ValueError: unknown solver, masses that are negative, not finite, all zero or of the wrong shape, or unequal
            masses for an assignment; those of values only where they are known.

    Example:
        >>> plan = solve(np.array([[0.0, 2.0], [2.0, 0.0]]), target=np.array([1.0, 3.0]))
        >>> plan.matrix.tolist(), plan.columns.tolist(), plan.solver
        ([[0.25, 0.25], [0.0, 0.5]], [[1.0, 0.333...], [0.0, 0.666...]], 'exact')
    """
    if solver not in get_args(Solver):
        raise ValueError(f"expected a solver among {', '.join(get_args(Solver))}, got {solver!r} in transport.solve()")
    if settings and solver != "sinkhorn":
        raise ValueError(f"expected no settings for solver {solver!r}, got {sorted(settings)} in transport.solve()")
    given = problem(cost, source, target, source_ties, target_ties)
    if solver == "exact":
        results = _called_back(given) if is_traced(given) else exact.plans(given)
        return Plan(*results, solver=solver)
    if solver == "hungarian":
        _require_equal(given)
    run = entropic.sinkhorn if solver == "sinkhorn" else entropic.hungarian
    results = run(Problem(*map(jnp.asarray, given)).flat(), **settings)
    return Plan(*(jnp.reshape(result, (*given.stack, *result.shape[1:])) for result in results), solver=solver)


def _called_back(given: Problem) -> tuple[jax.Array, ...]:
    def on_host(*parts: Any) -> tuple[np.ndarray, ...]:
        matrices, columns, errors, converged = exact.plans(Problem(*parts))
        return *(found.astype(np.float32) for found in (matrices, columns, errors)), converged

    float32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    shapes = (float32(given.cost.shape), float32(given.cost.shape), float32(given.stack))
    # A mapped axis becomes one more leading axis of the stack.
    return tuple(
        jax.pure_callback(
            on_host, (*shapes, jax.ShapeDtypeStruct(given.stack, bool)), *given, vmap_method="broadcast_all"
        )
    )


def _require_equal(given: Problem) -> None:
    masses = (given.source, given.target)
    is_square = masses[0].shape == masses[1].shape
    if not is_square or (not is_traced(masses) and any(np.ptp(mass) > 1e-12 for mass in masses)):
        largest = "traced" if is_traced(masses) else f"up to {max(map(np.max, masses)):.3g}"
        raise ValueError(
            f"expected equal masses and as many targets as sources for solver 'hungarian', got {masses[0].shape[-1]} "
            f"and {masses[1].shape[-1]} channels of masses {largest} in transport.solve(); take solver='exact'"
        )
