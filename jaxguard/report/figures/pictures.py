"""Pictures of triggers: images with and without one, what it changes, and the patches an inversion recovered."""

import base64
import dataclasses
import io
import math
from typing import NamedTuple

import numpy as np

from jaxguard.errors import DataError
from jaxguard.types import RecoveredTrigger, TriggerExample

MAX_IMAGES = 6
"""Images in a strip: as many as stay recognisable on a phone."""

MAX_GAIN = 50
"""Largest amplification of the difference: beyond it, rounding to 8 bits would be shown as trigger."""

MAX_PATCHES = 9
"""Recovered patches that are shown besides the suspected class's, the smallest first."""

MAX_COMPARED = 4
"""Images on which a recovered trigger is shown beside the known one."""

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
    return TriggerStrips(strip(clean), strip(triggered), strip(difference * gain), gain, len(clean))


class Patch(NamedTuple):
    """What was recovered for one class.

    Attributes:
        label: the class.
        picture: mask, pattern, and their product side by side: a PNG as `data:` URI with transparent gaps.
    """

    label: int
    picture: str


def recovered_patches(trigger: RecoveredTrigger) -> list[Patch]:
    """Renders the suspected class's patch, and the `MAX_PATCHES` smallest of the others.

    Args:
        trigger: `shown` may be empty, and need not hold the suspected class.

    Returns:
        One entry per class: the suspected one, then the others, smallest mask first.

    Raises:
        DataError: the arrays do not fit each other, or name classes that do not exist.
    """
    _check(trigger)
    rows = sorted(range(len(trigger.shown)), key=lambda row: trigger.shown[row] != trigger.target)
    has_suspect = bool(rows) and trigger.shown[rows[0]] == trigger.target
    return [Patch(int(trigger.shown[row]), strip(_layers(trigger, row))) for row in rows[: MAX_PATCHES + has_suspect]]


class Comparison(NamedTuple):
    """The same images with the known and with the recovered trigger."""

    known: TriggerStrips
    recovered: TriggerStrips


def compare_triggers(known: TriggerExample, recovered: RecoveredTrigger) -> Comparison | None:
    """Stamps the suspected class's patch on the images of the known trigger's example.

    Args:
        known: the example; its first `MAX_COMPARED` images are shown.
        recovered: what stands beside it.

    Returns:
        Strips of both; None where no class is suspected, its patch was not kept, or it has another size.

    Raises:
        DataError: the example is not a pair of equal image arrays, or the patches do not fit each other.
    """
    _check(recovered)
    shown = [int(label) for label in recovered.shown]
    if recovered.target not in shown or np.shape(recovered.patterns)[1:] != np.shape(known.clean)[1:]:
        return None
    row = shown.index(recovered.target)
    mask, pattern = np.asarray(recovered.masks[row]), np.asarray(recovered.patterns[row])
    example = dataclasses.replace(known, clean=known.clean[:MAX_COMPARED], triggered=known.triggered[:MAX_COMPARED])
    stamped = (1 - mask) * np.asarray(example.clean) + mask * pattern
    return Comparison(trigger_strips(example), trigger_strips(dataclasses.replace(example, triggered=stamped)))


def _layers(trigger: RecoveredTrigger, row: int) -> np.ndarray:
    mask, pattern = np.asarray(trigger.masks[row], np.float32), np.asarray(trigger.patterns[row], np.float32)
    return np.stack([np.broadcast_to(mask, pattern.shape), pattern, mask * pattern])


def _check(trigger: RecoveredTrigger) -> None:
    classes, shown = np.size(trigger.norms), np.asarray(trigger.shown)
    masks, patterns = np.shape(trigger.masks), np.shape(trigger.patterns)
    fits = not shown.size or (
        len(patterns) == 4 and patterns[-1] in (1, 3) and 0 not in patterns and masks == (*patterns[:-1], 1)
    )
    per_class = np.shape(trigger.norms), np.shape(trigger.success), np.shape(trigger.anomaly)
    labels = [*shown.ravel(), *([] if trigger.target is None else [trigger.target])]
    if (
        not fits
        or shown.size != (masks or (0,))[0]
        or {*per_class} != {(classes,)}
        or not {*labels} <= {*range(classes)}
    ):
        raise DataError(
            f"expected masks [R, H, W, 1] and patterns [R, H, W, 1 or 3] of R classes, got {masks} and {patterns} for "
            f"classes {shown.tolist()}, target {trigger.target} and {per_class} norms, successes and anomaly indices "
            "in the recovered trigger; pass one entry per class in the latter and one patch per class in `shown`"
        )


def strip(images: np.ndarray) -> str:
    """Images side by side, enlarged by whole pixels: a PNG as `data:` URI with transparent gaps.

    Args:
        images: `[N, H, W, 1 or 3]` in [0, 1].

    Returns:
        The URI.
    """
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
