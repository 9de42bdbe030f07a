"""Exact transport on the host, in float64.

What stays in place and what is equal is settled first; the rest is an assignment where all its masses are equal
(SciPy), and otherwise the network simplex of POT, `ot.emd`.
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.optimize import linear_sum_assignment

from jaxguard.kernels.transport.problem import Problem

ROUNDING = 1e-14
"""Residual masses below this share of the whole are rounding."""

MOST_ITERATIONS = 10_000_000
"""Of the network simplex."""


def plans(problems: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Plans of a stack, one problem after the other.

    Args:
        problems: with any leading axes; masses that are not finite or negative have no plan.

    Returns:
        What `Plan` holds: matrices, columns, errors, whether converged. NaN where there is no plan.
    """
    given = Problem(*(np.asarray(part, np.float64) for part in problems[:3]), *map(np.asarray, problems[3:]))
    flat = given.flat()
    matrices, columns = np.full(flat.cost.shape, np.nan), np.full(flat.cost.shape, np.nan)
    converged = np.zeros(len(flat.cost), bool)
    for k, one in enumerate(zip(*flat, strict=True)):
        if all(np.isfinite(part).all() for part in one) and min(np.min(part) for part in one[1:3]) >= 0:
            matrices[k], columns[k], converged[k] = plan(Problem(*one))
    matrices, columns = (found.reshape(given.cost.shape) for found in (matrices, columns))
    gaps = (matrices.sum(-1) - given.source, matrices.sum(-2) - given.target)
    return matrices, columns, np.sum([np.abs(gap).sum(-1) for gap in gaps], axis=0), converged.reshape(given.stack)


def plan(problem: Problem) -> tuple[np.ndarray, np.ndarray, bool]:
    """Keep in place what can stay, transport the rest, and treat equal channels alike.

    Args:
        problem: one, in NumPy float64.

    Returns:
        The plan and its normalised columns, `[N, M]` each, and whether it is optimal.
    """
    cost, source, target, source_ties, target_ties = problem
    shared = np.arange(min(cost.shape))
    matrix = np.zeros(cost.shape)
    stays = cost[shared, shared] == 0
    matrix[shared, shared] = np.where(stays, np.minimum(source[shared], target[shared]), 0)
    left, wanted = source - matrix.sum(1), target - matrix.sum(0)
    is_optimal = True
    rows, columns = np.flatnonzero(left > ROUNDING), np.flatnonzero(wanted > ROUNDING)
    if len(rows) and len(columns):
        residual = np.ix_(rows, columns)
        # Rounding may leave the two sides a hair apart, which the network simplex takes for an infeasible problem.
        wanted *= left[rows].sum() / wanted[columns].sum()
        rest = Problem(cost[residual], left[rows], wanted[columns], source_ties[rows], target_ties[columns])
        moved, is_optimal = _moved(rest)
        matrix[residual] += moved
    matrix = spread(matrix, source, source_ties)
    matrix = spread(matrix.T, target, target_ties).T
    sums = matrix.sum(0)
    empty = np.flatnonzero((target <= ROUNDING) | (sums <= 0))
    sums[empty] = 1
    mixture = matrix / sums
    if len(empty):
        nearest = source_ties[:, None] == source_ties[cost[:, empty].argmin(0)]
        mixture[:, empty] = nearest / nearest.sum(0)
    return matrix, mixture, is_optimal


def _moved(rest: Problem) -> tuple[np.ndarray, bool]:
    """Plan of a residual, and whether it is optimal."""
    cost, source, target, source_ties, target_ties = rest
    # Equal masses on both sides: an optimal plan is a permutation (Birkhoff), found faster than by the simplex.
    if len(source) == len(target) and max(np.ptp(source), np.ptp(target)) < ROUNDING:
        result = np.zeros(cost.shape)
        result[linear_sum_assignment(cost)] = source
        return result, True
    # Equal channels are one of their common mass; each then gets its share of what that one sends or receives.
    _, first, row = np.unique(source_ties, return_index=True, return_inverse=True)
    _, first_column, column = np.unique(target_ties, return_index=True, return_inverse=True)
    masses = np.bincount(row, source), np.bincount(column, target)
    joint, is_optimal = _network_simplex(cost[np.ix_(first, first_column)], *masses)
    share = source / masses[0][row], target / masses[1][column]
    return joint[np.ix_(row, column)] * share[0][:, None] * share[1], is_optimal


def _network_simplex(cost: np.ndarray, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, bool]:
    with warnings.catch_warnings():  # the log says the same
        warnings.simplefilter("ignore")
        import ot

        matrix, log = ot.emd(
            source,
            target,
            np.ascontiguousarray(cost),
            numItermax=MOST_ITERATIONS,
            # Only the plan is used, not the dual variables.
            center_dual=False,
            check_marginals=False,
            log=True,
        )
    return np.asarray(matrix), log["warning"] is None


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
