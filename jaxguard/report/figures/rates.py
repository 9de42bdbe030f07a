"""Drawing of accuracy and attack success before and after a repair."""

import math

from jaxguard.report import wording
from jaxguard.report.figures import svg
from jaxguard.types import Repair


def rate_bars(repair: Repair, *, name: str) -> str:
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
        svg.label(axes, -0.045, index, label, size=9.5, ha="right", weight="bold")
        axes.vlines((0, 1), index - 0.42, index + 0.42, color=svg.RULE, lw=0.8, clip_on=False)
        for side, (rate, count) in zip((-0.2, 0.2), bars, strict=True):
            if rate is not None and math.isfinite(rate):
                bar = axes.barh(index + side, rate, height=0.3, clip_on=False, color=svg.AFTER)
                if side < 0:
                    bar[0].set(facecolor="none", edgecolor=svg.BEFORE, hatch="//////", linewidth=1.0)
                for color, width in ((svg.PAPER, 3.2), (svg.INK, 1.2)):  # a halo, to stand out from the bar
                    axes.hlines(index + side, *_wilson(rate, count), color=color, lw=width, clip_on=False)
            svg.label(axes, 1.03, index + side, wording.percent(rate), size=8.5, ha="left")
    description = f"{wording.method_name(repair.method)}, before and after: " + ", ".join(
        f"{label} {wording.change(old, new)}" for label, (old, _), (new, _) in rows
    )
    return svg.inline(figure, name=name, description=description)


def _wilson(rate: float, count: int) -> tuple[float, float]:
    """95 % interval of a rate measured on `count` images; empty (at the rate) where the count is unknown."""
    from scipy import stats

    if count <= 0:
        return rate, rate
    interval = stats.binomtest(round(rate * count), count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
