"""Two looks as one score: the weights of every checkpoint, and a search for triggers in some of them.

Either score is measured in standard deviations of the clean references, and a checkpoint counts by the higher one: by
its weights alone where nobody searched. The references were all searched, and count by the higher of both. So whoever
is searched, how many and why, even by what was found in others: not to be searched can only lower a score, and a clean
checkpoint gets a p-value of `alpha` or less no more often than if all were searched, which is `alpha`. To search more
never acquits anybody.

That references count by both takes something from those who are judged by their weights alone. `DISCOUNT` keeps it
small, at the price of some that only a search would find. On networks whose truth is known (`experiments/cascade.py`)
this finds as many as Bonferroni's correction for two looks, which needs twice the references before it can accuse
anybody, and where only a few are searched it accuses as many among many as weights alone do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from jaxguard.detection.profile import BucketProfile, Scored

DISCOUNT = 1.0
"""Standard deviations that a search counts less than weights, which every checkpoint has."""


@dataclass(frozen=True, eq=False)
class Cascade:
    """One scale for both looks.

    Attributes:
        weights: mean and standard deviation of the references' scores by their weights.
        deep: likewise by the search, which has seen the former score.
        references: those that were searched, by the higher of both.
    """

    weights: tuple[float, float]
    deep: tuple[float, float]
    references: Scored

    def higher(self, weights: np.ndarray, deep: np.ndarray) -> np.ndarray:
        """The higher one of two scores, that of the search less `DISCOUNT`.

        Args:
            weights: of any shape; NaN where undefined.
            deep: of the same shape; NaN where nobody searched.

        Returns:
            In standard deviations of the references; NaN where neither is known.
        """
        return np.fmax(_standardised(weights, self.weights), _standardised(deep, self.deep) - DISCOUNT)


def cascade(known: BucketProfile) -> Cascade:
    """The scale that a bucket's references give.

    Args:
        known: of a profile, with a deep stage.

    Returns:
        The cascade.

    Example:
        >>> from jaxguard.detection.profile import Stage
        >>> none = Scored((), np.zeros(0, int), np.zeros(0))
        >>> scored = (Scored(("a", "b"), np.arange(2), np.array(values)) for values in ([0.0, 2.0], [30.0, 10.0]))
        >>> first, second = (Stage((), (), one, none) for one in scored)
        >>> found = cascade(BucketProfile("small", first, second, ()))
        >>> found.references.scores.tolist(), found.higher(np.array([4.0, 4.0]), np.array([np.nan, 90.0])).tolist()
        ([0.0, 1.0], [3.0, 6.0])
    """
    assert known.deep is not None
    deep = known.deep.clean
    weights = dict(zip(known.weights.clean.sha256, known.weights.clean.scores.tolist(), strict=True))
    first = np.array([weights.get(sha256, np.nan) for sha256 in deep.sha256], np.float64)
    scales = _scale(first), _scale(deep.scores)
    found = Cascade(*scales, references=deep)
    return replace(found, references=replace(deep, scores=found.higher(first, deep.scores)))


def _scale(scores: np.ndarray) -> tuple[float, float]:
    spread = float(np.nanstd(scores))
    return float(np.nanmean(scores)), spread if spread > 0 else 1.0


def _standardised(scores: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    return (scores - scale[0]) / scale[1]
