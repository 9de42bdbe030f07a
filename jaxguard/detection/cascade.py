"""Two stages as one score: the first look at every checkpoint, and a trigger search in some of them.

Both scores are measured in standard deviations of the clean references, and a checkpoint counts by the higher one, or
by the first alone where no triggers were searched. The references were all searched and count by the higher of both.
So it does not matter which checkpoints are searched, how many or why, even if findings in others decide it: leaving
one out can only lower its score, and a clean checkpoint gets a p-value of `alpha` or less no more often than if all
were searched, which is `alpha`. Searching more never acquits a checkpoint.

Because references count by both, checkpoints that are judged by the first stage alone lose some power. `DISCOUNT`
keeps the loss small, at the price of a few that only a search would find. On networks of known truth
(`experiments/cascade.py`) this finds as many as Bonferroni's correction for two tests, which needs twice the references
before it can suspect anything; where only a few of many are searched, it finds as many as the weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from jaxguard.detection.profile import CohortProfile, ReferenceScores

DISCOUNT = 1.0
"""Standard deviations by which a trigger search counts less than the first stage, which every checkpoint has."""


@dataclass(frozen=True, eq=False)
class Cascade:
    """One scale for both stages.

    Attributes:
        first: mean and standard deviation of the references' scores in the first stage.
        search: likewise in the trigger search, which knows the former score.
        references: those in which triggers were searched, by the higher of both.
    """

    first: tuple[float, float]
    search: tuple[float, float]
    references: ReferenceScores

    def higher(self, first: np.ndarray, search: np.ndarray) -> np.ndarray:
        """The higher one of two scores, that of the search less `DISCOUNT`.

        Args:
            first: of any shape; NaN where undefined.
            search: of the same shape; NaN where no triggers were searched.

        Returns:
            In standard deviations of the references; NaN where neither is known.
        """
        # fmax passes over NaN: without a search the first score counts.
        return np.fmax(_standardised(first, self.first), _standardised(search, self.search) - DISCOUNT)


def cascade(known: CohortProfile) -> Cascade:
    """The scale that a cohort's references give.

    Args:
        known: of a profile, with a trigger stage.

    Returns:
        The cascade.

    Example:
        >>> from jaxguard.detection.profile import Stage
        >>> none = ReferenceScores((), np.zeros(0, int), np.zeros(0))
        >>> rows = [0.0, 2.0], [30.0, 10.0]
        >>> first, second = (Stage((), (), ReferenceScores(("a", "b"), np.arange(2), np.array(x)), none) for x in rows)
        >>> found = cascade(CohortProfile("small", (), first, second))
        >>> found.references.scores.tolist(), found.higher(np.array([4.0, 4.0]), np.array([np.nan, 90.0])).tolist()
        ([0.0, 1.0], [3.0, 6.0])
    """
    assert known.triggers is not None
    searched, clean = known.triggers.clean, known.first.clean
    by_hash = dict(zip(clean.sha256, clean.scores.tolist(), strict=True))
    first = np.array([by_hash.get(sha256, np.nan) for sha256 in searched.sha256], np.float64)
    found = Cascade(_scale(first), _scale(searched.scores), references=searched)
    return replace(found, references=replace(searched, scores=found.higher(first, searched.scores)))


def _scale(scores: np.ndarray) -> tuple[float, float]:
    # Equal scores have no spread: they are shifted, but not scaled.
    spread = float(np.nanstd(scores))
    return float(np.nanmean(scores)), spread if spread > 0 else 1.0


def _standardised(scores: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    return (scores - scale[0]) / scale[1]
