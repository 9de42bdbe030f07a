"""Drawing of a trigger inversion: how small the recovered trigger of every class is, and whether one stands out."""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxguard.report import evidence, wording
from jaxguard.report.figures import svg
from jaxguard.types import RecoveredTrigger

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

LOG_SPREAD = 30
"""Norms are drawn on a logarithmic scale where the largest is more than so many times the smallest."""

WORKING_SUCCESS = 0.5
"""A patch that turns a smaller share of the images is drawn hollow: its norm says little."""

_SIZE = 7.0


class Scale(NamedTuple):
    """What the anomaly index is measured on; NaN where there is no such scale.

    Attributes:
        median: norm of anomaly index 0.
        deviation: by how much the norm falls when the index grows by 1.
    """

    median: float
    deviation: float

    @property
    def flag(self) -> float:
        """Norm below which a class is flagged; at or below zero no patch is small enough."""
        return self.median - evidence.FLAGGED_ANOMALY * self.deviation


def scale(trigger: RecoveredTrigger) -> Scale:
    """Reads from norms and anomaly indices where the median and the flag threshold lie.

    The index falls linearly with the norm. A class for which no patch works may count as more than its norm; such
    classes share the lowest index, so whatever has the lowest index is left out where that leaves enough.

    Args:
        trigger: classes whose norm or index is not finite are left out.

    Returns:
        NaN where there are fewer than three classes, for two are always as far from their median, and where the indices
        are no linear function of the norms.

    >>> scale(RecoveredTrigger(np.array([4.0, 8, 9]), np.ones(3), np.array([4.0, 0, -1]), 0, *np.ones((3, 0)), ""))
    Scale(median=8.0, deviation=1.0)
    """
    norms, anomaly = np.asarray(trigger.norms, np.float64), np.asarray(trigger.anomaly, np.float64)
    is_known = np.isfinite(norms) & np.isfinite(anomaly)
    norms, anomaly = norms[is_known], anomaly[is_known]
    if anomaly.size < 3:
        return Scale(math.nan, math.nan)
    is_above = anomaly > anomaly.min()
    if np.unique(anomaly[is_above]).size > 1:
        norms, anomaly = norms[is_above], anomaly[is_above]
    low, high = int(np.argmin(anomaly)), int(np.argmax(anomaly))
    if anomaly[low] == anomaly[high] or norms[low] <= norms[high]:
        return Scale(math.nan, math.nan)
    deviation = float((norms[low] - norms[high]) / (anomaly[high] - anomaly[low]))
    median = float(norms[high] + deviation * anomaly[high])
    is_linear = np.allclose(median - deviation * anomaly, norms, rtol=1e-3, atol=1e-3 * np.ptp(norms))
    return Scale(median, deviation) if is_linear else Scale(math.nan, math.nan)


def counted_norms(trigger: RecoveredTrigger) -> np.ndarray:
    """`[K]` norms, or what the anomaly index counts a class as, where that differs."""
    own, norms = scale(trigger), np.asarray(trigger.norms, np.float64)
    if not math.isfinite(own.median):
        return norms
    counted = own.median - own.deviation * np.asarray(trigger.anomaly, np.float64)
    is_other = np.isfinite(counted) & ~np.isclose(counted, norms, rtol=1e-2, atol=1e-3 * abs(own.median))
    return np.where(is_other, counted, norms)


def class_norms(trigger: RecoveredTrigger, *, name: str) -> str:
    """Draws every class's norm by its distance from the median; the suspected class is a filled diamond.

    Other classes beyond the flag threshold are hollow triangles, classes whose patch fails hollow dots. A class stands
    at the norm that it counts as, or at the foot of the axes where it has none.

    Args:
        trigger: any number of classes; 2 and 200 are both readable.
        name: unique on the page.

    Returns:
        An inline `<svg>` element; empty where no norm is finite.
    """
    from matplotlib.figure import Figure

    counted, own = counted_norms(trigger), scale(trigger)
    known = counted[np.isfinite(counted)]
    if not known.size:
        return ""
    figure = Figure(figsize=(4.0, 2.3))
    axes = figure.add_axes((0.125, 0.17, 0.855, 0.66))
    if known.min() > 0 and known.max() > LOG_SPREAD * known.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.08 * known.max() or 1.0)
    axes.set_xlim(-0.6, counted.size - 0.4)
    handles = _draw_classes(axes, trigger, counted)
    svg.legend(axes, [*handles, *_draw_scale(axes, counted, own)], size=_SIZE, rows=2)
    _tick(axes, counted.size)
    svg.baseline(axes, size=_SIZE, sides=("bottom", "left"))
    axes.set_xlabel("class", color=svg.INK, fontsize=_SIZE, labelpad=2)
    axes.set_ylabel("L1 norm of the mask, pixels", color=svg.INK, fontsize=_SIZE)
    return svg.inline(figure, name=name, description=_describe(trigger, own), max_scale=1.6)


