"""What all drawings share: matplotlib figures as inline SVG in the colours and typeface of the page, labels, a legend.

Figures are drawn with matplotlib's object-oriented API, which touches no global state of pyplot and needs no display.
In the SVG each of the placeholder colours below becomes a CSS variable, so one drawing serves light mode, dark mode and
print. Text stays text: it can be searched, selected and read aloud.
"""

import html
import io
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

INK = "#010203"
"""Text and axes."""
MUTED = "#010204"
"""Secondary text, thresholds out of focus."""
RULE = "#010205"
"""Grid lines and row separators."""
PAPER = "#010206"
"""The background, for outlines that cut shapes apart."""
BEFORE = "#010207"
"""The checkpoint as it came."""
AFTER = "#010208"
"""The checkpoint after repair."""
ALERT = "#010209"
"""Channels above the threshold."""
DOT = "#7d8fa3"
"""Ordinary channels: rasterised, so one fixed grey-blue that is visible on white and on black."""

_VARIABLES = {
    INK: "var(--ink, #1c2126)",
    MUTED: "var(--muted, #59636e)",
    RULE: "var(--rule, #d5dae0)",
    PAPER: "var(--paper, #ffffff)",
    BEFORE: "var(--before, #8a94a0)",
    AFTER: "var(--after, #1f5fa8)",
    ALERT: "var(--alert, #b3261e)",
}
_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "jaxguard", "path.simplify": False}


def inline(figure: "Figure", *, name: str, description: str, max_scale: float = 1.0) -> str:
    """Renders a figure as one `<svg>` element.

    Args:
        figure: drawn with this module's colours.
        name: unique on the page; prefixes every id in the SVG, for several figures share one document.
        description: what the picture shows, for those who cannot see it; escaped here.
        max_scale: how far it may grow beyond its natural size; drawn small, its text stays legible on a phone.

    Returns:
        An `<svg role="img">` element that scales with its container.
    """
    import matplotlib as mpl

    with mpl.rc_context(_SETTINGS), warnings.catch_warnings(), io.StringIO() as stream:
        # Glyphs are drawn by the browser's font; matplotlib's own lacking one only makes its measure approximate.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
        text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    text = re.sub(r"(font: [^'\";]*?px) [^;\"]*", r"\1 var(--sans, sans-serif)", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, variable)
    width = round(figure.get_figwidth() * 96 * max_scale)
    style = f"display:block;width:100%;max-width:{width}px;height:auto;overflow:visible"
    opening = f'<svg role="img" aria-label="{html.escape(description)}" style="{style}"'
    return re.sub(r'<svg( (?:height|width)="[^"]*")*', lambda _: opening, text, count=1).replace("\n", " ").strip()


def jitter(count: int) -> np.ndarray:
    """Offsets `[count]` in [-0.5, 0.5) by the golden ratio: the same every time, and neighbours never share one."""
    return (np.arange(count) * 0.6180339887498949) % 1.0 - 0.5


def label(axes: "Axes", x: float, row: float, text: str, *, size: float, ha: str, **style: Any) -> None:
    """Writes text beside a row: `x` in widths of the axes, `row` in data.

    Args:
        axes: where.
        x: 0 is the left edge of the axes, 1 the right one.
        row: the centre of the text.
        text: shown as it is: a `$` in a layer's name is a dollar sign.
        size: in points.
        ha: `left` or `right` of the point.
        **style: of the text; INK by default.
    """
    literal(axes.text(x, row, text, size=size, ha=ha, va="center", transform=axes.get_yaxis_transform()), **style)


def literal(text: "Text", **style: Any) -> None:
    """Takes any meaning as mathematics from a text, and sets its style; INK by default."""
    text.set(color=style.pop("color", INK), **style)
    text.set_parse_math(False)


def room(names: Sequence[str], *, size: float, least: float, most: float) -> float:
    """Inches that the longest of some names takes at a size in points, bold or not, within bounds."""
    return min(max(0.12 + 0.0087 * size * max(map(len, names), default=0), least), most)


def baseline(axes: "Axes", *, size: float, sides: Sequence[str] = ("bottom",)) -> None:
    """Leaves of a frame the sides that carry ticks, in quiet colours."""
    axes.tick_params(colors=INK, labelsize=size, length=3, width=0.6)
    for side, spine in axes.spines.items():
        spine.set(color=MUTED, linewidth=0.6, visible=side in sides)


def legend(axes: "Axes", handles: Sequence["Line2D"], *, size: float, rows: int = 1) -> None:
    """Puts a legend above the axes; its texts are literal."""
    drawn = axes.legend(
        handles=list(handles),
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=-(-len(handles) // rows),
        frameon=False,
        fontsize=size,
        labelcolor=INK,
        borderpad=0.2,
        handletextpad=0.1,
        columnspacing=1.2,
    )
    for text in drawn.get_texts():
        text.set_parse_math(False)
