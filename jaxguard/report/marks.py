"""What all drawings share: labels that are never markup, one kind of axis, the legend above it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxguard.report import svg, wording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

_LABEL_CHARS = 32


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
    text.set(color=style.pop("color", svg.INK), **style)
    text.set_parse_math(False)


def shorten(name: str) -> str:
    """Cuts the middle out of a long name: its ends tell layers apart.

    >>> shorten("encoder/stage3/block11/attention/query/conv[17]")
    'encoder/stage3/…/query/conv[17]'
    """
    name = wording.printable(name).replace(" -> ", " → ")
    half = (_LABEL_CHARS - 1) // 2
    return name if len(name) <= _LABEL_CHARS else f"{name[:half]}…{name[-half:]}"


def distinct(names: Sequence[str]) -> list[str]:
    """Short names that still differ: what all paths share is left out, and what is then alike is numbered.

    >>> distinct(["runs/a/resnet20-a-very-long-name-that-says-little-1/m.npz", "runs/b/m.npz"])
    ['a/resnet20-a-ve…t-says-little-1', 'b']
    """
    short = [shorten(name) for name in wording.unshared(names)]
    if len(set(short)) == len(set(names)):
        return short
    return [f"{k}: {name}" for k, name in enumerate(short, 1)]


def room(names: Sequence[str], *, size: float, least: float, most: float) -> float:
    """Inches that the longest of some names takes at a size in points, bold or not, within bounds."""
    return min(max(0.12 + 0.0087 * size * max(map(len, names), default=0), least), most)


def baseline(axes: "Axes", *, size: float, sides: Sequence[str] = ("bottom",)) -> None:
    """Leaves of a frame the sides that carry ticks, in quiet colours."""
    axes.tick_params(colors=svg.INK, labelsize=size, length=3, width=0.6)
    for side, spine in axes.spines.items():
        spine.set(color=svg.MUTED, linewidth=0.6, visible=side in sides)


def legend(axes: "Axes", handles: Sequence["Line2D"], *, size: float, rows: int = 1) -> None:
    """Puts a legend above the axes; its texts are literal."""
    drawn = axes.legend(
        handles=list(handles),
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=-(-len(handles) // rows),
        frameon=False,
        fontsize=size,
        labelcolor=svg.INK,
        borderpad=0.2,
        handletextpad=0.1,
        columnspacing=1.2,
    )
    for text in drawn.get_texts():
        text.set_parse_math(False)
