"""Drawings of a pruning by estimated scores: what each cut did, and which channels stood out from their errors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxguard.errors import DataError
from jaxguard.report import evidence, wording
from jaxguard.report.figures import svg
from jaxguard.types import LayerScores, PruningPath

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_ROWS = 30
"""Channels that get a row of their own; all others share one."""

_SIZE = 7.0


def pruning_curve(path: PruningPath, *, name: str) -> str:
    """Draws the success of the recovered trigger and the clean accuracy against the channels cut.

    What was only tried, beyond the cuts that were kept, is dashed and muted.

    Args:
        path: with at least one cut.
        name: unique on the page.

    Returns:
        An inline `<svg>` element; empty where nothing was cut.

    Raises:
        DataError: an array has another length than the channels ask for, or `chosen` is no count of them.
    """
    from matplotlib import ticker
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    tried, kept = len(path.channels), path.chosen
    attack, accuracy = (100 * np.asarray(rates, np.float64) for rates in (path.attack, path.accuracy))
    shapes = [np.shape(one) for one in (path.values, path.errors, path.attack, path.accuracy)]
    if shapes != [(tried,)] * 2 + [(tried + 1,)] * 2 or not 0 <= kept <= tried:
        raise DataError(
            f"expected {tried} values and errors, {tried + 1} rates of attack and accuracy, 0 to {tried} chosen, "
            f"got shapes {shapes} and {kept} in the pruning path; measure once before any cut and once after each"
        )
    if not tried:
        return ""
    figure = Figure(figsize=(4.0, 2.3))
    axes = figure.add_axes((0.125, 0.17, 0.855, 0.66))
    axes.set_xlim(-0.02 * tried, 1.02 * tried)
    axes.set_ylim(0, 104)
    cuts = np.arange(tried + 1)
    every = max(1, tried // 25)
    handles = []
    for rates, color, marker, label in (
        (accuracy, svg.AFTER, "s", "clean accuracy"),
        (attack, svg.ALERT, "o", "success of the recovered trigger"),
    ):
        axes.plot(cuts[kept:], rates[kept:], color=svg.MUTED, lw=0.9, ls=(0, (3, 2)), clip_on=False, zorder=2)
        axes.plot(
            cuts[: kept + 1],
            rates[: kept + 1],
            color=color,
            lw=1.5,
            marker=marker,
            ms=3,
            markevery=every,
            clip_on=False,
        )
        axes.plot(kept, rates[kept], color=color, marker=marker, ms=6, mec=svg.PAPER, mew=0.8, clip_on=False, zorder=4)
        handles.append(Line2D([], [], ls="", color=color, marker=marker, ms=4.5, label=label))
    axes.axvline(kept, color=svg.INK, lw=1.2, zorder=0.9)
    handles.append(Line2D([], [], ls="", marker="|", ms=9, mew=1.4, color=svg.INK, label=f"{kept} kept"))
    if kept < tried:
        handles.append(Line2D([], [], ls="", marker="_", ms=9, mew=0.9, color=svg.MUTED, label="only tried"))
    svg.legend(axes, handles, size=_SIZE, rows=2)
    svg.baseline(axes, size=_SIZE, sides=("bottom", "left"))
    axes.grid(axis="y", color=svg.RULE, lw=0.5)
    axes.set_axisbelow(True)
    axes.set_yticks((0, 25, 50, 75, 100), ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.xaxis.set_major_locator(ticker.MaxNLocator(10, integer=True))
    axes.set_xlabel("channels cut", color=svg.INK, fontsize=_SIZE, labelpad=2)
    return svg.inline(figure, name=name, description=_describe_path(path), max_scale=1.6)


class Ranked(NamedTuple):
    """All channels that have a score, the highest first.

    Attributes:
        names: such as `layer2_0/conv1[17]`.
        scores: finite.
        errors: standard errors; NaN where unknown.
        is_cut: whether a defense edits the channel.
    """

    names: list[str]
    scores: np.ndarray
    errors: np.ndarray
    is_cut: np.ndarray


def rank(layers: Sequence[LayerScores]) -> Ranked:
    """Sorts the channels of all layers into one order; ties keep the order of the program.

    >>> layer = LayerScores("conv", np.array([1.0, np.nan, 3.0]), np.inf, np.zeros(3, bool), np.isnan([0, np.nan, 0]))
    >>> rank([layer]).names
    ['conv[2]', 'conv[0]']
    """
    names = [f"{layer.name}[{channel}]" for layer in layers for channel in range(len(layer.scores))]
    unknown = [np.full(len(layer.scores), np.nan) if layer.errors is None else layer.errors for layer in layers]
    scores, errors = (np.concatenate(parts, dtype=np.float64) for parts in ([one.scores for one in layers], unknown))
    is_cut = np.concatenate([layer.mask for layer in layers], dtype=bool)
    is_known = np.isfinite(scores) & ~np.concatenate([layer.undefined for layer in layers], dtype=bool)
    order = np.argsort(np.where(is_known, -scores, np.inf), kind="stable")[: is_known.sum()]
    errors = np.where(np.isfinite(errors), errors, np.nan)
    return Ranked([names[index] for index in order], scores[order], errors[order], is_cut[order])


def ranked_scores(layers: Sequence[LayerScores], *, name: str, quantity: str) -> str:
    """Draws the highest scores of the model with their standard errors, a channel a row; the others share the last row.

    A score that is an estimate is compared over the whole model: between layers it means the same.

    Args:
        layers: with standard errors, where they are known.
        name: unique on the page.
        quantity: what the scores are, such as `Shapley value`.

    Returns:
        An inline `<svg>` element; empty where no channel has a score.
    """
    from matplotlib.figure import Figure

    ranked = rank(layers)
    total, rows = len(ranked.names), min(len(ranked.names), MAX_ROWS)
    if not total:
        return ""
    heights = 0.145 * rows + (0.3 if total > rows else 0)
    height = heights + 0.62
    figure = Figure(figsize=(4.0, height), dpi=220)
    axes = figure.add_axes((0.4, 0.35 / height, 0.58, heights / height))
    axes.set_ylim(heights / 0.145 - 0.5, -0.5)
    for row, channel in enumerate(ranked.names[:rows]):
        svg.label(axes, -0.02, row, wording.shorten(channel), size=6.2, ha="right")
    _draw_rows(axes, ranked, rows)
    if total > rows:
        axes.axhline(rows - 0.5, color=svg.RULE, lw=0.6)
        svg.label(axes, -0.02, rows + 0.5, f"the other {total - rows}", size=6.2, ha="right", color=svg.MUTED)
    axes.axvline(0, color=svg.MUTED, lw=0.6, zorder=0.8)
    axes.set_yticks([])
    svg.baseline(axes, size=_SIZE)
    axes.set_xlabel(quantity, color=svg.INK, fontsize=_SIZE, labelpad=2)
    cut, seen = evidence.cut_count(layers)
    description = (
        f"{quantity} of {total} channels in {len(layers)} layers, the {rows} highest one by one with standard errors: "
        f"{wording.number(ranked.scores[0])} to {wording.number(ranked.scores[-1])}; {cut} cut; "
        f"{seen - total} undefined."
    )
    return svg.inline(figure, name=name, description=description, max_scale=1.6)


def _draw_rows(axes: "Axes", ranked: Ranked, rows: int) -> None:
    from matplotlib.lines import Line2D

    index = np.arange(len(ranked.names))
    is_rest = index >= rows
    heights = np.where(is_rest, rows + 0.5 + 1.3 * svg.jitter(index.size), index)
    has_error = ~is_rest & ~np.isnan(ranked.errors)
    low, high = ranked.scores - ranked.errors, ranked.scores + ranked.errors
    axes.hlines(index[:rows], 0, ranked.scores[:rows], color=svg.RULE, lw=0.6, zorder=0.7)
    axes.hlines(index[has_error], low[has_error], high[has_error], color=svg.INK, lw=0.9, zorder=4)
    is_plain = ~ranked.is_cut
    own = is_plain & ~is_rest
    axes.scatter(ranked.scores[own], heights[own], s=11, color=svg.DOT, lw=0, zorder=3)
    rest = is_plain & is_rest
    axes.scatter(ranked.scores[rest], heights[rest], s=4, color=svg.DOT, alpha=0.75, lw=0, rasterized=True)
    cut: dict[str, Any] = {"marker": "D", "facecolor": svg.ALERT, "edgecolor": svg.PAPER, "lw": 0.6}
    axes.scatter(ranked.scores[ranked.is_cut], heights[ranked.is_cut], s=17, zorder=3, **cut)
    handles = [
        (True, Line2D([], [], ls="", marker="o", ms=3.5, color=svg.DOT, label="channel")),
        (ranked.is_cut.any(), Line2D([], [], ls="", marker="D", ms=4.5, color=svg.ALERT, label="cut")),
        (has_error.any(), Line2D([], [], ls="", marker="_", ms=9, mew=0.9, color=svg.INK, label="± standard error")),
    ]
    svg.legend(axes, [handle for is_used, handle in handles if is_used], size=_SIZE)


def _describe_path(path: PruningPath) -> str:
    tried, kept = len(path.channels), path.chosen
    ends = [
        f"{label} {wording.change(float(rates[0]), float(rates[kept]))}"
        for label, rates in (("success of the recovered trigger", path.attack), ("clean accuracy", path.accuracy))
    ]
    beyond = (
        f"; after all {tried} that were tried {wording.percent(float(path.attack[-1]))} and "
        f"{wording.percent(float(path.accuracy[-1]))}"
        if kept < tried
        else ""
    )
    return f"Of {tried} cuts {kept} were kept: {', '.join(ends)}{beyond}."