def _draw_classes(axes: "Axes", trigger: RecoveredTrigger, counted: np.ndarray) -> list["Line2D"]:
    """Draws the classes; returns a legend handle for each kind of mark there is."""
    from matplotlib.lines import Line2D

    classes = np.arange(counted.size)
    is_known, is_target = np.isfinite(counted), classes == trigger.target
    is_flagged = is_known & ~is_target & (np.asarray(trigger.anomaly) > evidence.FLAGGED_ANOMALY)
    fails = ~(np.asarray(trigger.success) >= WORKING_SUCCESS) | (counted != np.asarray(trigger.norms, np.float64))
    is_plain = is_known & ~is_target & ~is_flagged
    dot = float(np.interp(counted.size, (20, 200), (4.0, 2.6)))
    kinds: tuple[tuple[np.ndarray, str, float, dict[str, Any]], ...] = (
        (is_plain & ~fails, "class", dot, {"marker": "o", "color": svg.DOT}),
        (is_plain & fails, "its patch fails", dot, {"marker": "o", "mfc": svg.PAPER, "mec": svg.DOT}),
        (~is_known, "undefined", 3.5, {"marker": "x", "color": svg.MUTED}),
        (is_flagged, "flagged", 5.5, {"marker": "^", "mfc": svg.PAPER, "mec": svg.ALERT}),
        (is_known & is_target, "suspected", 6.0, {"marker": "D", "mfc": svg.ALERT, "mec": svg.PAPER, "mew": 0.7}),
    )
    handles = []
    for which, label, size, style in kinds:
        if which.any():
            (drawn,) = axes.plot(classes[which], counted[which], ls="", ms=size, clip_on=False, zorder=3, **style)
            if not (which & is_known).any():
                drawn.set(ydata=np.full(which.sum(), 0.03), transform=axes.get_xaxis_transform())
            handles.append(Line2D([], [], ls="", ms=size, label=label, **style))
    if trigger.target is not None and is_known[trigger.target]:
        is_left = trigger.target < 0.7 * counted.size
        name = axes.annotate(
            f"class {trigger.target}",
            (trigger.target, counted[trigger.target]),
            xytext=(6 if is_left else -6, 0),
            textcoords="offset points",
            ha="left" if is_left else "right",
            va="center",
            size=_SIZE,
        )
        svg.literal(name, color=svg.ALERT, weight="bold")
    return handles


def _draw_scale(axes: "Axes", counted: np.ndarray, own: Scale) -> list["Line2D"]:
    """Draws median and threshold, and the classes' distances from the median; returns legend handles."""
    from matplotlib.lines import Line2D

    handles = []
    if math.isfinite(own.median):
        away = np.flatnonzero(np.isfinite(counted) & (counted != own.median))
        axes.vlines(away, counted[away], own.median, color=svg.RULE, lw=1.6 if counted.size < 100 else 1.0, zorder=0.7)
        axes.axhline(own.median, color=svg.MUTED, lw=0.7, zorder=0.8)
        handles.append(Line2D([], [], ls="", marker="_", ms=10, mew=0.7, color=svg.MUTED, label="median"))
    if own.flag > 0:
        axes.axhline(own.flag, color=svg.INK, lw=1.2, zorder=0.9)
        threshold = f"anomaly index {evidence.FLAGGED_ANOMALY:g}"
        handles.append(Line2D([], [], ls="", marker="_", ms=10, mew=1.2, color=svg.INK, label=threshold))
    return handles


def _tick(axes: "Axes", classes: int) -> None:
    """Numbers every class where they are few, and the axis in few and plain numbers where they are many."""
    from matplotlib import ticker

    if classes <= 20:
        axes.set_xticks(range(classes))
    else:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(10, integer=True))
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    else:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(4))


def _describe(trigger: RecoveredTrigger, own: Scale) -> str:
    norms = np.asarray(trigger.norms, np.float64)
    known = norms[np.isfinite(norms)]
    parts = (
        [f"{wording.pixels(float(known.min()))} to {wording.pixels(float(known.max()))} pixels"] if known.size else []
    )
    if math.isfinite(own.median):
        parts.append(f"median {wording.pixels(own.median)}, threshold {wording.pixels(own.flag)}")
    if known.size < norms.size:
        parts.append(f"{norms.size - known.size} undefined")
    parts.append(evidence.suspicion(trigger))
    return f"L1 norms of the recovered triggers of {norms.size} classes: {'; '.join(parts)}."
