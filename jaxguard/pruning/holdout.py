"""Clean images set aside, on which a threshold can be chosen without looking at test images."""

from __future__ import annotations

import jax
import numpy as np

from jaxguard.errors import DefenseError
from jaxguard.types import Batch


def hold_out(clean: Batch, share: float, key: jax.Array, method: str) -> tuple[Batch, Batch]:
    """Sets clean images aside, on which a threshold can be chosen.

    Args:
        clean: the defender's images.
        share: of them, in (0, 1); at least one image is set aside, and one is kept.
        key: draws which.
        method: row of the DEFENSES table.

    Returns:
        The images to learn from, and those set aside, both in their order.

    Raises:
        DefenseError: there is but one image.
    """
    count = len(clean.images)
    if count < 2:
        raise DefenseError(
            f"expected at least 2 clean images, one of them to choose a threshold on, got {count} in {method}; "
            "give more images, or the threshold"
        )
    # At least one image on either side.
    aside = min(max(round(share * count), 1), count - 1)
    is_aside = np.zeros(count, bool)
    is_aside[np.asarray(jax.random.permutation(key, count))[:aside]] = True
    parts = (~is_aside, is_aside)
    learned, held = (Batch(np.asarray(clean.images)[part], np.asarray(clean.labels)[part]) for part in parts)
    return learned, held
