"""From a score to a statement with an error rate: conformal p-values against references known to be innocent.

A score above those of all references is no proof: with R references the smallest p-value is `1 / (R + 1)`, so an error
rate of one in twenty takes nineteen references at least. Among many suspects one innocent in twenty has a p-value below
0.05; what is controlled then is the share of false accusations among all.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from jaxguard.errors import DataError

TOLERANCE = 0.05
"""What scores may move by between two machines or precisions, in standard deviations of the references' scores, for
p-values to hold: were scores normal, and all suspects' moved by as much, an error rate of 5 % would become 5.5 %."""


def p_values(scores: ArrayLike, references: ArrayLike) -> np.ndarray:
    """How often an innocent model would score as high: `(1 + #{references >= score}) / (R + 1)`.

    Valid whatever the scores' distribution, as long as a suspect, if innocent, is exchangeable with the references.

    Args:
        scores: `[S]`; higher is more suspicious.
        references: `[R]` of models known to be innocent; may be none.

    Returns:
        float64 `[S]`, in (0, 1].

    Raises:
        DataError: a score or a reference is NaN.

    Example:
        >>> p_values([0.9, 0.5, 0.1], [0.2, 0.5, 0.3]).tolist()
        [0.25, 0.5, 1.0]
    """
    found, known = np.asarray(scores, np.float64).ravel(), np.sort(np.asarray(references, np.float64).ravel())
    for name, values in (("scores", found), ("references", known)):
        if np.isnan(values).any():
            raise DataError(
                f"expected {name} that are numbers, got {int(np.isnan(values).sum())} NaN among {len(values)} in "
                "p_values(); leave out what could not be scored, and say so"
            )
    return (1 + as_high(found, known)) / (len(known) + 1)


def joined(scores: ArrayLike, references: ArrayLike) -> tuple[float, np.ndarray]:
    """One p-value for several scores of a model, of which any may be the one that is high.

    For every kind of score the models, the suspect among them, are put on one scale: 0 at the median, 1 at the upper
    tenth. A model counts by its highest value on it, and the p-value is the share of models that count as much. All
    models are treated alike, so that it is exact whatever the distributions and dependences are, without a correction
    for the number of kinds. (The smallest of conformal p-values would do too, but the best reference of each of M kinds
    has the smallest p-value there is, so that nothing falls below `M / (R + 1)`.)

    Args:
        scores: `[M]` of the suspect, one of each kind; NaN where it has none.
        references: `[R, M]` of models known to be innocent; NaN where one has none.

    Returns:
        The p-value, in (0, 1], and the suspect's scores on that scale, float64 `[M]`, NaN where it has none. NaN for a
        suspect without any score.

    Example:
        >>> references = [[k / 10, (9 - k) * 10] for k in range(10)]
        >>> p_value, heights = joined([0.5, 200.0], references)
        >>> round(p_value, 3), heights.round(2).tolist()
        (0.091, [0.0, 3.75])
    """
    given = np.asarray(scores, np.float64).reshape(1, -1)
    kinds = ~np.isnan(given[0])
    heights = np.full(given.shape[1], np.nan)
    if not kinds.any():
        return math.nan, heights
    # Kinds that the suspect has no score of say nothing of it, and references without any other are no references.
    known = np.asarray(references, np.float64).reshape(-1, given.shape[1])[:, kinds]
    pool = np.concatenate([known[~np.isnan(known).all(axis=1)], given[:, kinds]])
    middle, high = np.nanquantile(pool, (0.5, 0.9), axis=0)
    width = np.maximum(high - middle, np.finfo(np.float64).tiny)
    with np.errstate(over="ignore"):
        scaled = (pool - middle) / width
    best = np.nanmax(scaled, axis=1)
    heights[kinds] = scaled[-1]
    return float(np.mean(best >= best[-1])), heights


def as_high(scores: np.ndarray, known: np.ndarray) -> np.ndarray:
    """How many of the known scores are as high.

    Args:
        scores: `[S]`, no NaN.
        known: `[R]`, ascending, no NaN.

    Returns:
        int64 `[S]`, in [0, R].

    Example:
        >>> as_high(np.array([0.9, 0.5]), np.array([0.2, 0.3, 0.5])).tolist()
        [0, 1]
    """
    return len(known) - np.searchsorted(known, scores, side="left")


def adjusted_p_values(p_values: ArrayLike) -> np.ndarray:
    """Smallest false discovery rate at which each would be among the discoveries, after Benjamini and Hochberg.

    Accusing all whose adjusted p-value is at most `alpha` keeps the expected share of innocent ones among the accused
    at most `alpha`, for p-values that are independent or positively dependent, as those of one set of references are
    (Bates et al., Testing for Outliers with Conformal p-values, Annals of Statistics 2023).

    Args:
        p_values: `[S]` in [0, 1]; NaN marks what was not judged, and does not count.

    Returns:
        float64 `[S]` in [0, 1], NaN where the p-value is.

    Raises:
        DataError: a number that is no p-value.

    Example:
        >>> adjusted_p_values([0.01, np.nan, 0.02, 0.9]).tolist()
        [0.03, nan, 0.03, 0.9]
    """
    from scipy import stats

    given = np.asarray(p_values, np.float64).ravel()
    judged = ~np.isnan(given)
    if ((given < 0) | (given > 1)).any():
        raise DataError(
            f"expected p-values in [0, 1], got {np.nanmin(given):.4g} to {np.nanmax(given):.4g} in "
            "adjusted_p_values(); give p-values, not scores"
        )
    adjusted = np.full(len(given), np.nan)
    if judged.any():
        adjusted[judged] = stats.false_discovery_control(given[judged])
    return adjusted


def needed_references(alpha: float) -> int:
    """Fewest references with which a p-value of `alpha` can be reached.

    Args:
        alpha: accepted rate of false accusations, in (0, 1).

    Returns:
        `ceil(1 / alpha) - 1`.

    Example:
        >>> needed_references(0.05), needed_references(0.01)
        (19, 99)
    """
    return math.ceil(round(1 / alpha, 9)) - 1


def power(p_values: ArrayLike, alpha: float) -> tuple[float, tuple[float, float]]:
    """Share of models known to be guilty that would be found, with its exact (Clopper-Pearson) interval.

    Args:
        p_values: `[S]` of the guilty; NaN counts as not found.
        alpha: accepted rate of false accusations.

    Returns:
        The share and its 95 % confidence interval; NaN and (0, 1) where there are none.

    Example:
        >>> found, (low, high) = power([0.01, 0.02, 0.03, 0.5], alpha=0.05)
        >>> found, round(low, 3), round(high, 3)
        (0.75, 0.194, 0.994)
    """
    from scipy import stats

    given = np.asarray(p_values, np.float64).ravel()
    if not len(given):
        return math.nan, (0.0, 1.0)
    test = stats.binomtest(int((given <= alpha).sum()), len(given))
    interval = test.proportion_ci(0.95, method="exact")
    return float(test.statistic), (float(interval.low), float(interval.high))
