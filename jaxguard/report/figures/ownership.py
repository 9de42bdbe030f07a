"""Drawing of one certificate's verdicts: what independent models score, and where each suspect lies among them."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxguard.report import evidence, headlines, wording
from jaxguard.report.figures import svg
from jaxguard.types import OwnershipReport, Verdict, Verification

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_ROWS = 40
"""Suspects that get a row of their own, highest scores first; all others share one."""

_SIZE = 7.0
_ROW, _STRIP = 0.23, 0.5
"""Inches of a suspect's row and of the strip of independent models."""


def score_strip(report: OwnershipReport, *, name: str) -> str:
    """Draws independent models as a strip of dots and below it one row per suspect, all on one axis of scores.

    Suspected copies are filled diamonds, suspects without evidence dots, inconclusive ones hollow. Where there are
    references enough, a bar marks the score beyond which the p-value is at most alpha.

    Args:
        report: suspects and references whose score is not finite are left out of the drawing.
        name: unique on the page.

    Returns:
        An inline `<svg>` element; empty where nothing has a score.
    """
    from matplotlib.figure import Figure

    references = np.asarray(report.references, np.float64)
    references = references[np.isfinite(references)]
    suspects = sorted((one for one in report.verifications if math.isfinite(one.score)), key=lambda one: -one.score)
    values = [*references, *(one.score for one in suspects)]
    if not values:
        return ""
    own, others = suspects[:MAX_ROWS], suspects[MAX_ROWS:]
    rows = len(own) + bool(others)
    strip = _STRIP if references.size else 0.0
    height = _ROW * rows + strip + 0.8
    figure = Figure(figsize=(5.6, height), dpi=220)
    names = wording.distinct([one.suspect for one in own])
    left = svg.room(names, size=_SIZE, least=1.3, most=2.1) / 5.6
    axes = figure.add_axes((left, 0.42 / height, 0.84 - left, (_ROW * rows + strip) / height))
    margin = 0.04 * (np.ptp(values) or abs(values[0]) or 1.0)
    axes.set_xlim(min(values) - margin, max(values) + margin)
    axes.set_ylim(rows - 0.5, -0.5 - strip / _ROW)
    bar = evidence.threshold(report)
    if math.isfinite(bar):
        axes.axvline(bar, color=svg.INK, lw=1.2, zorder=0.9)
        axes.axvspan(bar, axes.get_xlim()[1], color=svg.ALERT, alpha=0.07, lw=0, zorder=0.5)
    if references.size:
        _draw_references(axes, references, strip / _ROW)
    _draw_suspects(axes, own, names, others)
    axes.hlines(np.arange(rows) - 0.5, 0, 1, color=svg.RULE, lw=0.5, transform=axes.get_yaxis_transform(), zorder=0.6)
    _legend(axes, report, suspects, has_references=bool(references.size))
    axes.set_yticks([])
    svg.baseline(axes, size=_SIZE)
    method = wording.method_name(report.method)
    svg.literal(axes.set_xlabel(f"{method} score, higher is more like the owner", fontsize=_SIZE))
    return svg.inline(figure, name=name, description=_describe(report, suspects, references), max_scale=1.4)


def _draw_references(axes: "Axes", references: np.ndarray, rows: float) -> None:
    centre = -0.5 - rows / 2
    is_many = references.size > 300
    axes.scatter(
        references, centre + 0.62 * rows * svg.jitter(references.size), s=5 if is_many else 11,
        color=svg.DOT, alpha=0.8, lw=0, rasterized=is_many, zorder=3,
    )  # fmt: skip
    count = references.size
    label = f"{count} independent model{'s' * (count > 1)}"
    svg.label(axes, -0.02, centre, label, size=_SIZE, ha="right", color=svg.MUTED)


def _mark(verdict: Verdict) -> dict[str, Any]:
    """How a suspect is drawn."""
    if verdict is Verdict.SUSPECTED:
        return {"marker": "D", "color": svg.ALERT, "mec": svg.PAPER, "mew": 0.7, "ms": 6.0}
    if verdict is Verdict.NO_EVIDENCE:
        return {"marker": "o", "color": svg.AFTER, "mec": svg.PAPER, "mew": 0.7, "ms": 5.5}
    return {"marker": "o", "mfc": svg.PAPER, "mec": svg.INK, "mew": 1.1, "ms": 4.8}


def _draw_suspects(
    axes: "Axes", own: Sequence[Verification], names: Sequence[str], others: Sequence[Verification]
) -> None:
    for row, (one, label) in enumerate(zip(own, names, strict=True)):
        axes.plot(one.score, row, ls="", clip_on=False, zorder=4, **_mark(one.verdict))
        is_accused = one.verdict is Verdict.SUSPECTED
        style = {"color": svg.ALERT, "weight": "bold"} if is_accused else {}
        svg.label(axes, -0.02, row, label, size=_SIZE, ha="right", **style)
        ps = [f"p {wording.rate(one.p_value)}"]
        ps += [f"null {wording.rate(one.null_p_value)}"] if one.null_p_value is not None else []
        svg.label(axes, 1.02, row, ", ".join(ps), size=6, ha="left", color=svg.MUTED)
    for one in others:
        small: dict[str, Any] = _mark(one.verdict) | {"ms": 3.5}
        axes.plot(one.score, len(own), ls="", zorder=4, **small)
    if others:
        svg.label(axes, -0.02, len(own), f"{len(others)} others", size=_SIZE, ha="right", color=svg.MUTED)


def _legend(axes: "Axes", report: OwnershipReport, suspects: Sequence[Verification], *, has_references: bool) -> None:
    from matplotlib.lines import Line2D

    handles = []
    if has_references:
        handles.append(Line2D([], [], ls="", marker="o", ms=3.8, color=svg.DOT, label="independent"))
    for verdict in sorted({one.verdict for one in suspects}):
        handles.append(Line2D([], [], ls="", label=headlines.copy_verdict(verdict), **_mark(verdict)))
    if evidence.suffices(report):
        label = f"p ≤ {report.alpha:g} beyond"
        handles.append(Line2D([], [], ls="", marker="|", ms=9, mew=1.4, color=svg.INK, label=label))
    svg.legend(axes, handles[:6], size=_SIZE)


def _describe(report: OwnershipReport, suspects: Sequence[Verification], references: np.ndarray) -> str:
    parts = []
    if references.size:
        ends = f"{wording.number(references.min())} to {wording.number(references.max())}"
        parts.append(f"{references.size} independent models score {ends}")
    if suspects:
        ends = f"{wording.number(suspects[-1].score)} to {wording.number(suspects[0].score)}"
        accused = sum(one.verdict is Verdict.SUSPECTED for one in suspects)
        parts.append(f"{len(suspects)} suspects {ends}, {accused} of them suspected copies")
    bar = evidence.threshold(report)
    if math.isfinite(bar):
        parts.append(f"p at most {report.alpha:g} beyond {wording.number(bar)}")
    owner = wording.printable(report.owner)
    return f"{wording.method_name(report.method)} scores against {owner}: {'; '.join(parts)}."
