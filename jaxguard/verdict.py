"""From a score to a statement with an error rate: conformal p-values against references known to be innocent.

A score above those of all references is no proof: with R references the smallest p-value is `1 / (R + 1)`. Whoever may
be wrong once in twenty times needs nineteen of them at least.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from jaxguard.errors import DataError


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
                f"expected {name} that are numbers, came {int(np.isnan(values).sum())} NaN among {len(values)} in "
                "p_values(); leave out what could not be scored, and say so"
            )
    above = len(known) - np.searchsorted(known, found, side="left")
    return (1 + above) / (len(known) + 1)


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
