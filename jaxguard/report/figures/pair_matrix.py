"""Drawing of triggers from one class to another: a cell per source and target."""

import numpy as np

from jaxguard.report import wording
from jaxguard.report.figures import svg
from jaxguard.types import TriggerRow

MAX_CLASSES = 50
"""Of more classes no cell could be seen."""

MAX_NUMBERS = 12
"""Cells hold their numbers where there are at most so many classes."""

_SIZE = 7.0


def pair_matrix(row: TriggerRow, num_classes: int, *, name: str) -> str:
    """Draws how far each source class can be turned into each target: the darker, the higher the margin.

    Args:
        row: of a kind whose triggers are for the images of one class.
        num_classes: `K`.
        name: unique on the page.

    Returns:
        An inline `<svg>` element, sources from top to bottom, targets from left to right, in each cell the share of
        images that are turned, in percent; pairs that were not searched are empty. Nothing for a kind of all sources,
        or more than `MAX_CLASSES`.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    if row.sources is None or num_classes > MAX_CLASSES:
        return ""
    side = 0.3 if num_classes <= MAX_NUMBERS else max(3.6 / num_classes, 0.08)
    edge, size = 0.5, side * num_classes
    figure = Figure(figsize=(edge + size + 0.05, edge + size + 0.05), dpi=220)
    whole = edge + size + 0.05
    axes = figure.add_axes((edge / whole, 0.05 / whole, size / whole, size / whole))
    known = row.margin[np.isfinite(row.margin)]
    low, span = (float(known.min()), float(np.ptp(known)) or 1.0) if known.size else (0.0, 1.0)
    for source, target, margin, success in zip(row.sources, row.classes, row.margin, row.success, strict=True):
        shade = 0.04 + 0.86 * (margin - low) / span if np.isfinite(margin) else 0.0
        axes.add_patch(Rectangle((target, source), 1, 1, facecolor=svg.AFTER, alpha=shade, lw=0))
        if num_classes <= MAX_NUMBERS and np.isfinite(success):
            ink = svg.PAPER if shade > 0.5 else svg.INK
            svg.literal(
                axes.text(
                    target + 0.5, source + 0.5, f"{100 * success:.0f}", size=_SIZE, color=ink, ha="center", va="center"
                )
            )
    first = int(row.order[0])
    place = (int(row.classes[first]), int(row.sources[first]))
    axes.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor=svg.ALERT, lw=1.5))
    axes.set(xlim=(0, num_classes), ylim=(num_classes, 0))
    step = max(1, num_classes // 12)
    ticks, words = np.arange(0, num_classes, step) + 0.5, [str(k) for k in range(0, num_classes, step)]
    axes.set_xticks(ticks, words)
    axes.set_yticks(ticks, words)
    axes.tick_params(
        length=0, labelsize=_SIZE, labelcolor=svg.INK, top=True, labeltop=True, bottom=False, labelbottom=False
    )
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("into class", size=_SIZE, color=svg.MUTED)
    axes.set_ylabel("images of class", size=_SIZE, color=svg.MUTED)
    for spine in axes.spines.values():
        spine.set(color=svg.RULE, linewidth=0.6)
    told = f"class {place[1]} into class {place[0]}: {wording.percent(float(row.success[first]))} of the images"
    return svg.inline(
        figure, name=name, description=f"Triggers by source and target. The highest: {told}.", max_scale=1.35
    )
