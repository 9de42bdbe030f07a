"""Drawing of owners against suspects: a heat map in which models that answer alike lie side by side."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxguard.report import evidence, wording
from jaxguard.report.figures import svg
from jaxguard.types import FingerprintMatrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

MAX_NUMBERS = 12
"""Cells hold their numbers where there are at most so many owners and so many suspects."""

MAX_LEAVES = 400
"""Of more suspects no dendrogram is drawn: it would be a blur."""

_SIZE = 6.5
_ROW, _LOWEST = 0.135, 0.085
"""Inches of a row, and those below which rows and columns are too narrow for names."""


class Order(NamedTuple):
    """Rows and columns arranged by likeness.

    Attributes:
        owners: `[A]` indices, by the place of the suspect most like each.
        suspects: `[B]` indices, the highest score in the first half.
        heights: per join of the dendrogram four heights: up from one branch, across, down to the other; empty where
            suspects are ordered by their score alone.
        places: the same in rows of the drawing.
    """

    owners: np.ndarray
    suspects: np.ndarray
    heights: np.ndarray
    places: np.ndarray


def arrange(scores: np.ndarray) -> Order:
    """Orders suspects by average linkage of their scores, with one owner by score; owners follow their best suspects.

    Args:
        scores: `[A, B]`; what is undefined counts as its owner's mean, what is infinite as the owner's extreme.

    Returns:
        The order of both sides.

    >>> arrange(np.array([[0.1, 0.9, 0.2, 1.0]])).suspects.tolist()
    [3, 1, 2, 0]
    """
    from scipy.cluster import hierarchy

    known = _finite(scores)
    owners, suspects = np.arange(known.shape[0]), np.arange(known.shape[1])
    heights = places = np.zeros((0, 4))
    if not len(owners) or len(suspects) < 2:
        return Order(owners, suspects, heights, places)
    if len(owners) == 1 or len(suspects) > MAX_LEAVES:
        suspects = np.argsort(-known.max(0), kind="stable")
        return Order(np.argsort(np.argmax(known[:, suspects], axis=1), kind="stable"), suspects, heights, places)
    tree = hierarchy.dendrogram(
        hierarchy.linkage(known.T, "average", optimal_ordering=len(suspects) <= 200), no_plot=True
    )
    suspects, heights = np.array(tree["leaves"]), np.array(tree["dcoord"])
    places = (np.array(tree["icoord"]) - 5) / 10  # scipy puts leaves at 5, 15, 25, …
    if int(np.argmax(known.max(0)[suspects])) >= len(suspects) / 2:
        suspects, places = suspects[::-1], len(suspects) - 1 - places
    owners = np.argsort(np.argmax(known[:, suspects], axis=1), kind="stable")
    return Order(owners, suspects, heights, places)


def heat_map(matrix: FingerprintMatrix, *, name: str) -> str:
    """Draws scores as colours: a row per suspect, a column per owner, beside them the dendrogram of the suspects.

    Args:
        matrix: 1 x 3 and 30 x 100 are both readable; undefined scores leave their cells empty.
        name: unique on the page.

    Returns:
        An inline `<svg>` element; empty where no score is finite.

    Raises:
        DataError: not one score per owner and suspect.
    """
    from matplotlib.figure import Figure

    scores = evidence.checked_scores(matrix)
    if not np.isfinite(scores).any():
        return ""
    order = arrange(scores)
    cells = scores[np.ix_(order.owners, order.suspects)].T
    owners, suspects = wording.distinct(matrix.owners), wording.distinct(matrix.suspects)
    rows, columns = cells.shape
    has_numbers = max(rows, columns) <= MAX_NUMBERS
    row = 0.22 if has_numbers else float(np.clip(14 / rows, 0.02, _ROW))
    column = float(np.clip(3.3 / columns, 0.01, 0.52))
    left, right = svg.room(suspects, size=_SIZE, least=0.3, most=2.0), 0.65 if len(order.heights) else 0.15
    top = 0.25 if columns == 1 else svg.room(owners, size=_SIZE, least=0.25, most=2.0)
    bottom = 0.62
    width, height = max(left + column * columns + right, 3.2), top + row * rows + bottom
    figure = Figure(figsize=(width, height), dpi=220)

    def add_axes(x: float, y: float, w: float, h: float) -> "Axes":
        return figure.add_axes((x / width, y / height, w / width, h / height))

    axes = add_axes(left, bottom, column * columns, row * rows)
    low, high = _limits(scores)
    colours = _colours()
    axes.imshow(np.ma.masked_invalid(cells), cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="none")
    axes.axis("off")
    for edges, draw in ((np.arange(1, rows), axes.axhline), (np.arange(1, columns), axes.axvline)):
        for edge in edges if min(row, column) >= _LOWEST else ():
            draw(edge - 0.5, color=svg.PAPER, lw=0.7)
    if has_numbers:
        _write_numbers(axes, cells, (low, high), colours, column)
    if row >= _LOWEST:
        for place, index in enumerate(order.suspects):
            text = axes.text(-0.5 - 0.06 / column, place, suspects[index], size=_SIZE, ha="right", va="center")
            svg.literal(text)
    if column >= _LOWEST:
        is_alone = columns == 1
        size = min(_SIZE, 68 * column)
        style = {"size": size, "va": "bottom", "ha": "left" if is_alone else "center", "rotation": 90 * (not is_alone)}
        for place, index in enumerate(order.owners):
            svg.literal(axes.text(place - 0.5 * is_alone, -0.5 - 0.06 / row, owners[index], **style))
    if len(order.heights):
        _draw_tree(add_axes(left + column * columns + 0.05, bottom, right - 0.1, row * rows), order, rows)
    _draw_scale(add_axes(left, 0.36, max(min(column * columns, 1.8), 1.2), 0.09), (low, high), colours, matrix.method)
    return svg.inline(figure, name=name, description=_describe(matrix, scores), max_scale=1.35)


def _finite(scores: np.ndarray) -> np.ndarray:
    known = np.where(np.isfinite(scores), scores, np.nan)
    rows = []
    for row, own in zip(scores, known, strict=True):
        values = own[~np.isnan(own)] if not np.isnan(own).all() else np.zeros(1)
        rows.append(np.nan_to_num(row, nan=values.mean(), posinf=values.max(), neginf=values.min()))
    return np.array(rows).reshape(scores.shape)


def _limits(scores: np.ndarray) -> tuple[float, float]:
    known = scores[np.isfinite(scores)]
    low, high = float(known.min()), float(known.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _colours() -> "Colormap":
    """One map for light and dark pages: neither end melts into the page."""
    import matplotlib as mpl
    from matplotlib.colors import LinearSegmentedColormap

    shades = mpl.colormaps["viridis"](np.linspace(0.12, 0.97, 256))
    return LinearSegmentedColormap.from_list("scores", list(map(tuple, shades)))


def _write_numbers(
    axes: "Axes", cells: np.ndarray, limits: tuple[float, float], colours: "Colormap", width: float
) -> None:
    low, high = limits
    texts = np.array(wording.aligned(cells.ravel(), digits=2), object).reshape(cells.shape)
    size = min(_SIZE, 100 * width / max(map(len, texts.ravel())))
    for (row, column), value in np.ndenumerate(cells):
        if np.isfinite(value):
            red, green, blue, _ = colours((value - low) / (high - low))
            is_light = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45
            ink = "#000000" if is_light else "#ffffff"
        else:
            ink = svg.MUTED
        text = axes.text(column, row, str(texts[row, column]), size=size, ha="center", va="center")
        svg.literal(text, color=ink)


def _draw_tree(axes: "Axes", order: Order, rows: int) -> None:
    from matplotlib.collections import LineCollection

    segments = np.stack([order.heights, order.places], -1)
    axes.add_collection(LineCollection(list(segments), colors=svg.MUTED, linewidths=0.7))
    axes.set_xlim(0, order.heights.max() * 1.02 or 1.0)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.axis("off")


def _draw_scale(axes: "Axes", limits: tuple[float, float], colours: "Colormap", method: str) -> None:
    axes.imshow(np.linspace(0, 1, 128)[None], cmap=colours, aspect="auto", extent=(*limits, 0, 1))
    axes.set_yticks([])
    axes.set_xticks(limits, wording.aligned(limits))
    svg.baseline(axes, size=_SIZE, sides=())
    svg.literal(axes.set_xlabel(f"{wording.method_name(method)} score", fontsize=_SIZE, labelpad=1))


def _describe(matrix: FingerprintMatrix, scores: np.ndarray) -> str:
    known = scores[np.isfinite(scores)]
    missing = f", {scores.size - known.size} undefined" if known.size < scores.size else ""
    return (
        f"{wording.method_name(matrix.method)} scores of {len(matrix.suspects)} suspects against "
        f"{len(matrix.owners)} owners, {wording.number(known.min())} to {wording.number(known.max())}{missing}; "
        "alike suspects lie side by side."
    )
