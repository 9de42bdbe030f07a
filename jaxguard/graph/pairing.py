"""Pairing of producers' kernels with the BatchNorm they are scored together with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from jaxguard.errors import GraphError, UnscorableError
from jaxguard.graph.channel_graph import ChannelGraph

Pairing = Literal["dataflow", "module_order"]


@dataclass(frozen=True)
class Layer:
    """One layer of channels to be scored.

    Attributes:
        name: what is scored: `conv1 -> bn1`, `conv2 + conv1 -> bn1` for a residual sum, `conv1` without a norm.
        sources: `(producer number, offset)`: producer channel `c` is layer channel `offset + c`.
        affine: number of the affine that scales the channels, or None.
        channels: number of channels `C`.
        uses: numbers of the affines, or of the producers where there is none, that apply the same weights, such as in
            every step of a recurrent layer; the first is the layer's own.
    """

    name: str
    sources: tuple[tuple[int, int], ...]
    affine: int | None
    channels: int
    uses: tuple[int, ...] = ()


def alone(graph: ChannelGraph, producer: str) -> Layer:
    """A producer's channels with the norm that follows it alone: what its gate switches off.

    Where the same weights are applied several times, they are one layer, and its channels are those of all uses.

    Args:
        graph: the model's channel graph.
        producer: its name.

    Returns:
        The layer, named like the producer.

    Raises:
        GraphError: there is no such producer.
    """
    found = graph.producer(producer)
    number = graph.producers.index(found)
    same = [k for k, first in enumerate(graph.first_uses) if first == graph.first_uses[number]]
    if found.affine is None:
        return Layer(found.name, ((number, 0),), None, found.channels, (number, *(k for k in same if k != number)))
    own = _affine_key(graph, found.affine)
    uses = (k for k in range(len(graph.affines)) if k != found.affine and _affine_key(graph, k) == own)
    return Layer(found.name, ((number, 0),), found.affine, found.channels, (found.affine, *uses))


def layers(graph: ChannelGraph, pairing: Pairing = "dataflow") -> tuple[Layer, ...]:
    """Pair producers with the BatchNorm behind them.

    Args:
        graph: the model's channel graph.
        pairing: `dataflow` follows the arrays, also through residual sums and concatenations, and scores producers
            without a norm on their own; the model's output layer is left out. `module_order` reproduces the reference
            code: each BatchNorm is paired with the last convolution before it, in the order the model calls them, and
            nothing else is scored.

    Returns:
        The layers, in program order.

    Raises:
        UnscorableError: nothing can be scored.
        GraphError: module order pairs layers of different widths, or there is no such pairing.
    """
    if pairing not in get_args(Pairing):
        raise GraphError(f"expected pairing 'dataflow' or, as in the reference, 'module_order', got {pairing!r}")
    found = _by_dataflow(graph) if pairing == "dataflow" else _by_module_order(graph)
    if not found:
        missing, hint = (
            ("BatchNorm behind a convolution", "take pairing='dataflow', which scores layers without one")
            if pairing == "module_order"
            else ("hidden convolution or dense layer", "a model of one layer has no hidden channels")
        )
        raise UnscorableError(f"expected a {missing} to score, got none among {len(graph.producers)} producers; {hint}")
    return found


def _by_dataflow(graph: ChannelGraph) -> tuple[Layer, ...]:
    found: dict[Any, tuple[int, Layer]] = {}
    covered: set[int] = set()
    for number, affine in enumerate(graph.affines):
        # A norm counts only if every one of its channels comes from a producer.
        reached = np.zeros(affine.channels, bool)
        for producer, offset in affine.sources:
            reached[offset : offset + graph.producers[producer].channels] = True
        if affine.sources and reached.all():
            covered.update(graph.first_uses[producer] for producer, _ in affine.sources)
            names = " + ".join(graph.producers[producer].name for producer, _ in affine.sources)
            layer = Layer(f"{names} -> {affine.name}", affine.sources, number, affine.channels, (number,))
            _add(found, _affine_key(graph, number), affine.position, layer)
    for number, producer in enumerate(graph.producers):
        if number not in graph.outputs and graph.first_uses[number] not in covered:
            layer = Layer(producer.name, ((number, 0),), None, producer.channels, (number,))
            _add(found, graph.first_uses[number], producer.position, layer)
    return tuple(layer for _, layer in sorted(found.values(), key=lambda item: item[0]))


def _affine_key(graph: ChannelGraph, number: int) -> Any:
    """Equal for affines that scale the channels of the same kernels by the same leaves."""
    affine = graph.affines[number]
    # By first use: a layer that is applied twice is one set of channels, scored once.
    kernels = tuple((graph.first_uses[producer], offset) for producer, offset in affine.sources)
    return kernels, repr((affine.scale, affine.var, affine.mean, affine.bias))


def _add(found: dict[Any, tuple[int, Layer]], key: Any, position: int, layer: Layer) -> None:
    """Keep a layer, or note that it is another use of one that was found before."""
    if key in found:
        begin, first = found[key]
        found[key] = begin, replace(first, uses=(*first.uses, *layer.uses))
    else:
        found[key] = position, layer


def _by_module_order(graph: ChannelGraph) -> tuple[Layer, ...]:
    convolutions = [(p.position, number) for number, p in enumerate(graph.producers) if p.is_convolution]
    found = []
    for number, affine in enumerate(graph.affines):
        before = [producer for position, producer in convolutions if position < affine.position]
        if affine.var is None or not before:
            continue
        producer = graph.producers[before[-1]]
        if producer.channels != affine.channels:
            raise GraphError(
                f"expected the last convolution before {affine.name} to have its {affine.channels} channels, "
                f"got {producer.name} with {producer.channels} at {producer.where}; take pairing='dataflow'"
            )
        found.append(Layer(f"{producer.name} -> {affine.name}", ((before[-1], 0),), number, affine.channels, (number,)))
    return tuple(found)
