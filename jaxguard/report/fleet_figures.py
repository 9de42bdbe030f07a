"""Drawings of a fleet report: the scores of one bucket among its references, and one checkpoint's layers."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxguard.report import fleet_wording, marks, svg, wording
from jaxguard.types import FleetEntry, LayerSummary, Reference

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 28
_SIZE = 9.0
_PLACES = 150
"""Diamonds that stand beside each other at most; those on one place are drawn once."""


def score_distribution(entries: Sequence[FleetEntry], reference: Reference | None, *, name: str) -> str:
    """Draws the scores of one bucket as shares: the checkpoints filled, clean references a line, backdoored dashed.

    Suspected checkpoints stand above as diamonds, for among thousands no share shows them. Without a reference the
    scores are channel z-scores.

    Args:
        entries: of one bucket; scores that are not finite are left out.
        reference: what they were compared with, if anything.
        name: unique on the page.

    Returns:
        An inline `<svg>` element; empty where nothing has a score.
    """
    from matplotlib.figure import Figure

    is_judged = any(math.isfinite(entry.score) for entry in entries)
    quantity = "score" if is_judged else "highest channel z-score"
    found = [(entry.score if is_judged else entry.z, entry.verdict) for entry in entries]
    scores = _finite([score for score, _ in found])
    suspected = _finite([score for score, verdict in found if verdict == "backdoor suspected"])
    clean = _finite(reference.scores if reference is not None and is_judged else ())
    backdoored = _finite(reference.suspects if reference is not None and is_judged else ())
    everything = np.concatenate([scores, clean, backdoored])
    if not scores.size:
        return ""
    figure = Figure(figsize=(4.2, 2.1), dpi=220)
    axes = figure.add_axes((0.02, 0.23, 0.96, 0.75))
    edges = np.histogram_bin_edges(everything, bins=BINS)
    drawn = [_shares(values, edges) for values in (scores, clean, backdoored)]
    top = max(float(shares.max()) for shares in drawn)
    axes.stairs(drawn[0], edges, fill=True, color=svg.AFTER, alpha=0.45, lw=0)
    if clean.size:
        axes.stairs(drawn[1], edges, color=svg.INK, lw=1.3)
    if backdoored.size:
        axes.stairs(drawn[2], edges, color=svg.ALERT, lw=1.1, ls=(0, (3, 2)))
    axes.set_ylim(0, top * 1.22)
    axes.set_xlim(edges[0], edges[-1])
    _, first = np.unique(np.round(suspected * _PLACES / np.ptp(edges)), return_index=True)
    diamonds = suspected[first]
    axes.scatter(
        diamonds, np.full(diamonds.size, top * 1.12), s=26, marker="D", color=svg.ALERT, edgecolor=svg.PAPER, lw=0.7,
        clip_on=False, zorder=3,
    )  # fmt: skip
    axes.set_yticks([])
    marks.baseline(axes, size=_SIZE)
    axes.set_xlabel(quantity, color=svg.INK, fontsize=_SIZE)
    parts = [_span(fleet_wording.plural(scores.size, "checkpoint"), scores), _span("suspected ones", suspected)]
    parts += [_span(fleet_wording.plural(clean.size, "clean reference"), clean), _span("backdoored ones", backdoored)]
    description = f"Distribution of the {quantity}: {'; '.join(filter(None, parts))}."
    return svg.inline(figure, name=name, description=description)


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
    marks.baseline(axes, size=_SIZE, sides=("bottom", "left"))
    axes.set_xticks([])
    axes.set_xlabel(
        f"{fleet_wording.plural(len(layers), 'layer')}, from input to output", color=svg.INK, fontsize=_SIZE
    )
    label = wording.printable(layers[highest].name)
    description = f"Highest channel z-score of each of {len(layers)} layers; the highest, {z[highest]:.3g}, in {label}."
    return svg.inline(figure, name=name, description=description, max_scale=1.4)


def _name_highest(axes: "Axes", layers: Sequence[LayerSummary], highest: int) -> None:
    found = layers[highest]
    text = f"{marks.shorten(found.name.partition(' -> ')[0])}[{found.channel}]"
    share = (highest + 0.5) / len(layers)
    side = "left" if share < 0.3 else "right" if share > 0.7 else "center"
    place = axes.annotate(text, (highest, found.z), (0, 7), textcoords="offset points", ha=side, fontsize=_SIZE)
    marks.literal(place, color=svg.ALERT)


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    numbers = np.asarray(values, np.float64)
    return numbers[np.isfinite(numbers)]


def _shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    counts, _ = np.histogram(values, edges)
    return counts / max(values.size, 1)


def _span(what: str, values: np.ndarray) -> str:
    if not values.size:
        return ""
    return f"{what} {wording.number(values.min())} to {wording.number(values.max())}"
