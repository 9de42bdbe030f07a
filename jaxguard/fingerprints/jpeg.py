"""Probes of SAC-JC: JPEG-compressed images.

Qualities 25, 18, 15, 10 and 7 are severities 1 to 5 of the image corruptions that the authors use; they use severity 1.
"""

from __future__ import annotations

import io
from typing import Annotated

import numpy as np
from annotated_types import Interval
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from jaxguard.errors import FingerprintError
from jaxguard.methods import checked

QUALITY = 25
"""The paper's, severity 1."""

Quality = Annotated[int, Interval(ge=1, le=95)]

_CHANNELS = (1, 3)


@checked
def compressed(images: np.ndarray, *, quality: Quality = QUALITY) -> np.ndarray:
    """Images after a JPEG round trip, with Pillow's chroma subsampling.

    Args:
        images: `[N, H, W, C]` in [0, 1], gray or RGB; brightness becomes a byte by `floor(255 x)`.
        quality: of Pillow's encoder, 1 to 95.

    Returns:
        float32 `[N, H, W, C]` in [0, 1].

    Raises:
        FingerprintError: another number of channels.
        OptionError: a quality out of range.

    Example:
        >>> gray = compressed(np.full((1, 8, 8, 1), 127 / 255))
        >>> np.unique((gray * 255).round()).tolist()  # the nearest mean at the coarse steps of quality 25
        [128.0]
    """
    channels = images.shape[-1]
    if channels not in _CHANNELS:
        raise FingerprintError(
            f"expected images of 1 or 3 channels for JPEG, got {channels}; take another variant for such images"
        )
    pixels = np.floor(np.asarray(images, np.float32) * 255).astype(np.uint8)
    if channels == 1:
        pixels = pixels[..., 0]
    read = [_through_jpeg(image, quality) for image in pixels]
    return np.stack(read).reshape(images.shape).astype(np.float32) / np.float32(255)


def _through_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    buffer.seek(0)
    return np.asarray(JpegImageFile(buffer))
