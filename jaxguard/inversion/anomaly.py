"""Which class needs a far smaller patch than the others: the MAD anomaly index."""

from __future__ import annotations

import numpy as np

from jaxguard.errors import DataError
from jaxguard.inversion.trigger import Inversion
from jaxguard.types import RecoveredTrigger

FLAGGED = 2.0
"""Index above which Neural Cleanse flags a class: 95 % of normal deviates are below it."""

CONSISTENCY = 1.4826
"""Standard deviation over MAD, for normal deviates."""

MEAN_CONSISTENCY = 1.2533
"""Standard deviation over mean absolute deviation, for normal deviates: `sqrt(pi / 2)`."""


def anomaly_index(norms: np.ndarray) -> np.ndarray:
    """Deviation of each class's norm below the median, `(median - norm) / (1.4826 MAD)`.

    If more than half of the norms are equal, so that their MAD is 0, the mean absolute deviation replaces it,
    `(median - norm) / (1.2533 mean |norm - median|)`, as is usual for modified z-scores (Iglewicz and Hoaglin 1993).

    Args:
        norms: `[K]`, finite.

    Returns:
        `[K]`, positive below the median; all 0 where all norms are equal.

    Raises:
        DataError: a norm is not finite, or there are none.

    Example:
        >>> anomaly_index(np.array([1.0, 9.0, 10.0, 11.0, 12.0])).round(2).tolist()  # MAD 1
        [6.07, 0.67, 0.0, -0.67, -1.35]
    """
    norms = np.asarray(norms, np.float64)
    if norms.ndim != 1 or not norms.size or not np.isfinite(norms).all():
        raise DataError(f"expected finite norms [K], got {norms.tolist()} in anomaly_index(); pass one per class")
    below = np.median(norms) - norms
    # Where more than half of the norms are equal the MAD is 0; the mean deviation then gives a scale.
    scale = CONSISTENCY * np.median(np.abs(below)) or MEAN_CONSISTENCY * np.mean(np.abs(below))
    return below / scale if scale else np.zeros_like(norms)


def recovered_trigger(
    inversion: Inversion, *, source: str, always: bool = False, flagged: float = FLAGGED, shown: int = 10
) -> RecoveredTrigger:
    """Interprets an inversion: the suspected class, and the patches to show.

    A class for which no patch reached the threshold counts as needing the whole image.

    Args:
        inversion: of all classes, in order.
        source: description of the images, such as `10 clean images`.
        always: whether to name the class of the smallest patch even if none is flagged.
        flagged: index above which a class is suspected.
        shown: largest number of patches to keep for pictures, smallest first.

    Returns:
        The trigger; `target` is the smallest flagged class.

    Raises:
        DataError: a norm is not finite.

    Example:
        >>> from jaxguard.inversion import Inversion
        >>> masks = np.array([9, 1, 10, 11, 12.0]).reshape(5, 1, 1, 1) / 12
        >>> found = Inversion(masks, masks, 12 * masks.ravel(), np.ones(5), np.ones(5, bool), np.ones(5, int))
        >>> recovered_trigger(found, source="nothing", shown=2).target
        1
    """
    counted = np.where(inversion.reached, inversion.norms, inversion.masks[0].size)
    anomaly = anomaly_index(counted)
    smallest = int(np.argmin(counted))
    suspected = anomaly[smallest] > flagged or (always and bool(inversion.reached[smallest]))
    order = np.argsort(counted, kind="stable")[:shown]
    return RecoveredTrigger(
        norms=inversion.norms,
        success=inversion.success,
        anomaly=anomaly,
        target=smallest if suspected else None,
        shown=order,
        masks=inversion.masks[order],
        patterns=inversion.patterns[order],
        source=source,
    )
