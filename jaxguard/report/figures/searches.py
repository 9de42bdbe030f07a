"""Pictures of a search for universal triggers: the patch, images before and after, and all classes side by side."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxguard.errors import DataError
from jaxguard.report.figures import pictures
from jaxguard.types import TriggerRow, TriggerSearch

MAX_CLASSES = 12
"""Classes with a row of the table, the leading ones first."""


class Bar(NamedTuple):
    """One class at the leading size.

    Attributes:
        label: the class.
        margin: T.
        share: length of the bar, of the span from the lowest margin to the highest, in [0, 1].
        success: share of the judged images.
        judged: their number.
    """

    label: int
    margin: float
    share: float
    success: float
    judged: int


class Shown(NamedTuple):
    """What the page shows of one search; pictures are PNGs as `data:` URIs.

    Attributes:
        patch: the leading patch, enlarged; empty for triggers that are no patches.
        plain: judging images as they are; empty where none were kept.
        stamped: the same with the patch.
        answers: of the network, `(without, with)` for each image.
        bars: classes at the leading size, the leading ones first.
        more: classes that have none.
        sizes: `(size, leading class, gap, its success)` of every row of the leading kind.
    """

    patch: str
    plain: str
    stamped: str
    answers: list[tuple[int, int]]
    bars: list[Bar]
    more: int
    sizes: list[tuple[float, int, float, float]]


def shown(search: TriggerSearch) -> Shown | None:
    """Draws a search.

    Args:
        search: of one network; not trusted.

    Returns:
        What to show; None where no size was searched to the end.

    Raises:
        DataError: the arrays do not fit each other.
    """
    for one in search.rows:
        _check(one, search.shape)
    row, result = search.leading, search.leading_result
    if row is None or result is None:
        return None
    images = result.pictures
    plain = stamped = ""
    if images is not None and len(images):
        if np.shape(images)[1:] != tuple(search.shape) or np.asarray(result.answers).shape != (len(images), 2):
            raise DataError(
                f"expected pictures {tuple(search.shape)} with two answers each, got {np.shape(images)} and "
                f"{np.asarray(result.answers).shape} in the trigger search; search again"
            )
        trigger = row.trigger(0, search.shape[0], search.shape[1])
        plain, stamped = (pictures.strip(_visible(some)) for some in (images, trigger.stamp(images)))
    low, high = float(row.margin.min()), float(row.margin.max())
    span = high - low if np.isfinite(high - low) and high > low else 1.0
    bars = [
        Bar(
            int(row.classes[k]),
            float(row.margin[k]),
            float(np.clip((row.margin[k] - low) / span, 0, 1)) if np.isfinite(row.margin[k]) else 0.0,
            float(row.success[k]),
            int(row.judged[k]),
        )
        for k in row.order[:MAX_CLASSES]
    ]
    sizes = []
    for one in (one for one in search.rows if one.kind == row.kind):
        leading = int(one.order[0])
        sizes.append((one.size, int(one.classes[leading]), one.gap, float(one.success[leading])))
    answers = [] if result.answers is None or not plain else [(int(a), int(b)) for a, b in result.answers]
    patch = pictures.strip(_visible(row.parameters["pixels"][:1])) if "pixels" in row.parameters else ""
    return Shown(patch, plain, stamped, answers, bars, len(row.margin) - len(bars), sizes)


def _visible(images: np.ndarray) -> np.ndarray:
    """Grey or RGB, for whatever number of channels."""
    channels = images.shape[-1]
    return images if channels in (1, 3) else images[..., :3] if channels > 3 else images.mean(-1, keepdims=True)


def _check(row: TriggerRow, shape: tuple[int, ...]) -> None:
    number, shapes = np.size(row.classes), {name: np.shape(part) for name, part in row.parameters.items()}
    given = (row.classes, row.margin, row.hits, row.judged, row.anomaly, row.sources)
    columns = {np.shape(column) for column in given if column is not None}
    kept = {some[:1] for some in shapes.values()}
    fits = columns == {(number,)} and number > 0 and len(shape) == 3 and len(kept) == 1 and () not in kept
    if not (fits and 0 < min(kept)[0] <= number and _is_inside(row, shapes, shape)):
        raise DataError(
            f"expected triggers that fit images {tuple(shape)}, got {shapes} for {number} classes in the trigger "
            "search; search again"
        )


def _is_inside(row: TriggerRow, shapes: dict[str, tuple[int, ...]], shape: tuple[int, ...]) -> bool:
    """Whether all parts of the triggers lie in an image."""
    if shapes.keys() == {"corners", "pixels"}:
        corners, edges = np.asarray(row.parameters["corners"]), shapes["pixels"][1:3]
        if shapes["corners"][1:] != (2,) or len(shapes["pixels"]) != 4 or shapes["pixels"][3] != shape[2]:
            return False
        return bool((corners >= 0).all() and (corners + np.array(edges) <= np.array(shape[:2])).all())
    depths = {"mask": (1, shape[2]), "pattern": (shape[2],), "delta": (shape[2],), "flow": (2,)}
    parts = [some[1:] in [(*shape[:2], depth) for depth in depths.get(name, ())] for name, some in shapes.items()]
    return all(parts) and ("mask" in shapes) == ("pattern" in shapes)
