"""Drawings of channel scores: one strip per layer, or the highest z-score of each."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxguard.report import evidence, wording
from jaxguard.report.figures import svg
from jaxguard.types import LayerScores, LayerSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Standardized(NamedTuple):
    """One layer's scores as z-scores.

    Attributes:
        z: `[C]`, (score - mean) / sample standard deviation over the defined channels; NaN where undefined.
        threshold: the layer's threshold on the same scale; NaN where there is none.
        limit: the largest z that a layer of this many channels can reach, (n - 1) / sqrt(n).
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


def as_scores(layer: LayerSummary) -> LayerScores:
    """The scores of a scanned layer, nothing of which is cut.

    Args:
        layer: one that kept its scores.
    """
    scores = np.asarray(layer.scores, np.float64)
    return LayerScores(layer.name, scores, layer.threshold, np.zeros(scores.shape, bool), ~np.isfinite(scores))


def channel_strips(layers: Sequence[LayerScores], *, name: str) -> str:
    """Draws one strip per layer, in program order: every channel a dot at its z-score, the threshold a bar.

    Channels a defense cuts are filled diamonds, channels above the threshold but not cut are hollow triangles. To the
    right of a strip stands what the dots cannot show: no threshold, a threshold out of reach, undefined channels.

    Args:
        layers: at least one; 3 layers and 60 are both readable, strips get lower as there are more.
        name: unique on the page.

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
        svg.label(axes, -0.02, index, wording.shorten(layer.name), size=font, ha="right")
        svg.label(axes, 1.02, index, remark, size=6, ha="left", color=svg.MUTED)
    axes.hlines(np.arange(len(layers) - 1) + 0.5, 0, 1, color=svg.RULE, lw=0.5, transform=axes.get_yaxis_transform())
    _legend(axes, _draw_channels(axes, layers, scaled))
    axes.set_yticks([])
    svg.baseline(axes, size=7.5)
    axes.set_xlabel("z-score of the channel within its layer", color=svg.INK, fontsize=7.5)
    cut, total = evidence.cut_count(layers)
    above = sum(int(np.sum(np.asarray(layer.scores) > layer.threshold)) for layer in layers)
    undefined = sum(int(np.sum(layer.undefined)) for layer in layers)
    description = (
        f"Scores of {total} channels in {len(layers)} layers: {above} above their layer's threshold, {cut} cut, "
        f"{undefined} without a score. Thresholds and z-scores end at "
        f"{wording.number(max(finite))}."
    )
    return svg.inline(figure, name=name, description=description, max_scale=1.4)


def _draw_channels(axes: "Axes", layers: Sequence[LayerScores], scaled: Sequence[Standardized]) -> set[str]:
    """Draws the dots and thresholds of all layers; returns which kinds of mark there are."""
    z = np.concatenate([own.z for own in scaled])
    rows = np.concatenate([np.full(own.z.size, index) for index, own in enumerate(scaled)])
    heights = rows + 0.56 * svg.jitter(z.size)
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


def _legend(axes: "Axes", shown: set[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        (True, Line2D([], [], ls="", marker="o", ms=3.5, color=svg.DOT, label="channel")),
        ("threshold" in shown, Line2D([], [], ls="", marker="|", ms=9, mew=1.4, color=svg.INK, label="threshold")),
        (
            "above" in shown,
            Line2D([], [], ls="", marker="^", ms=5.5, mfc="none", color=svg.ALERT, label="above threshold"),
        ),
        ("cut" in shown, Line2D([], [], ls="", marker="D", ms=5, color=svg.ALERT, label="cut")),
    ]
    svg.legend(axes, [handle for is_used, handle in handles if is_used], size=7.5)


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


def layer_profile(layers: Sequence[LayerSummary], *, name: str) -> str:
    """Draws the highest channel z-score of every layer, in program order, the highest of all marked and named.

    Args:
        layers: of one checkpoint; those without a z-score leave a gap.
        name: unique on the page.

    Returns:
        An inline `<svg>` element; empty where no layer has a z-score.
    """
    from matplotlib.figure import Figure

    z = np.array([layer.z for layer in layers], np.float64)
    places = np.flatnonzero(np.isfinite(z))
    if not places.size:
        return ""
    figure = Figure(figsize=(5.6, 1.45), dpi=220)
    axes = figure.add_axes((0.07, 0.22, 0.91, 0.6))
    low = min(0.0, float(z[places].min()))
    axes.vlines(places, low, z[places], color=svg.BEFORE, lw=1.4)
    axes.plot(places, z[places], ls="", marker="o", ms=3.6, color=svg.BEFORE)
    highest = int(places[np.argmax(z[places])])
    axes.vlines(highest, low, z[highest], color=svg.ALERT, lw=1.6)
    axes.plot(highest, z[highest], ls="", marker="D", ms=5.5, color=svg.ALERT, clip_on=False)
    axes.set_xlim(-0.8, len(layers) - 0.2)
    axes.set_ylim(low, float(z[places].max()) * 1.08)
    _name_highest(axes, layers, highest)
    svg.baseline(axes, size=9.0, sides=("bottom", "left"))
    axes.set_xticks([])
    axes.set_xlabel(f"{wording.plural(len(layers), 'layer')}, from input to output", color=svg.INK, fontsize=9.0)
    label = wording.printable(layers[highest].name)
    description = f"Highest channel z-score of each of {len(layers)} layers; the highest, {z[highest]:.3g}, in {label}."
    return svg.inline(figure, name=name, description=description, max_scale=1.4)


def _name_highest(axes: "Axes", layers: Sequence[LayerSummary], highest: int) -> None:
    found = layers[highest]
    text = f"{wording.shorten(found.name.partition(' -> ')[0])}[{found.channel}]"
    share = (highest + 0.5) / len(layers)
    side = "left" if share < 0.3 else "right" if share > 0.7 else "center"
    place = axes.annotate(text, (highest, found.z), (0, 7), textcoords="offset points", ha=side, fontsize=9.0)
    svg.literal(place, color=svg.ALERT)
