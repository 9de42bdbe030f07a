"""The last layers of a model, found through its channel graph."""

from __future__ import annotations

from collections.abc import Sequence

from jaxguard.graph import ChannelGraph, LeafView, Producer
from jaxguard.theft.protocol import TheftError


def last_layers(graph: ChannelGraph, count: int, method: str) -> tuple[Producer, ...]:
    """The layers whose channels are the logits, and those before them.

    Args:
        graph: the model's channel graph.
        count: how many, >= 1; where several layers make the logits they are one.
        method: for messages.

    Returns:
        Producers, the last in program order first but for the logits' own, which come before them.

    Raises:
        TheftError: the model has fewer layers, or none that makes logits.
    """
    makers = [graph.producers[number] for number in sorted(graph.outputs)]
    others = [producer for number, producer in enumerate(graph.producers) if number not in graph.outputs]
    if not makers or not 1 <= count <= 1 + len(others):
        raise TheftError(
            f"expected 1 to {1 + len(others)} layers, of which {len(makers)} make logits, came layers={count} in "
            f"{method}(); take layers=1 for the head, or None for the whole model"
        )
    return (*makers, *others[::-1][: count - 1])


def parameters(graph: ChannelGraph, layers: Sequence[Producer], method: str) -> frozenset[str]:
    """Leaves that layers learn: kernels, biases, and scale and bias of their own norms.

    Args:
        graph: the model's channel graph.
        layers: some of its producers.
        method: for messages.

    Returns:
        Leaf paths.

    Raises:
        TheftError: a leaf holds other layers as well.
    """
    views: list[LeafView | None] = []
    for layer in layers:
        views += [layer.kernel, layer.bias]
        if layer.affine is not None:
            affine = graph.affines[layer.affine]
            views += [affine.scale, affine.bias]
    found = [view for view in views if view is not None]
    for view in found:
        if not is_whole(graph, view):
            raise TheftError(
                f"expected a leaf for each layer, came '{view.path}', of which {layers[0].name} is one part, in "
                f"{method}(); store the layers apart, or take layers=None"
            )
    return frozenset(view.path for view in found)


def is_whole(graph: ChannelGraph, view: LeafView) -> bool:
    """Whether a view is of all its leaf.

    Args:
        graph: the model's channel graph.
        view: of one of its leaves.

    Returns:
        True or False.
    """
    shape = graph.program.shapes[graph.program.leaves[graph.program.paths.index(view.path)]]
    return view.index == tuple(slice(0, size) for size in shape)
