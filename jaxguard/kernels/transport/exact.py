"""Exact transport on the host, in float64: the residual by an assignment, a network simplex, or a linear program."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import csr_matrix

from jaxguard.kernels.transport.problem import Problem

ROUNDING = 1e-14
"""Residual masses below this share of the whole are rounding."""

STEPS, FIRST_EPSILON, LAST_EPSILON = 60, 0.3, 0.001
ARCS_PER_CHANNEL = 8
TOLERANCE = 1e-9

ResidualSolver = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""`(cost [n, m], source [n], target [m]) -> plan [n, m]`, all masses positive and of one sum."""


def plan(problem: Problem, solver: ResidualSolver) -> tuple[np.ndarray, np.ndarray]:
    """Keeps in place what can stay, transports the rest, and treats equal channels alike.

    Args:
        problem: one, in NumPy float64.
        solver: of the residual, where its masses are not all equal.

    Returns:
        The plan and its normalised columns, `[N, M]` each.
    """
    cost, source, target, source_ties, target_ties = problem
    shared = np.arange(min(cost.shape))
    matrix = np.zeros(cost.shape)
    stays = cost[shared, shared] == 0
    matrix[shared, shared] = np.where(stays, np.minimum(source[shared], target[shared]), 0)
    left, wanted = source - matrix.sum(1), target - matrix.sum(0)
    rows, columns = np.flatnonzero(left > ROUNDING), np.flatnonzero(wanted > ROUNDING)
    if len(rows) and len(columns):
        residual = np.ix_(rows, columns)
        wanted *= left[rows].sum() / wanted[columns].sum()
        rest = Problem(cost[residual], left[rows], wanted[columns], source_ties[rows], target_ties[columns])
        matrix[residual] += _moved(rest, solver)
    matrix = spread(matrix, source, source_ties)
    matrix = spread(matrix.T, target, target_ties).T
    sums = matrix.sum(0)
    empty = np.flatnonzero((target <= ROUNDING) | (sums <= 0))
    sums[empty] = 1
    mixture = matrix / sums
    if len(empty):
        nearest = source_ties[:, None] == source_ties[cost[:, empty].argmin(0)]
        mixture[:, empty] = nearest / nearest.sum(0)
    return matrix, mixture


def _moved(rest: Problem, solver: ResidualSolver) -> np.ndarray:
    """Plan of a residual; equal channels are one of their common mass."""
    cost, source, target, source_ties, target_ties = rest
    if len(source) == len(target) and max(np.ptp(source), np.ptp(target)) < ROUNDING:
        return assignment(cost, source, target)
    _, first, row = np.unique(source_ties, return_index=True, return_inverse=True)
    _, first_column, column = np.unique(target_ties, return_index=True, return_inverse=True)
    masses = np.bincount(row, source), np.bincount(column, target)
    joint = solver(cost[np.ix_(first, first_column)], *masses)
    share = source / masses[0][row], target / masses[1][column]
    return joint[np.ix_(row, column)] * share[0][:, None] * share[1]


