"""How channels travel: which axes of a value they run over, and which layers they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxguard.graph import axes
from jaxguard.graph.axis_rules import Axes
from jaxguard.graph.primitives import row
from jaxguard.graph.program import Equation
from jaxguard.graph.ties import axes_of


@dataclass(frozen=True)
class Stream:
    """Channels that reach a value linearly: the axes they run over, and the producers they come from.

    Attributes:
        axes: axes of the value, slowest first.
        sources: `(producer number, offset)`: producer channel `c` is channel `offset + c`.
    """

    axes: tuple[int, ...]
    sources: tuple[tuple[int, int], ...]


def merged(streams: Sequence[Stream]) -> Stream | None:
    """The stream of a sum of values, or of parts laid side by side; None where their channels do not line up."""
    if len({stream.axes for stream in streams}) != 1:
        return None
    return Stream(streams[0].axes, tuple(dict.fromkeys(source for stream in streams for source in stream.sources)))


def moved(eqn: Equation, streams: Sequence[Stream | None], shapes: Sequence[tuple[int, ...]]) -> Stream | None:
    """Where an equation that moves or sums elements takes the channels of its operands.

    The rule that ties its axes is applied to the axes of this one equation: channels arrive where the result has an
    axis tied to theirs, whole and in order.

    Args:
        eqn: an equation with one result, linear in its operands.
        streams: of each operand, None where it has none.
        shapes: shape of every value.

    Returns:
        Stream of the result; None if the channels of an operand end here.
    """
    operands, (result,) = [axes_of(shapes[v]) for v in eqn.inputs], [axes_of(shapes[v]) for v in eqn.outputs]
    row(eqn).ties(eqn, operands, [result])
    arrived = [
        _arrived(stream, nodes, result) for stream, nodes in zip(streams, operands, strict=True) if stream is not None
    ]
    found = [stream for stream in arrived if stream is not None]
    return merged(found) if len(found) == len(arrived) else None


def _arrived(stream: Stream, operand: Axes, result: Axes) -> Stream | None:
    places = [_place(operand[axis], result) for axis in stream.axes]
    found = [place for place in places if place is not None]
    if len(found) < len(places):
        return None
    is_whole = all(
        axes.find(result[k]) is axes.find(operand[axis]) for axis, (k, _) in zip(stream.axes, found, strict=True)
    )
    if is_whole:
        return replace(stream, axes=tuple(k for k, _ in found))
    if len(found) > 1:  # channels numbered over several axes cannot be shifted along one of them
        return None
    ((axis, shift),) = found
    return Stream((axis,), tuple((number, start + shift) for number, start in stream.sources))


def _place(node: axes.Axis, result: Axes) -> tuple[int, int] | None:
    """Axis of the result that an operand's axis is, or is a part of, and how far along it begins."""
    if any(atom.frozen for atom, _ in axes.atoms(node)):
        return None
    for k, whole in enumerate(result):
        offset = 0
        for part in [whole] if axes.find(whole) is axes.find(node) else axes.summands(whole):
            if axes.find(part) is axes.find(node):
                return k, offset
            offset += axes.find(part).size
    return None
