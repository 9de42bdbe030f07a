"""Pictures of a search for universal triggers: the patch, images before and after, and all classes side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxguard.errors import DataError
from jaxguard.report.figures import pair_matrix, pictures
from jaxguard.types import KindResult, Trigger, TriggerRow, TriggerSearch

MAX_CLASSES = 12
"""Classes with a row of the table, the leading ones first."""


class Bar(NamedTuple):
    """One class, or a pair of classes, at the leading size.

    Attributes:
        label: the class, or source and target.
        margin: T.
        share: length of the bar, of the span from the lowest margin to the highest, in [0, 1].
        success: share of the judged images.
        judged: their number.
    """

    label: str
    margin: float
    share: float
    success: float
    judged: int


class Shown(NamedTuple):
    """What the page shows of one kind of triggers; pictures are PNGs as `data:` URIs.

    Attributes:
        result: of the kind.
        row: of its leading size; None where none was searched to the end, and all that follows is empty.
        alone: what its leading trigger adds to an image, enlarged: a patch, a pattern, a difference, a grid moved.
        caption: what that picture is.
        plain: judging images as they are; empty where none were kept.
        stamped: the same with the trigger.
        answers: of the network, `(without, with)` for each image.
        bars: classes at the leading size, the leading ones first.
        more: classes that have none.
        sizes: `(size, leading class, gap, its success)` of every row of the kind.
        matrix: sources against targets, an `<svg>`; empty for triggers of all sources.
    """

    result: KindResult
    row: TriggerRow | None = None
    alone: str = ""
    caption: str = ""
    plain: str = ""
    stamped: str = ""
    answers: Sequence[tuple[int, int]] = ()
    bars: Sequence[Bar] = ()
    more: int = 0
    sizes: Sequence[tuple[float, str, float, float]] = ()
    matrix: str = ""


def shown(search: TriggerSearch, *, name: str = "search") -> list[Shown]:
    """Draws a search.

    Args:
        search: of one network; not trusted.
        name: unique on the page.

    Returns:
        What to show of each kind, the leading one first.

    Raises:
        DataError: the arrays do not fit each other.
    """
    for one in search.rows:
        _check(one, search.shape)
    leading = search.leading_result
    results = sorted(search.results, key=lambda one: one is not leading)
    return [_of_kind(search, one, f"{name}-{index}") for index, one in enumerate(results)]


def _of_kind(search: TriggerSearch, result: KindResult, name: str) -> Shown:
    rows = [one for one in search.rows if one.kind == result.kind]
    row = TriggerSearch(rows=tuple(rows), results=(result,)).leading
    if row is None:
        return Shown(result)
    images, plain, stamped = result.pictures, "", ""
    trigger = row.trigger(0, search.shape[0], search.shape[1])
    if images is not None and len(images):
        if np.shape(images)[1:] != tuple(search.shape) or np.asarray(result.answers).shape != (len(images), 2):
            raise DataError(
                f"expected pictures {tuple(search.shape)} with two answers each, got {np.shape(images)} and "
                f"{np.asarray(result.answers).shape} in the trigger search; search again"
            )
        plain, stamped = (pictures.strip(_visible(some)) for some in (images, trigger.stamp(images)))
    low, high = float(row.margin.min()), float(row.margin.max())
    span = high - low if np.isfinite(high - low) and high > low else 1.0
    bars = [
        Bar(
            row.goal(k),
            float(row.margin[k]),
            float(np.clip((row.margin[k] - low) / span, 0, 1)) if np.isfinite(row.margin[k]) else 0.0,
            float(row.success[k]),
            int(row.judged[k]),
        )
        for k in row.order[:MAX_CLASSES]
    ]
    sizes = [(one.size, one.goal(one.order[0]), one.gap, float(one.success[one.order[0]])) for one in rows]
    answers = [] if result.answers is None or not plain else [(int(a), int(b)) for a, b in result.answers]
    alone, caption = _alone(row, trigger, search.shape)
    drawn = pair_matrix.pair_matrix(row, search.num_classes, name=name)
    return Shown(result, row, alone, caption, plain, stamped, answers, bars, len(row.margin) - len(bars), sizes, drawn)


def _alone(row: TriggerRow, trigger: Trigger, shape: tuple[int, ...]) -> tuple[str, str]:
    """The trigger without an image, and what is shown."""
    if "pixels" in row.parameters:
        return pictures.strip(_visible(row.parameters["pixels"][:1])), "the patch, enlarged"
    if trigger.flow is not None:
        places = np.indices(shape[:2]).sum(0) if max(shape[:2]) < 8 else (np.indices(shape[:2]) // 4).sum(0)
        board = np.broadcast_to((places % 2)[..., None] * 0.6 + 0.2, shape)
        return pictures.strip(_visible(trigger.stamp(board)[None])), "a chequered image, moved"
    if trigger.delta is not None:
        largest = float(np.nanmax(np.abs(trigger.delta), initial=0.0)) or 1.0
        shown = f"what is added to the image, amplified {0.5 / largest:.2g} times around grey"
        return pictures.strip(_visible(0.5 + 0.5 * trigger.delta[None] / largest)), shown
    grey = np.full(shape, 0.5, np.float32)
    return pictures.strip(_visible(trigger.stamp(grey)[None])), "a grey image with the trigger"


def _visible(images: np.ndarray) -> np.ndarray:
    """Grey or RGB, for whatever number of channels."""
    channels = images.shape[-1]
    return images if channels in (1, 3) else images[..., :3] if channels > 3 else images.mean(-1, keepdims=True)


def _check(row: TriggerRow, shape: tuple[int, ...]) -> None:
    number, shapes = np.size(row.classes), {name: np.shape(part) for name, part in row.parameters.items()}
    given = (row.classes, row.margin, row.hits, row.judged, row.anomaly, row.sources)
    columns = {np.shape(column) for column in given if column is not None}
    kept = {some[:1] for some in shapes.values()}
    columns |= set() if row.sources is None else {np.shape(row.sources)}
    columns |= set() if row.assignments is None else {np.shape(row.assignments)[:-1]}
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
