"""How channels travel: which axes of a value they run over, and the layers they come from, primitive by primitive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxguard.graph.program import Equation, Value


@dataclass(frozen=True)
class Stream:
    """Channels that reach a value linearly: the axes they run over, and the producers they come from."""

    axes: tuple[int, ...]
    sources: tuple[tuple[int, int], ...]


def moved(eqn: Equation, streams: Mapping[Value, Stream], shapes: Sequence[tuple[int, ...]]) -> Stream | None:
    """Stream of the result of an equation that moves or sums elements and keeps channels apart, or None."""
    move = MOVES.get(eqn.name)
    stream = next((streams[v] for v in eqn.inputs if v in streams), None)
    return move(eqn, stream, streams, shapes) if move and stream else None


def _transposed(eqn: Equation, stream: Stream, *_: Any) -> Stream:
    return replace(stream, axes=tuple(eqn.params["permutation"].index(k) for k in stream.axes))


def _broadcast(eqn: Equation, stream: Stream, *_: Any) -> Stream:
    return replace(stream, axes=tuple(eqn.params["broadcast_dimensions"][k] for k in stream.axes))


def _reshaped(eqn: Equation, stream: Stream, _: Any, shapes: Sequence[tuple[int, ...]]) -> Stream | None:
    """Only unit axes may come and go."""
    source, target = shapes[eqn.inputs[0]], shapes[eqn.outputs[0]]
    before = [k for k, size in enumerate(source) if size != 1]
    after = [k for k, size in enumerate(target) if size != 1]
    if [source[k] for k in before] != [target[k] for k in after] or not {*stream.axes} <= {*before}:
        return None
    return replace(stream, axes=tuple(after[before.index(k)] for k in stream.axes))


def _summed(eqn: Equation, stream: Stream, _: Any, shapes: Sequence[tuple[int, ...]]) -> Stream | None:
    kept = [k for k in range(len(shapes[eqn.inputs[0]])) if k not in eqn.params["axes"]]
    return replace(stream, axes=tuple(map(kept.index, stream.axes))) if {*stream.axes} <= {*kept} else None


def _pooled(eqn: Equation, stream: Stream, *_: Any) -> Stream | None:
    return stream if all(eqn.params["window_dimensions"][k] == 1 for k in stream.axes) else None


def _sliced(eqn: Equation, stream: Stream, _: Any, shapes: Sequence[tuple[int, ...]]) -> Stream | None:
    source, target = shapes[eqn.inputs[0]], shapes[eqn.outputs[0]]
    return stream if all(source[k] == target[k] for k in stream.axes) else None


def _padded(eqn: Equation, stream: Stream, *_: Any) -> Stream | None:
    edges = [eqn.params["padding_config"][k] for k in stream.axes]
    if not any(any(edge) for edge in edges):
        return stream
    low, _, interior = edges[0]
    return _shifted(stream, low) if len(edges) == 1 and low >= 0 and not interior else None


def _concatenated(
    eqn: Equation, stream: Stream, streams: Mapping[Value, Stream], shapes: Sequence[tuple[int, ...]]
) -> Stream | None:
    if stream.axes != (eqn.params["dimension"],):
        return None
    sources: list[tuple[int, int]] = []
    offset = 0
    for value in eqn.inputs:
        if value in streams:
            sources += _shifted(streams[value], offset).sources
        offset += shapes[value][stream.axes[0]]
    return Stream(stream.axes, tuple(sources))


def _shifted(stream: Stream, offset: int) -> Stream:
    return replace(stream, sources=tuple((producer, start + offset) for producer, start in stream.sources))


MOVES: dict[str, Callable[..., Stream | None]] = {
    "transpose": _transposed,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshaped,
    "squeeze": _reshaped,
    "expand_dims": _reshaped,
    "reduce_sum": _summed,
    "reduce_window_sum": _pooled,
    "slice": _sliced,
    "pad": _padded,
    "concatenate": _concatenated,
}
"""Primitive name -> how a stream passes through it."""
