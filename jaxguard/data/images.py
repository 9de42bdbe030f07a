"""Checks raw arrays of any source and converts them to float32 images in [0, 1], NHWC, and int32 labels."""

import numpy as np
from PIL import Image

from jaxguard.errors import DataError
from jaxguard.types import Batch

MAX_CLASSES = 100_000
_MAX_CHANNELS = 4


def batch(images: np.ndarray, labels: np.ndarray, where: str) -> Batch:
    """Checks and normalises one split.

    Args:
        images: `[N, H, W, C]` or `[N, H, W]` (one channel); uint8, or floating-point numbers in [0, 1].
        labels: `[N]` integers in [0, 100,000).
        where: file and keys, for the message.

    Returns:
        Images `[N, H, W, C]` float32 in [0, 1] and labels `[N]` int32.

    Raises:
        DataError: wrong number of axes, channels first, wrong dtype or range, NaN, or lengths that differ.
    """
    pixels = nhwc(images, where)
    return Batch(pixels, _checked_labels(labels, len(pixels), where))


def nhwc(images: np.ndarray, where: str) -> np.ndarray:
    """Checks and normalises images.

    Args:
        images: `[N, H, W, C]` or `[N, H, W]` (one channel); uint8, or floating-point numbers in [0, 1].
        where: file and keys, for the message.

    Returns:
        `[N, H, W, C]` float32 in [0, 1].

    Raises:
        DataError: wrong number of axes, channels first, wrong dtype or range, or NaN.
    """
    pixels = unit_range(images, where)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4:
        raise DataError(f"{where}: expected images [N, H, W, C] or [N, H, W], got shape {images.shape}; reshape them")
    if pixels.shape[3] not in range(1, _MAX_CHANNELS + 1):
        remedy = "transpose them from NCHW" if pixels.shape[1] in range(1, _MAX_CHANNELS + 1) else "reshape them"
        raise DataError(
            f"{where}: expected images [N, H, W, C] of 1 to {_MAX_CHANNELS} channels, got shape {images.shape}; "
            f"{remedy}"
        )
    return pixels


def unit_range(images: np.ndarray, where: str) -> np.ndarray:
    """Brings uint8 (divided by 255) or floating-point pixels to float32 in [0, 1].

    Args:
        images: any shape.
        where: file and key, for the message.

    Raises:
        DataError: another dtype, NaN, or values outside [0, 1].

    >>> unit_range(np.array([0, 255], np.uint8), "demo")
    array([0., 1.], dtype=float32)
    """
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(
            f"{where}: expected uint8 or floating-point images, got dtype {images.dtype}; "
            "convert them, for example with images.astype(numpy.uint8)"
        )
    # Not `min() < 0 or max() > 1`, which lets NaN through.
    if images.size and not (images.min() >= 0 and images.max() <= 1):
        raise DataError(
            f"{where}: expected images in [0, 1], got values from {images.min()} to {images.max()}; "
            "undo the normalisation, or store 0..255 as uint8"
        )
    return images.astype(np.float32)


def resize(images: np.ndarray, image_size: int) -> np.ndarray:
    """Resizes to a square with Pillow's bilinear filter, which averages over all pixels where it shrinks.

    Args:
        images: `[N, H, W, C]` float32 in [0, 1].
        image_size: side of the result, at least 1.

    Returns:
        `[N, image_size, image_size, C]` float32 in [0, 1].

    Raises:
        DataError: a size below 1.
    """
    if image_size < 1:
        raise DataError(f"image_size: expected at least 1, got {image_size}; pass the side of the model's input")
    count, height, width, channels = images.shape
    if height == width == image_size:
        return images
    resized = np.empty((count, image_size, image_size, channels), np.float32)
    side = (image_size, image_size)
    for index in range(count):
        for channel in range(channels):
            plane = Image.fromarray(np.ascontiguousarray(images[index, :, :, channel]))
            resized[index, :, :, channel] = np.asarray(plane.resize(side, Image.Resampling.BILINEAR))
    return resized.clip(0, 1)


def _checked_labels(labels: np.ndarray, count: int, where: str) -> np.ndarray:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        remedy = "store numpy.argmax(labels, axis=1)" if labels.ndim == 2 else "store class indices"
        raise DataError(f"{where}: expected integer labels [N], got shape {labels.shape} of {labels.dtype}; {remedy}")
    if len(labels) != count:
        raise DataError(
            f"{where}: expected one label per image, got {count} images and {len(labels)} labels; "
            "store both from the same split"
        )
    if count and (labels.min() < 0 or labels.max() >= MAX_CLASSES):
        raise DataError(
            f"{where}: expected labels in [0, {MAX_CLASSES}), got {labels.min()} to {labels.max()}; "
            "number the classes from 0"
        )
    return labels.astype(np.int32)
