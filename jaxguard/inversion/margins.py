"""How far one class stands out by its trigger: margins, their gap, and a p-value from the classes themselves.

    T_c = mean over judged images of (z_c - max_{j != c} z_j) / standard deviation of all clean logits
    G = (T_(1) - T_(2)) (A_(1) - A_(2)),    t = (T_(1) - mean of the rest) / (sd of the rest sqrt(1 + 1/(S - 1)))

over the `S` classes that were searched, A the success of the two leading triggers; G is 0 if the second works better.
If all were equal and their margins normal, `t` of a class named beforehand would have Student's distribution with S - 2
degrees of freedom; the leading one of S is as high with probability at most `S sf(t)`, and the best of several sizes by
Bonferroni. Margins order the classes, as success rates end at 1; the lead in success tells a class that stands out from
the first of several that are easy to reach.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxguard.types.searches import TriggerRow


class Judged(NamedTuple):
    """One trigger per class on images it was not made on.

    Attributes:
        margin: `[S]`, T.
        hits: int `[S]`.
        judged: int `[S]`.
    """

    margin: np.ndarray
    hits: np.ndarray
    judged: np.ndarray


def leads(logits: np.ndarray, classes: np.ndarray | int) -> np.ndarray:
    """The logit of a class less the highest other one, image by image.

    Args:
        logits: `[..., K]`.
        classes: int, of a shape that broadcasts to `[...]`.

    Returns:
        `[...]`; NaN or infinite where a logit is.

    Example:
        >>> leads(np.array([[2.0, 0.0, 1.0], [0.0, 5.0, 1.0]]), np.array([0, 2])).tolist()
        [1.0, -4.0]
    """
    own = np.arange(logits.shape[-1]) == np.broadcast_to(classes, logits.shape[:-1])[..., None]
    with np.errstate(invalid="ignore"):
        return np.where(own, logits, -np.inf).max(-1) - np.where(own, -np.inf, logits).max(-1)


def of_images(stamped: np.ndarray, classes: np.ndarray, spread: float) -> np.ndarray:
    """Margins image by image.

    Args:
        stamped: logits `[..., K]`.
        classes: int, of a shape that broadcasts to `[...]`.
        spread: standard deviation of all clean logits.

    Returns:
        `leads` in units of the spread; -inf where a logit is not finite.
    """
    return np.where(np.isfinite(stamped).all(-1), leads(stamped, classes) / spread, -np.inf)


def judged(stamped: np.ndarray, clean: np.ndarray, classes: np.ndarray, labels: np.ndarray, spread: float) -> Judged:
    """Margins and hits of triggers.

    Args:
        stamped: logits `[S, B, K]` of the images with the trigger of each class.
        clean: logits `[B, K]` of the images without.
        classes: int `[S]`.
        labels: int `[B]`.
        spread: standard deviation of all clean logits, > 0.

    Returns:
        Over the images that are neither of the class nor taken for it; the margin is -inf where there is none, or a
        logit is not finite.

    Example:
        >>> clean, labels = np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([0, 1])
        >>> judged(np.array([[[0.0, 3.0], [0.0, 3.0]]]), clean, np.array([1]), labels, 1.0)
        Judged(margin=array([3.]), hits=array([1]), judged=array([1]))
    """
    # Images that are of the class, or that the network takes for it without the trigger, say nothing of the trigger.
    counted = (labels != classes[:, None]) & (clean.argmax(-1) != classes[:, None])
    margin = leads(stamped, classes[:, None])
    counts = counted.sum(1)
    with np.errstate(invalid="ignore"):
        mean = np.where(counted, margin, 0).sum(1) / np.maximum(counts, 1) / spread
    mean = np.where((counts > 0) & np.isfinite(mean), mean, -np.inf)
    return Judged(mean, (counted & (margin > 0)).sum(1), counts)


def class_p_value(rows: Sequence[TriggerRow]) -> float:
    """Chance that one of equal classes leads by as much in any of the rows.

    Args:
        rows: of one search.

    Returns:
        At most 1; NaN for fewer than three classes.
    """
    found = [p_value for row in rows if not math.isnan(p_value := _leading(row.ranks))]
    return min(1.0, len(found) * min(found)) if found else math.nan


def _leading(margin: np.ndarray) -> float:
    """Of one row, by Bonferroni over its classes."""
    from scipy import stats

    number = len(margin)
    if number < 3 or not np.isfinite(margin).all():
        return math.nan
    high, rest = margin.max(), np.delete(margin, margin.argmax())
    # The prediction interval of one more draw from the others: its deviation exceeds theirs by the error of the mean.
    spread = rest.std(ddof=1) * math.sqrt(1 + 1 / (number - 1))
    if spread == 0:
        return 0.0 if high > rest.max() else 1.0
    return min(1.0, number * float(stats.t.sf((high - rest.mean()) / spread, number - 2)))
