"""Many features of a checkpoint as one score: a simple model, learned from checkpoints whose truth is known.

All are measured in standard deviations of the clean references. With enough backdoored ones a logistic regression
weighs them (`fitted`); with clean ones alone the score is how far a checkpoint lies from them (`one-class`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxguard.errors import DataError

FITTED = "fitted"
"""Weighed by a logistic regression: clean against backdoored."""

ONE_CLASS = "one-class"
"""Distance from the clean ones."""

FEWEST_CLEAN = 10
"""References below which nothing is fitted: each of five folds would be scored by less than eight."""

FEWEST_BACKDOORED = 10
"""Backdoored checkpoints from which weights are learned; fewer only measure how many would be found."""

LIMIT = 10.0
"""Standard deviations beyond which a feature counts no further: no single one may outvote all others."""

STRENGTH = 0.3
"""`C` of the regression: on normal features, 20 to 400 of them, independent or correlated, and 52 checkpoints of either
class, the ROC-AUC was within 0.02 of the best of 0.01 to 10 wherever the features tell the classes apart at all."""

CONSTANT = 1e-6
"""Spread, relative to the mean, below which a feature does not vary."""


@dataclass(frozen=True, eq=False)
class Combination:
    """What turns features into a score; plain numbers, that a file can hold.

    Attributes:
        kind: `FITTED` or `ONE_CLASS`.
        usable: `[F]` bool; the others are never read.
        centre: `[U]` mean of each usable feature over the clean references.
        scale: `[U]` its standard deviation, > 0.
        coefficients: `[1, U]` weights of a fitted one; of a one-class one `[P, U]` principal axes of the references,
            each divided by the standard deviation along it.
        intercept: added to the score of a fitted one.
        rest: of a one-class one, inverse variance along all other axes.
    """

    kind: str
    usable: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    intercept: float = 0.0
    rest: float = 0.0

    def score(self, features: np.ndarray) -> np.ndarray:
        """Scores of checkpoints.

        Args:
            features: `[M, F]`; infinities count as `LIMIT`.

        Returns:
            float64 `[M]`, higher is more suspicious: log-odds of a fitted one, root mean squared deviation of a
            one-class one. NaN where a usable feature is NaN.
        """
        values = _standardised(np.asarray(features, np.float64)[:, self.usable], self.centre, self.scale)
        along = values @ self.coefficients.T
        if self.kind == FITTED:
            return along[:, 0] + self.intercept
        axes = self.coefficients / np.linalg.norm(self.coefficients, axis=1, keepdims=True)
        outside = np.maximum((values**2).sum(1) - ((values @ axes.T) ** 2).sum(1), 0.0)
        return np.sqrt(((along**2).sum(1) + self.rest * outside) / values.shape[1])


def fit(clean: np.ndarray, backdoored: np.ndarray, usable: np.ndarray) -> Combination:
    """Learns to tell backdoored checkpoints from clean ones.

    L2-regularised logistic regression, both classes of equal weight. The strength is fixed rather than searched, so
    that the scores of several folds have one scale.

    Args:
        clean: `[R, F]`, finite where usable, R >= 2.
        backdoored: `[S, F]`; rows with NaN in a usable feature are left out.
        usable: `[F]` bool.

    Returns:
        A combination of kind `FITTED`.

    Raises:
        DataError: no usable feature varies among the clean ones, or no backdoored one is left.

    Example:
        >>> clean = np.array([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0]])
        >>> found = fit(clean, clean + [[4.0, 0.0]], np.array([True, True]))
        >>> found.usable.tolist(), bool(found.score([[6.0, 0.0]])[0] > 0 > found.score([[1.0, 9.0]])[0])
        ([True, False], True)
    """
    from sklearn.linear_model import LogisticRegression

    usable, centre, scale, innocent = _reference_frame(clean, usable)
    guilty = _standardised(np.asarray(backdoored, np.float64)[:, usable], centre, scale)
    guilty = guilty[~np.isnan(guilty).any(1)]
    if not len(guilty):
        raise DataError(
            f"expected backdoored checkpoints with all {int(usable.sum())} features, got none among "
            f"{len(backdoored)} in fit(); calibrate with clean ones alone"
        )
    truth = np.repeat([0, 1], [len(innocent), len(guilty)])
    # On busy cores the default solver, lbfgs, took up to 24 times as long.
    model = LogisticRegression(C=STRENGTH, class_weight="balanced", solver="newton-cg", max_iter=1000, tol=1e-6)
    model.fit(np.concatenate([innocent, guilty]), truth)
    return Combination(
        FITTED, usable, centre, scale, np.asarray(model.coef_), intercept=np.asarray(model.intercept_).item()
    )


def fit_one_class(clean: np.ndarray, usable: np.ndarray) -> Combination:
    """Learns where clean checkpoints lie: Mahalanobis distance, shrunk after Ledoit and Wolf.

    With more features than references the covariance has no inverse; shrinking it towards equal variances gives one,
    by an amount that the references themselves determine. Only the axes along which they vary are kept.

    Args:
        clean: `[R, F]`, finite where usable, R >= 2.
        usable: `[F]` bool.

    Returns:
        A combination of kind `ONE_CLASS`.

    Raises:
        DataError: no usable feature varies among them.

    Reference:
        Ledoit, Wolf: A well-conditioned estimator for large-dimensional covariance matrices, J. Multivariate
        Analysis 2004.
    """
    from sklearn.covariance import ledoit_wolf

    usable, centre, scale, values = _reference_frame(clean, usable)
    covariance, shrinkage = ledoit_wolf(values, assume_centered=True)
    covariance = np.atleast_2d(covariance)
    variances, axes = np.linalg.eigh(covariance)
    floor = float(shrinkage) * np.trace(covariance) / len(covariance)
    kept = variances > max(floor, CONSTANT * variances[-1]) * (1 + 1e-9)
    if not kept.any():
        kept[-1] = True
    coefficients = axes.T[kept] / np.sqrt(variances[kept])[:, None]
    return Combination(ONE_CLASS, usable, centre, scale, coefficients, rest=1 / floor if floor > 0 else 0.0)


def cross_scores(
    combinations: Sequence[Combination], features: np.ndarray, first: np.ndarray | None = None
) -> np.ndarray:
    """Scores of checkpoints by each of several combinations.

    Args:
        combinations: `K` of them.
        features: `[M, F]`.
        first: `[M, K]` a feature more, put before the others, that differs by combination.

    Returns:
        float64 `[M, K]`.
    """
    scores = np.empty((len(features), len(combinations)))
    for k, one in enumerate(combinations):
        scores[:, k] = one.score(features if first is None else np.column_stack([first[:, k], features]))
    return scores


def _standardised(values: np.ndarray, centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.clip((values - centre) / scale, -LIMIT, LIMIT)


def _reference_frame(clean: np.ndarray, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features that vary `[F]`, their mean and standard deviation `[U]`, and the references in those units `[R, U]`."""
    clean = np.asarray(clean, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        centre, scale = clean.mean(0), clean.std(0)
        varies = usable & np.isfinite(centre) & np.isfinite(scale) & (scale > CONSTANT * np.abs(centre))
    if not varies.any():
        raise DataError(
            f"expected features that vary among the references, got {int(usable.sum())} constant ones of "
            f"{len(clean)} references in fit(); are they copies of one checkpoint?"
        )
    centre, scale = centre[varies], scale[varies]
    return varies, centre, scale, _standardised(clean[:, varies], centre, scale)
