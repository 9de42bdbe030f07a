"""How well scores separate copies from independent models: AUC and rates at a threshold, with 95 % intervals.

Scores are higher for copies. Intervals show the uncertainty with few models: bootstrap for the AUC, Clopper and
Pearson's exact interval for rates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn import metrics

from jaxguard.errors import DataError

RESAMPLES = 2000
"""Bootstrap samples behind an interval of the AUC."""


class Rate(NamedTuple):
    """A figure in [0, 1] and its 95 % interval.

    Attributes:
        value: the figure.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float


def roc_auc(copies: ArrayLike, independents: ArrayLike, *, seed: int = 0) -> Rate:
    """Chance that a copy scores above an independent model, ties counted half.

    Args:
        copies: `[P]` scores.
        independents: `[N]` scores.
        seed: of the bootstrap, which draws copies and independents apart.

    Returns:
        The AUC and its interval, which is `[1, 1]` if the scores do not overlap.

    Raises:
        DataError: no score on one side, or NaN.

    Example:
        >>> roc_auc([3.0, 2.0], [1.0, 2.0]).value
        0.875
    """
    high, low = _checked(copies, independents)
    rng = np.random.default_rng(seed)
    drawn_high = high[rng.integers(len(high), size=(RESAMPLES, len(high)))]
    drawn_low = low[rng.integers(len(low), size=(RESAMPLES, len(low)))]
    above = drawn_high[:, :, None] > drawn_low[:, None, :]
    tied = drawn_high[:, :, None] == drawn_low[:, None, :]
    resampled = (above + 0.5 * tied).mean((1, 2))
    truth = np.concatenate([np.ones(len(high)), np.zeros(len(low))])
    value = float(metrics.roc_auc_score(truth, np.concatenate([high, low])))
    return Rate(value, *(float(end) for end in np.quantile(resampled, (0.025, 0.975))))


def rate_above(scores: ArrayLike, threshold: float) -> Rate:
    """Share of scores of at least a threshold.

    Args:
        scores: `[N]`, N >= 1.
        threshold: such as that of `calibrated_threshold`.

    Returns:
        The share with Clopper and Pearson's interval.

    Example:
        >>> rate_above([1.0, 2.0, 3.0, 4.0], 3.0).value
        0.5
    """
    found = np.asarray(scores, np.float64)
    count = int((found >= threshold).sum())
    ends = stats.binomtest(count, len(found)).proportion_ci(method="exact")
    return Rate(count / len(found), float(ends.low), float(ends.high))


def calibrated_threshold(references: ArrayLike, alpha: float) -> float:
    """Smallest score with a conformal p-value of at most `alpha`; infinite with too few references.

    Args:
        references: `[R]` scores of models known to be independent.
        alpha: accepted rate of false accusations.

    Returns:
        The threshold, just above the score of a reference.

    Example:
        >>> calibrated_threshold(np.arange(19.0), 0.05) > 18, calibrated_threshold([1.0], 0.05)
        (True, inf)
    """
    known = np.sort(np.asarray(references, np.float64))[::-1]
    allowed = int(np.floor(round(alpha * (len(known) + 1), 9))) - 1  # references that may score as high
    if allowed < 0:
        return np.inf
    return float(np.nextafter(known[allowed], np.inf)) if allowed < len(known) else -np.inf


def tpr_at_fpr(copies: ArrayLike, independents: ArrayLike, rate: float = 0.05) -> Rate:
    """Share of copies found at the threshold that accuses at most the share `rate` of these independents.

    Args:
        copies: `[P]` scores.
        independents: `[N]` scores.
        rate: accepted false positive rate, in [0, 1).

    Returns:
        The share; its interval accounts for the number of copies only.
    """
    high, low = _checked(copies, independents)
    allowed = int(np.floor(round(rate * len(low), 9)))
    return rate_above(high, float(np.nextafter(np.sort(low)[::-1][allowed], np.inf)))


def f1(copies: ArrayLike, independents: ArrayLike, threshold: float) -> float:
    """F1 of the accusation `score >= threshold`.

    Args:
        copies: `[P]` scores.
        independents: `[N]` scores.
        threshold: smallest accused score.

    Returns:
        In [0, 1]; 0 if nothing is accused.
    """
    high, low = _checked(copies, independents)
    truth = np.concatenate([np.ones(len(high)), np.zeros(len(low))])
    never: Any = 0.0  # scikit-learn's stubs know strings only
    return float(metrics.f1_score(truth, np.concatenate([high, low]) >= threshold, zero_division=never))


def _checked(copies: ArrayLike, independents: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    high, low = np.asarray(copies, np.float64).ravel(), np.asarray(independents, np.float64).ravel()
    if not high.size or not low.size or np.isnan(high).any() or np.isnan(low).any():
        raise DataError(
            f"expected scores of copies and of independent models, got {high.size} and {low.size}, "
            f"{int(np.isnan(high).sum() + np.isnan(low).sum())} of them NaN; score both before comparing them"
        )
    return high, low
