"""How far unlearning moved each channel's weights, and the channels that moved the most."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import programs
from jaxguard.graph import ChannelGraph
from jaxguard.types import Variables


def neuron_weight_change(
    graph: ChannelGraph, before: Variables, after: Variables, *, decimals: int | None = None
) -> tuple[np.ndarray, ...]:
    """NWC of every channel: the L1 norm of the change of its kernel (TSBD, section 3; OTBR, stage 1).

    It is not divided by the fan-in, so wide layers score higher; biases and norms are ignored.

    Args:
        graph: the model's channel graph.
        before: its variables.
        after: those of the unlearned model.
        decimals: places to round to; 4 as in the reference codes, which write the scores to a text file.

    Returns:
        float32 `[C]` per producer of the graph; a kernel that is used twice has the same scores at both.

    Raises:
        GraphError: the variables are not those the graph was derived from.

    Example:
        >>> from jaxguard.graph import channel_graph
        >>> mlp = lambda v, x: jax.nn.relu(x @ v["w1"]) @ v["w2"]
        >>> v = {"w1": jnp.ones((2, 3)), "w2": jnp.ones((3, 2))}
        >>> moved = {"w1": v["w1"].at[0].add(jnp.array([1.0, -2.0, 0.0])), "w2": v["w2"]}
        >>> graph = channel_graph(mlp, v, jnp.ones((1, 2)))
        >>> [scores.tolist() for scores in neuron_weight_change(graph, v, moved)]
        [[1.0, 2.0, 0.0], [0.0, 0.0]]
    """
    scores = [np.asarray(change.sum(1)) for change in weight_change(graph, before, after)]
    return tuple(scores if decimals is None else [np.round(score, decimals) for score in scores])


@functools.partial(programs.jit, static_argnums=0)
def weight_change(graph: ChannelGraph, before: Variables, after: Variables) -> list[jax.Array]:
    """`|after - before|` of every weight as it is applied, float32 `[C, weights per channel]` per producer.

    Producers are the graph's; the weights of a channel are in the order of `ChannelGraph.kernels`.

    Raises:
        GraphError: the variables are not those the graph was derived from.
    """
    pairs = zip(graph.kernels(before), graph.kernels(after), strict=True)
    return [jnp.abs(new.astype(jnp.float32) - old.astype(jnp.float32)).reshape(old.shape[0], -1) for old, new in pairs]


def highest(scores: Sequence[np.ndarray], share: float) -> tuple[np.ndarray, ...]:
    """The channels with the highest scores, ranked over all layers together.

    Args:
        scores: `[C]` per layer; leave out the layers that must not change.
        share: of all channels, in [0, 1]; `floor(share * channels)` are chosen.

    Returns:
        bool `[C]` per layer. Of equal scores, the earlier layer's and then the earlier channel's come first.

    Example:
        >>> [mask.tolist() for mask in highest([np.array([1.0, 3.0]), np.array([3.0, 2.0])], 0.5)]
        [[False, True], [True, False]]
    """
    # Ranked over all layers together; an empty array makes the concatenation of no layers possible.
    flat = np.concatenate([*scores, np.zeros(0)])
    chosen = np.zeros(len(flat), bool)
    chosen[np.argsort(-flat, kind="stable")[: math.floor(share * len(flat))]] = True  # stable: ties by position
    return tuple(np.split(chosen, np.cumsum([len(score) for score in scores])[:-1])) if scores else ()
