"""What reaches each layer's norm: per channel its mean and variance, or its largest value in every image.

Where a layer has no BatchNorm it is the convolution's or dense layer's own result, bias included.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import programs
from jaxguard.activations.layer_inputs import activations
from jaxguard.errors import UnscorableError
from jaxguard.graph import ChannelGraph
from jaxguard.graph.pairing import Layer
from jaxguard.graph.program import Value
from jaxguard.types import Variables


class Moments(NamedTuple):
    """Mean and variance of every channel over images and positions.

    Attributes:
        mean: float64 `[C]`.
        var: float64 `[C]`, the biased one.
    """

    mean: np.ndarray
    var: np.ndarray


def place(graph: ChannelGraph, layer: Layer) -> tuple[Value, tuple[int, ...]]:
    """Where a layer's channels can be read before its norm.

    Args:
        graph: the model's channel graph.
        layer: of `jaxguard.graph.pairing.layers`.

    Returns:
        Number of the value in the graph's program, and the axes that the channels run over, slowest first.
    """
    if layer.affine is not None:
        return graph.affines[layer.affine].begin, graph.affines[layer.affine].begin_axes
    producer = graph.producers[layer.sources[0][0]]
    return producer.gate, producer.gate_axes


def moments(
    graph: ChannelGraph,
    variables: Variables,
    images: jax.Array | np.ndarray,
    layers: tuple[Layer, ...],
    *,
    batch_size: int = 256,
) -> list[Moments]:
    """Mean and variance per channel, in evaluation mode.

    Args:
        graph: the model's channel graph.
        variables: its variables.
        images: `[N, ...]`.
        layers: of `jaxguard.graph.pairing.layers`.
        batch_size: images per forward pass.

    Returns:
        One entry per layer.
    """
    counts, parts = [], []
    for batch in _batches(images, batch_size):
        counts.append(len(batch))
        parts.append([np.asarray(part, np.float64) for part in _moments(graph, layers, variables, batch)])
    shares = np.array(counts)[:, None] / sum(counts)
    found = []
    for own in zip(*parts, strict=True):
        # [batches, 2, C] -> two arrays [batches, C].
        means, variances = np.moveaxis(np.stack(own), 1, 0)
        # The law of total variance: the mean of the batches' variances and the variance of their means.
        mean = (shares * means).sum(0)
        found.append(Moments(mean, (shares * (variances + np.square(means - mean))).sum(0)))
    return found


def peaks(
    graph: ChannelGraph,
    variables: Variables,
    images: jax.Array | np.ndarray,
    layers: tuple[Layer, ...],
    *,
    batch_size: int = 256,
) -> list[np.ndarray]:
    """Largest value over the positions, image by image and channel by channel, in evaluation mode.

    Args:
        graph: the model's channel graph.
        variables: its variables.
        images: `[N, ...]`.
        layers: of `jaxguard.graph.pairing.layers`.
        batch_size: images per forward pass.

    Returns:
        float64 `[N, C]` per layer.

    Raises:
        UnscorableError: a layer keeps its images on no axis of their own.
    """
    for layer in layers:
        if place(graph, layer)[0] not in graph.batch_axes:
            raise UnscorableError(
                f"expected layers that keep one axis for the images, got {layer.name}, which lays them together with "
                "other axes; write the model without that reshape"
            )
    parts = [[np.asarray(part, np.float64) for part in _peaks(graph, layers, variables, batch)]
             for batch in _batches(images, batch_size)]  # fmt: skip
    return [np.concatenate(own) for own in zip(*parts, strict=True)]


def _batches(images: jax.Array | np.ndarray, batch_size: int) -> Iterator[jax.Array]:
    for start in range(0, len(images), batch_size):
        yield jnp.asarray(images[start : start + batch_size])


@functools.partial(programs.jit, static_argnums=(0, 1))
def _moments(
    graph: ChannelGraph, layers: tuple[Layer, ...], variables: Variables, images: jax.Array
) -> list[jax.Array]:
    """`[2, C]` per layer."""
    found = []
    for array, _, axes in _read(graph, layers, variables, images):
        rows = _channels_last(array, axes)
        found.append(jnp.stack([rows.mean(0), rows.var(0)]))
    return found


@functools.partial(programs.jit, static_argnums=(0, 1))
def _peaks(graph: ChannelGraph, layers: tuple[Layer, ...], variables: Variables, images: jax.Array) -> list[jax.Array]:
    """`[B, C]` per layer."""
    found = []
    for array, batch_axis, axes in _read(graph, layers, variables, images):
        by_image = jnp.moveaxis(array, batch_axis, 0)
        # `vmap` takes the batch axis away, so that the axes behind it move up by one.
        moved = tuple(axis - 1 if axis > batch_axis else axis for axis in axes)
        found.append(jax.vmap(lambda one, moved=moved: _channels_last(one, moved).max(0))(by_image))
    return found


def _read(
    graph: ChannelGraph, layers: tuple[Layer, ...], variables: Variables, images: jax.Array
) -> Iterator[tuple[jax.Array, int, tuple[int, ...]]]:
    """Each layer's array, the axis of its images (-1 where there is none), and those of its channels."""
    places = [place(graph, layer) for layer in layers]
    arrays = activations(graph, variables, images, [value for value, _ in places])
    for array, (value, axes) in zip(arrays, places, strict=True):
        yield array, graph.batch_axes.get(value, -1), axes


def _channels_last(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`[positions, C]`, float32."""
    rest = [axis for axis in range(array.ndim) if axis not in axes]
    # Channels last, in their own order, so that one reshape lays them out whatever axes they ran over.
    ordered = jnp.transpose(array.astype(jnp.float32), (*rest, *axes))
    return ordered.reshape(-1, int(np.prod([array.shape[axis] for axis in axes], dtype=int)))
