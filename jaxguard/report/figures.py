"""Drawings of a report: channel scores per layer, and rates before and after a repair.

Drawn with matplotlib's object-oriented API, so nothing here touches pyplot's global state or needs a display.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxguard.report import marks, svg, wording
from jaxguard.types import LayerScores, RepairReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Standardized(NamedTuple):
    """One layer's scores as z-scores.

    Attributes:
        z: `[C]`, (score - mean) / sample standard deviation over the defined channels; NaN where undefined.
        threshold: the layer's threshold on the same scale; NaN where there is none.
        limit: the largest z a layer of so many channels can reach, (n - 1) / sqrt(n).
    """

    z: np.ndarray
    threshold: float
    limit: float


def standardize(layer: LayerScores) -> Standardized:
    """Puts a layer's scores and threshold on the scale all layers share.

    Args:
        layer: any threshold, of any sign; fewer than two defined scores, or equal ones, have no spread.

    Returns:
        z-scores; all NaN, and no threshold, for a layer without spread.

    >>> layer = LayerScores("bn", np.array([1.0, 2.0, 3.0]), 4.0, np.zeros(3, bool), np.zeros(3, bool))
    >>> standardize(layer).z.tolist(), standardize(layer).threshold
    ([-1.0, 0.0, 1.0], 2.0)
    """
    scores = np.where(np.asarray(layer.undefined, bool), np.nan, np.asarray(layer.scores, np.float64))
    scores = np.where(np.isfinite(scores), scores, np.nan)
    known = scores[np.isfinite(scores)]
    spread = float(known.std(ddof=1)) if known.size > 1 else 0.0
    limit = (known.size - 1) / math.sqrt(known.size) if known.size else 0.0
    if spread == 0:
        return Standardized(np.full(scores.shape, np.nan), math.nan, limit)
    threshold = (layer.threshold - known.mean()) / spread if math.isfinite(layer.threshold) else math.nan
    return Standardized((scores - known.mean()) / spread, float(threshold), limit)


def channel_strips(layers: Sequence[LayerScores], *, name: str, cut_label: str = "cut") -> str:
    """Draws one strip per layer, in program order: every channel a dot at its z-score, the threshold a bar.

    Channels a defense cuts are filled diamonds, channels above the threshold but not cut are hollow triangles. To the
    right of a strip stands what the dots cannot show: no threshold, a threshold out of reach, undefined channels.

    Args:
        layers: at least one; 3 layers and 60 are both readable, strips get lower as there are more.
        name: unique on the page.
        cut_label: what the mask means: a repair did cut these channels, a scan only would.

    Returns:
        An inline `<svg>` element; empty where no layer has a z-score to show.
    """
    from matplotlib.figure import Figure

    row = float(np.interp(len(layers), (8, 40), (0.3, 0.17)))
    font = float(np.interp(len(layers), (8, 40), (7.5, 6.5)))
    height = row * len(layers) + 0.75
    scaled = [standardize(layer) for layer in layers]
    finite = [value for own in scaled for value in (own.threshold, *own.z) if math.isfinite(value)]
    if not finite:
        return ""
    remarks = [_remark(layer, own) for layer, own in zip(layers, scaled, strict=True)]
    figure = Figure(figsize=(5.6, height), dpi=220)
    axes = figure.add_axes((0.34, 0.45 / height, 0.43 if any(remarks) else 0.65, row * len(layers) / height))
    left, right = min(*finite, -1.0), max(*finite, 1.0)
    axes.set_xlim(left - 0.04 * (right - left), right + 0.04 * (right - left))
    axes.set_ylim(len(layers) - 0.5, -0.5)
    for index, (layer, remark) in enumerate(zip(layers, remarks, strict=True)):
        marks.label(axes, -0.02, index, marks.shorten(layer.name), size=font, ha="right")
        marks.label(axes, 1.02, index, remark, size=6, ha="left", color=svg.MUTED)
    axes.hlines(np.arange(len(layers) - 1) + 0.5, 0, 1, color=svg.RULE, lw=0.5, transform=axes.get_yaxis_transform())
    _legend(axes, _draw_channels(axes, layers, scaled), cut_label)
    axes.set_yticks([])
    marks.baseline(axes, size=7.5)
    axes.set_xlabel("z-score of the channel within its layer", color=svg.INK, fontsize=7.5)
    cut, total = wording.cut_count(layers)
    above, _ = wording.above_count(layers)
    description = (
        f"Scores of {total} channels in {len(layers)} layers: {above} above their layer's threshold, {cut} marked as "
        f"{cut_label}, {wording.undefined_count(layers)} without a score. Thresholds and z-scores end at "
        f"{wording.number(max(finite))}."
    )
    return svg.inline(figure, name=name, description=description, max_scale=1.4)


def rate_bars(repair: RepairReport, *, name: str) -> str:
    """Draws ACC, ASR and RA before and after one repair, with 95 % Wilson intervals where image counts are known.

    Args:
        repair: with `before` and `after`.
        name: unique on the page.

    Returns:
        An inline `<svg>` element; empty where the repair was not measured.
    """
    from matplotlib.figure import Figure

    if repair.before is None or repair.after is None:
        return ""
    before, after = repair.before, repair.after
    rows = [
        (label, (old, old_count), (new, new_count))
        for label, old, old_count, new, new_count in (
            ("ACC", before.acc, before.num_images, after.acc, after.num_images),
            ("ASR", before.asr, before.num_triggered, after.asr, after.num_triggered),
            ("RA", before.ra, before.num_triggered, after.ra, after.num_triggered),
        )
        if old is not None or new is not None
    ]
    height = 0.62 * len(rows) + 0.06
    figure = Figure(figsize=(4.2, height))
    axes = figure.add_axes((0.12, 0.0, 0.7, 1.0))
    axes.set_xlim(0, 1)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.axis("off")
    for index, (label, *bars) in enumerate(rows):
        marks.label(axes, -0.045, index, label, size=9.5, ha="right", weight="bold")
        axes.vlines((0, 1), index - 0.42, index + 0.42, color=svg.RULE, lw=0.8, clip_on=False)
        for side, (rate, count) in zip((-0.2, 0.2), bars, strict=True):
            if rate is not None and math.isfinite(rate):
                bar = axes.barh(index + side, rate, height=0.3, clip_on=False, color=svg.AFTER)
                if side < 0:
                    bar[0].set(facecolor="none", edgecolor=svg.BEFORE, hatch="//////", linewidth=1.0)
                for color, width in ((svg.PAPER, 3.2), (svg.INK, 1.2)):  # a halo, to stand out from the bar
                    axes.hlines(index + side, *_wilson(rate, count), color=color, lw=width, clip_on=False)
            marks.label(axes, 1.03, index + side, wording.percent(rate), size=8.5, ha="left")
    description = f"{wording.method_name(repair.method)}, before and after: " + ", ".join(
        f"{label} {wording.change(old, new)}" for label, (old, _), (new, _) in rows
    )
    return svg.inline(figure, name=name, description=description)


def _draw_channels(axes: "Axes", layers: Sequence[LayerScores], scaled: Sequence[Standardized]) -> set[str]:
    """Draws the dots and thresholds of all layers; returns which kinds of mark there are."""
    z = np.concatenate([own.z for own in scaled])
    rows = np.concatenate([np.full(own.z.size, index) for index, own in enumerate(scaled)])
    # Low-discrepancy jitter: neighbours never share a height, and the picture is the same every time.
    heights = rows + 0.56 * ((np.arange(z.size) * 0.6180339887498949) % 1.0 - 0.5)
    is_defined = np.isfinite(z)
    is_cut = is_defined & np.concatenate([np.asarray(layer.mask, bool) for layer in layers])
    exceeds = np.concatenate([np.asarray(layer.scores) > layer.threshold for layer in layers])
    is_above = is_defined & exceeds & ~is_cut
    is_plain = is_defined & ~is_above & ~is_cut
    axes.scatter(z[is_plain], heights[is_plain], s=5, color=svg.DOT, alpha=0.75, lw=0, rasterized=True)
    axes.scatter(z[is_above], heights[is_above], s=17, marker="^", facecolor="none", edgecolor=svg.ALERT, lw=1.1)
    axes.scatter(z[is_cut], heights[is_cut], s=19, marker="D", facecolor=svg.ALERT, edgecolor=svg.PAPER, lw=0.7)
    bars = np.array([own.threshold for own in scaled])
    has_bar = np.isfinite(bars)
    starts = np.arange(len(layers))[has_bar] - 0.5
    axes.vlines(bars[has_bar], starts, starts + 1, color=svg.INK, lw=1.2, zorder=0.9)
    present = {"threshold": has_bar.any(), "above": is_above.any(), "cut": is_cut.any()}
    return {kind for kind, is_present in present.items() if is_present}


def _legend(axes: "Axes", shown: set[str], cut_label: str) -> None:
    from matplotlib.lines import Line2D

    handles = [
        (True, Line2D([], [], ls="", marker="o", ms=3.5, color=svg.DOT, label="channel")),
        ("threshold" in shown, Line2D([], [], ls="", marker="|", ms=9, mew=1.4, color=svg.INK, label="threshold")),
        (
            "above" in shown,
            Line2D([], [], ls="", marker="^", ms=5.5, mfc="none", color=svg.ALERT, label="above threshold"),
        ),
        ("cut" in shown, Line2D([], [], ls="", marker="D", ms=5, color=svg.ALERT, label=cut_label)),
    ]
    marks.legend(axes, [handle for is_used, handle in handles if is_used], size=7.5)


def _remark(layer: LayerScores, scaled: Standardized) -> str:
    undefined = int(np.sum(layer.undefined))
    if undefined == len(layer.undefined):
        return "all undefined"
    remarks = [f"{undefined} undefined"] if undefined else []
    if not math.isfinite(scaled.threshold):
        remarks.append("no threshold")
    elif scaled.threshold > scaled.limit:
        remarks.append("out of reach")
    return ", ".join(remarks)


def _wilson(rate: float, count: int) -> tuple[float, float]:
    """95 % interval of a rate measured on `count` images; empty (at the rate) where the count is unknown."""
    from scipy import stats

    if count <= 0:
        return rate, rate
    interval = stats.binomtest(round(rate * count), count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
