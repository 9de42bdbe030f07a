"""Pairing of producers' kernels with the BatchNorm they are scored together with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

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
    """

    name: str
    sources: tuple[tuple[int, int], ...]
    affine: int | None
    channels: int


def alone(graph: ChannelGraph, producer: str) -> Layer:
    """A producer's channels with the norm that follows it alone: what its gate switches off.

    Args:
        graph: the model's channel graph.
        producer: its name.

    Returns:
        The layer, named like the producer.

    Raises:
        GraphError: there is no such producer.
    """
    found = graph.producer(producer)
    return Layer(found.name, ((graph.producers.index(found), 0),), found.affine, found.channels)


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
    found: list[tuple[int, Layer]] = []
    covered: set[int] = set()
    for number, affine in enumerate(graph.affines):
        # A norm counts only if every one of its channels comes from a producer.
        reached = np.zeros(affine.channels, bool)
        for producer, offset in affine.sources:
            reached[offset : offset + graph.producers[producer].channels] = True
        if affine.sources and reached.all():
            covered.update(producer for producer, _ in affine.sources)
            names = " + ".join(graph.producers[producer].name for producer, _ in affine.sources)
            layer = Layer(f"{names} -> {affine.name}", affine.sources, number, affine.channels)
            found.append((affine.position, layer))
    seen = {repr(graph.producers[number].kernel) for number in covered}
    for number, producer in enumerate(graph.producers):
        if number not in graph.outputs and repr(producer.kernel) not in seen:
            seen.add(repr(producer.kernel))
            found.append((producer.position, Layer(producer.name, ((number, 0),), None, producer.channels)))
    return tuple(layer for _, layer in sorted(found, key=lambda item: item[0]))


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
        found.append(Layer(f"{producer.name} -> {affine.name}", ((before[-1], 0),), number, affine.channels))
    return tuple(found)
