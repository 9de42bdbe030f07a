"""Pictures of a trigger: images as they are, with the trigger, and what the trigger changes."""

import base64
import io
import math
from typing import NamedTuple

import numpy as np

from jaxguard.errors import DataError
from jaxguard.types import TriggerExample

MAX_IMAGES = 6
"""Images in a strip: as many as stay recognisable on a phone."""

MAX_GAIN = 50
"""Largest amplification of the difference: beyond it, rounding to 8 bits would be shown as trigger."""

_SIDE = 128
_GAP = 8


class TriggerStrips(NamedTuple):
    """Three rows of the same images, each a PNG as `data:` URI with transparent gaps.

    Attributes:
        clean: the images as they are.
        triggered: the images with the trigger.
        difference: absolute difference times `gain`, on black.
        gain: whole number; 1 where the images do not differ.
        num_images: images in a row.
    """

    clean: str
    triggered: str
    difference: str
    gain: int
    num_images: int


def trigger_strips(trigger: TriggerExample) -> TriggerStrips:
    """Renders the first `MAX_IMAGES` examples, enlarged by whole pixels so that nothing is smoothed away.

    Args:
        trigger: `[N, H, W, C]` in [0, 1], grayscale (C = 1) or RGB (C = 3).

    Returns:
        The strips; the difference is amplified until its largest value is white.

    Raises:
        DataError: the arrays differ in shape, are empty, or are neither grayscale nor RGB.
    """
    clean, triggered = np.asarray(trigger.clean, np.float32), np.asarray(trigger.triggered, np.float32)
    if clean.shape != triggered.shape or clean.ndim != 4 or clean.shape[-1] not in (1, 3) or clean.size == 0:
        raise DataError(
            f"expected clean and triggered images of one shape [N, H, W, 1 or 3], got {clean.shape} and "
            f"{triggered.shape} in the trigger example of {trigger.attack!r}; pass the same test images twice, "
            "with and without the trigger, channels last"
        )
    clean, triggered = clean[:MAX_IMAGES], triggered[:MAX_IMAGES]
    difference = np.abs(triggered - clean)
    largest = float(np.nanmax(difference, initial=0.0))
    gain = min(max(math.floor(1 / largest), 1), MAX_GAIN) if largest > 0 else 1
    return TriggerStrips(_strip(clean), _strip(triggered), _strip(difference * gain), gain, len(clean))


def _strip(images: np.ndarray) -> str:
    from PIL import Image

    pixels = np.round(255 * np.clip(np.nan_to_num(images), 0, 1)).astype(np.uint8)
    pixels = np.broadcast_to(pixels, (*pixels.shape[:3], 3))
    factor = max(1, math.ceil(_SIDE / max(pixels.shape[1:3])))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    opaque = np.concatenate([pixels, np.full((*pixels.shape[:3], 1), 255, np.uint8)], axis=-1)
    padded = np.pad(opaque, ((0, 0), (0, 0), (0, _GAP), (0, 0)))
    strip = np.concatenate(list(padded), axis=1)[:, :-_GAP]
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(strip)).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
