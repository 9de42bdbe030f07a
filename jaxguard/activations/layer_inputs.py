"""What layers read: the values of a trace that go into convolutions and dense layers."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import programs
from jaxguard.graph import ChannelGraph, Producer
from jaxguard.graph.program import Value
from jaxguard.types import Variables


def read_by(producer: Producer) -> Value:
    """The value a producer applies its kernel to.

    Args:
        producer: of a channel graph.

    Returns:
        Number of the value in the graph's program.
    """
    left, right = producer.equation.inputs
    return right if left == producer.operand else left


def channel_axes(producer: Producer) -> tuple[int, ...]:
    """Axes of the value read that the kernel sums over, without a convolution's window.

    Args:
        producer: of a channel graph.

    Returns:
        Axes, in the order in which `producer.in_axes` match them.
    """
    numbers, side = producer.equation.params["dimension_numbers"], producer.equation.inputs.index(read_by(producer))
    return tuple(numbers.lhs_spec[1:2]) if producer.is_convolution else tuple(numbers[0][side])


def activations(
    graph: ChannelGraph, variables: Variables, images: jax.Array | np.ndarray, values: Sequence[Value]
) -> list[jax.Array]:
    """Values of the model in evaluation mode.

    Args:
        graph: the model's channel graph.
        variables: its variables.
        images: `[B, ...]`.
        values: numbers in the graph's program.

    Returns:
        One array per value.
    """
    program = graph.program_at(images)
    found = program.evaluate({**graph.leaves(program, variables), program.images: images})
    return [found[value] for value in values]


def mean_activations(
    graph: ChannelGraph,
    variables: Variables,
    images: jax.Array | np.ndarray,
    number: int,
    *,
    magnitude: bool = True,
    batch_size: int = 256,
) -> np.ndarray:
    """Mean of every input of a layer, over images and positions.

    Args:
        graph: the model's channel graph.
        variables: its variables.
        images: `[N, ...]`.
        number: of the layer among the graph's producers.
        magnitude: whether of the absolute value.
        batch_size: images per forward pass.

    Returns:
        float64, `[D]` per axis in `producer.in_axes`: in the layout of the kernel.
    """
    producer, sums = graph.producers[number], np.zeros(())
    for start in range(0, len(images), batch_size):
        # The last batch is smaller, and weighs as much less.
        batch = jnp.asarray(images[start : start + batch_size])
        sums = sums + len(batch) * np.asarray(_means(graph, number, magnitude, variables, batch), np.float64)
    leaf = graph.program.leaves[graph.program.paths.index(producer.kernel.path)]
    sizes = [graph.program.shapes[leaf][axis] for axis in producer.in_axes]
    # A grouped convolution applies one slice of its kernel per group: (groups, inputs of a group).
    return (sums / len(images)).reshape(-1, math.prod(sizes)).mean(0).reshape(sizes)


@functools.partial(programs.jit, static_argnums=(0, 1, 2))
def _means(graph: ChannelGraph, number: int, magnitude: bool, variables: Variables, images: jax.Array) -> jax.Array:
    producer = graph.producers[number]
    (read,) = activations(graph, variables, images, [read_by(producer)])
    read = read.astype(jnp.float32)
    channels = channel_axes(producer)
    rest = [axis for axis in range(read.ndim) if axis not in channels]
    ordered = jnp.transpose(jnp.abs(read) if magnitude else read, (*rest, *channels))
    return ordered.mean(range(len(rest))).reshape(-1)
