"""Matplotlib figures as inline SVG that takes its colours and typeface from the page.

Figures are drawn with the placeholder colours below; in the SVG each becomes a CSS variable, so one drawing serves
light mode, dark mode and print. Text stays text: it can be searched, selected and read aloud.
"""

import html
import io
import re
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
