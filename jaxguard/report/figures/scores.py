"""Drawing of the scores of one cohort of checkpoints among its references."""

from collections.abc import Sequence

import numpy as np

from jaxguard.report import wording
from jaxguard.report.figures import svg
from jaxguard.types import Finding, Reference, Verdict

BINS = 28
_SIZE = 9.0
_PLACES = 150
"""Diamonds that stand beside each other at most; those on one place are drawn once."""


def score_distribution(findings: Sequence[Finding], reference: Reference | None, *, name: str) -> str:
    """Draws the scores of one cohort as shares: the checkpoints filled, clean references a line, backdoored dashed.

    Suspected checkpoints stand above as diamonds, for among thousands no share shows them.

    Args:
        findings: of one cohort; scores that are not finite are left out.
        reference: what they were compared with, if anything.
        name: unique on the page.

    Returns:
        An inline `<svg>` element; empty where nothing has a score.
    """
    from matplotlib.figure import Figure

    scores = _finite([one.score for one in findings])
    suspected = _finite([one.score for one in findings if one.verdict == Verdict.SUSPECTED])
    clean = _finite(reference.scores if reference is not None else ())
    backdoored = _finite(reference.suspects if reference is not None else ())
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
    svg.baseline(axes, size=_SIZE)
    axes.set_xlabel("score", color=svg.INK, fontsize=_SIZE)
    parts = [_span(wording.plural(scores.size, "checkpoint"), scores), _span("suspected ones", suspected)]
    parts += [_span(wording.plural(clean.size, "clean reference"), clean), _span("backdoored ones", backdoored)]
    description = f"Distribution of the score: {'; '.join(filter(None, parts))}."
    return svg.inline(figure, name=name, description=description)


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