def spread(matrix: np.ndarray, masses: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Gives each of several equal rows its share of what they hold together; still optimal, as their costs are equal.

    Args:
        matrix: `[N, M]`.
        masses: `[N]` row sums.
        ties: `[N]` int, the same for equal rows.

    Returns:
        `[N, M]`.

    Example:
        >>> spread(np.array([[0.5, 0.0], [0.0, 0.5]]), np.array([0.5, 0.5]), np.array([7, 7])).tolist()
        [[0.25, 0.25], [0.25, 0.25]]
    """
    labels, count = np.unique(ties, return_counts=True)
    if len(labels) == len(ties):
        return matrix
    result = matrix.copy()
    for label in labels[count > 1]:
        members = np.flatnonzero(ties == label)
        total = masses[members].sum()
        if total > 0:
            result[members] = (masses[members] / total)[:, None] * matrix[members].sum(0)
    return result


def assignment(cost: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Residual of equal masses: a permutation, by SciPy's shortest augmenting paths.

    Args:
        cost: `[n, n]`.
        source: `[n]`, all equal.
        target: `[n]`, all equal; not read.

    Returns:
        `[n, n]` plan.
    """
    del target
    rows, columns = linear_sum_assignment(cost)
    result = np.zeros(cost.shape)
    result[rows, columns] = source[rows]
    return result


def network_simplex(cost: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Residual of any masses by POT's `ot.emd`, an extra.

    Args:
        cost: `[n, m]`.
        source: `[n]`.
        target: `[m]`.

    Returns:
        `[n, m]` plan.
    """
    import ot

    cost = np.ascontiguousarray(cost)
    return np.asarray(ot.emd(source, target, cost, numItermax=10_000_000, center_dual=False, check_marginals=False))


def linear_program(cost: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Residual of any masses by SciPy's HiGHS, on few of the `n m` arcs.

    Prices from a short Sinkhorn run tell which arcs an optimal plan may use. The program over these is solved, its own
    prices are held against all arcs, and arcs that would pay are added until there are none: the plan is then optimal
    over all of them.

    Args:
        cost: `[n, m]`.
        source: `[n]`.
        target: `[m]`.

    Returns:
        `[n, m]` plan.

    Raises:
        ArithmeticError: HiGHS found no optimum.
    """
    (n, m), unit = cost.shape, source.sum() / len(source)
    cost = cost / (cost.mean() or 1)
    source, target = source / unit, target / unit
    first, second = _prices(cost, source, target)
    reduced = cost - first[:, None] - second
    count = min(ARCS_PER_CHANNEL * (n + m), n * m)
    active = np.zeros((n, m), bool)
    active.flat[np.argpartition(reduced, count - 1, axis=None)[:count]] = True
    active[_feasible_arcs(source, target)] = True
    while True:
        rows, columns = np.nonzero(active)
        arcs = np.tile(np.arange(len(rows)), 2)
        sums = csr_matrix((np.ones(len(arcs)), (np.concatenate([rows, n + columns]), arcs)), (n + m, len(rows)))
        solution = linprog(
            cost[rows, columns],
            A_eq=sums,
            b_eq=np.concatenate([source, target]),
            method="highs-ds",
            options={"presolve": False},
        )
        if solution.status != 0:
            raise ArithmeticError(f"expected an optimal transport of {n} to {m} channels, HiGHS: {solution.message}")
        reduced = cost - solution.eqlin.marginals[:n, None] - solution.eqlin.marginals[n:]
        pays = (reduced < -TOLERANCE) & ~active
        if not pays.any():
            break
        best = np.argpartition(reduced, count - 1, axis=None)[:count]
        active.flat[best[pays.flat[best]]] = True
    result = np.zeros((n, m))
    result[rows, columns] = np.maximum(solution.x, 0) * unit
    return result


def _prices(cost: np.ndarray, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dual variables after `STEPS` rounds of Sinkhorn's algorithm, near enough to the optimum to rank arcs."""
    first, second = np.zeros(len(source)), np.zeros(len(target))
    log_source, log_target = np.log(source / source.sum()), np.log(target / target.sum())
    for epsilon in np.geomspace(FIRST_EPSILON, LAST_EPSILON, STEPS):
        first = -epsilon * _log_sum_exp((second - cost) / epsilon + log_target)
        second = -epsilon * _log_sum_exp(((first[:, None] - cost) / epsilon + log_source[:, None]).T)
    return first, second


def _log_sum_exp(rows: np.ndarray) -> np.ndarray:
    largest = rows.max(1)
    return largest + np.log(np.exp(rows - largest[:, None]).sum(1))


def _feasible_arcs(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Arcs of the north-west corner rule, over which the masses can be transported whatever it costs."""
    ends = np.union1d(np.cumsum(source)[:-1], np.cumsum(target)[:-1])
    starts = np.concatenate([[0.0], ends])
    rows = np.searchsorted(np.cumsum(source)[:-1], starts, side="right")
    return rows, np.searchsorted(np.cumsum(target)[:-1], starts, side="right")
