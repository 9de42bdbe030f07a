"""Plans, and the choice of a solver."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.kernels.transport import entropic, exact
from jaxguard.kernels.transport.problem import Problem, problem

Solver = Literal["auto", "exact", "assignment", "emd", "linprog", "sinkhorn", "hungarian"]

HOST: dict[str, Callable[..., np.ndarray]] = {
    "assignment": exact.assignment,
    "emd": exact.network_simplex,
    "linprog": exact.linear_program,
}
"""Exact solvers of one residual on the host, by name."""


class Plan(NamedTuple):
    """A transport plan; leading axes are those of the problem. NumPy float64 from the host, float32 from a device.

    Attributes:
        matrix: `[..., N, M]` mass moved from source channel `i` to target channel `j`; 1 in all.
        columns: `[..., N, M]` the plan with each column divided by its own sum: of what source channels a target
            channel is a mixture. A target channel without mass is its nearest source channel, or all that are as near.
        error: `[...]` L1 distance between the masses asked for and the plan's row and column sums.
        converged: `[...]` bool, False where Sinkhorn ran out of iterations.
    """

    matrix: Any
    columns: Any
    error: Any
    converged: Any


def objective(plan: Plan, cost: jax.typing.ArrayLike) -> np.ndarray:
    """Cost of a plan, `sum_ij T_ij C_ij`, in float64.

    Args:
        plan: of the problem.
        cost: `[..., N, M]`.

    Returns:
        `[...]`.
    """
    return np.sum(np.asarray(plan.matrix, np.float64) * np.asarray(cost, np.float64), (-2, -1))


def solve(
    cost: jax.typing.ArrayLike,
    source: jax.typing.ArrayLike | None = None,
    target: jax.typing.ArrayLike | None = None,
    *,
    source_ties: jax.typing.ArrayLike | None = None,
    target_ties: jax.typing.ArrayLike | None = None,
    solver: Solver = "auto",
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
        solver: `exact` is `assignment` (SciPy's linear_sum_assignment) where the residual masses are all equal,
            otherwise `emd` (POT's network simplex) where that package is installed and `linprog` (SciPy's HiGHS)
            where it is not. On the device, `sinkhorn` is OTT-JAX's and `hungarian` optax's, for equal masses only.
            `auto` is `exact` where JAX runs on CPU, and `sinkhorn` elsewhere.
        **settings: of `sinkhorn`.

    Returns:
        The plan.

    Raises:
        ValueError: unknown solver, masses that are negative, not finite, all zero or of the wrong shape, or unequal
            masses for an assignment.
        ModuleNotFoundError: `emd` without POT.

    Example:
        >>> plan = solve(np.array([[0.0, 2.0], [2.0, 0.0]]), target=np.array([1.0, 3.0]), solver="exact")
        >>> plan.matrix.tolist(), plan.columns.tolist()
        ([[0.25, 0.25], [0.0, 0.5]], [[1.0, 0.333...], [0.0, 0.666...]])
    """
    if solver not in get_args(Solver):
        raise ValueError(f"expected a solver among {', '.join(get_args(Solver))}, came {solver!r} to transport.solve()")
    if solver == "auto":
        solver = "exact" if jax.default_backend() == "cpu" else "sinkhorn"
    if settings and solver != "sinkhorn":
        raise ValueError(f"expected no settings for solver {solver!r}, came {sorted(settings)} to transport.solve()")
    given = problem(cost, source, target, source_ties, target_ties)
    if solver in ("hungarian", "assignment"):
        _require_equal(given, solver)
    stack = given.stack
    if solver in ("sinkhorn", "hungarian"):
        run = entropic.sinkhorn if solver == "sinkhorn" else entropic.hungarian
        results = run(Problem(*map(jnp.asarray, given)).flat(), **settings)
        return Plan(*(jnp.reshape(result, (*stack, *result.shape[1:])) for result in results))
    if solver == "exact":
        solver = "emd" if importlib.util.find_spec("ot") else "linprog"
    flat = given._replace(cost=np.asarray(cost, np.float64)).flat()
    matrices, columns = np.empty(flat.cost.shape), np.empty(flat.cost.shape)
    for k, one in enumerate(zip(*flat, strict=True)):
        matrices[k], columns[k] = exact.plan(Problem(*one), HOST[solver])
    matrices, columns = (found.reshape(given.cost.shape) for found in (matrices, columns))
    gaps = (matrices.sum(-1) - given.source, matrices.sum(-2) - given.target)
    return Plan(matrices, columns, sum(np.abs(gap).sum(-1) for gap in gaps), np.ones(stack, bool))


def _require_equal(given: Problem, solver: str) -> None:
    masses = (given.source, given.target)
    if masses[0].shape != masses[1].shape or any(np.ptp(mass) > 1e-12 for mass in masses):
        raise ValueError(
            f"expected equal masses and as many targets as sources for solver {solver!r}, came {masses[0].shape[-1]} "
            f"and {masses[1].shape[-1]} channels of masses up to {max(map(np.max, masses)):.3g}; take solver='exact'"
        )
