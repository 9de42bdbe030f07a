"""Probes of SAC-m: images with a box of another image pasted in.

As in CutMix (Yun et al., ICCV 2019): the box covers the share `1 - lambda` of the image, `lambda ~ Beta(alpha, alpha)`,
and its centre is uniform over the image; parts outside the image are cut off. The code of SAC's authors differs, and
each difference is an option: a box of fixed side (0.2; the draw of lambda is unused), centred near a corner, the same
for all images, and transposed images.
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval

from jaxguard.errors import FingerprintError
from jaxguard.methods import Positive, checked

Side = Annotated[float | None, Interval(gt=0, le=1)]

_MARGIN = 6
"""A corner is within this fraction of height and width."""


@checked
def cutmix(
    images: np.ndarray,
    key: jax.Array,
    *,
    alpha: Positive = 1.0,
    side: Side = None,
    corner: bool = False,
    one_box: bool = False,
) -> np.ndarray:
    """Pastes a box of each image into another one.

    Args:
        images: `[N, H, W, C]`, N >= 2; not modified.
        key: draws the partners (one cycle through all images) and the boxes.
        alpha: of the Beta distribution of lambda.
        side: of the box, as a share of the image's in (0, 1]; by default drawn, `sqrt(1 - lambda)`.
        corner: whether the centre is within a sixth of height and width from a corner.
        one_box: whether all images share one box.

    Returns:
        `[N, H, W, C]`, of the same dtype.

    Raises:
        FingerprintError: fewer than two images.
        OptionError: an option out of range.

    Example:
        >>> black_and_white = np.stack([np.zeros((8, 8, 1)), np.ones((8, 8, 1))])
        >>> mixed = cutmix(black_and_white, jax.random.key(0), side=0.5, corner=True, one_box=True)
        >>> bool((mixed[0] == 1 - mixed[1]).all())
        True
    """
    count, height, width = images.shape[:3]
    if count < 2:
        raise FingerprintError(
            f"expected at least two images to mix, got {count} in cutmix(); give the owner more data"
        )
    key_partner, key_side, key_rows, key_columns = jax.random.split(key, 4)
    # A cycle through a random order: every image has a partner, and none is its own.
    order = np.asarray(jax.random.permutation(key_partner, count))
    partner = np.empty(count, int)
    partner[order] = np.roll(order, 1)
    boxes = 1 if one_box else count
    if side is None:
        # The box's area is the share that CutMix draws; its sides are the root of it.
        drawn = np.sqrt(1 - np.asarray(jax.random.beta(key_side, alpha, alpha, (boxes,)), np.float64))
    else:
        drawn = np.full(boxes, side)
    inside_rows = _inside(height, drawn, key_rows, corner)
    inside_columns = _inside(width, drawn, key_columns, corner)
    box = inside_rows[:, :, None] & inside_columns[:, None, :]
    return np.where(box[..., None], images[partner], images)


def _inside(size: int, side: np.ndarray, key: jax.Array, corner: bool) -> np.ndarray:
    """Which of `size` positions are in each interval, bool `[boxes, size]`."""
    positions = np.arange(size)
    near_edge = (positions <= size / _MARGIN) | (positions >= size - size / _MARGIN)
    allowed = positions[near_edge] if corner else positions
    centre = np.asarray(jax.random.choice(key, jnp.asarray(allowed), side.shape))
    # Cut off at the border, as in CutMix: boxes near an edge are smaller.
    half = (size * side).astype(int) // 2
    return (positions >= (centre - half)[:, None]) & (positions < (centre + half)[:, None])
