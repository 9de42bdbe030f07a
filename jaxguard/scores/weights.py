"""What a checkpoint's weights give away: numbers that depend neither on the order of its channels nor of its classes.

Everything here is traceable and reads one checkpoint; `jaxguard.fleet` compiles it once for all of a structure. No
feature says more than that a network is unlike its reference fleet: levels, such as the size of a layer's weights, also
tell how long a network was trained, so they are evidence only where the references were trained alike.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.graph import Affine, ChannelGraph, LeafView
from jaxguard.graph.pairing import Layer
from jaxguard.graph.program import numeric_leaves
from jaxguard.kernels.lipschitz import Grams, norms_of, scaled_grams
from jaxguard.kernels.spectrum import Spectrum, distribution, spectrum
from jaxguard.scores import head, structural
from jaxguard.scores.channel_bounds import bounds_of
from jaxguard.types import LayerSummary, Variables

BOUND = ("mean", "std", "high", "skewness")
"""Of the logs of a layer's channel bounds."""

NORM = ("scale", "bias", "variance", "drift")
"""Of a BatchNorm's channels: scale, bias, log of the running variance, and running mean in running deviations; each by
mean and standard deviation over the channels."""

KERNEL = ("log deviation", "offset")
"""Of all weights of a layer: log of their standard deviation, and their mean in units of it."""

LAYER = (
    "z",
    *(f"log bound {part}" for part in BOUND),
    *(f"{part} {moment}" for part in NORM for moment in ("mean", "std")),
    *(f"weights {part}" for part in KERNEL),
)
"""Features of each layer."""

LEAST_VARIANCE = 1e-12
"""Smaller variances count as this, so that a dead channel has a logarithm."""

SUMMARY = Spectrum._fields
"""What is kept of every layer, in the order of the fields of its `Spectrum`."""

VERSION = 3
"""Of the features: raised with every change of what they mean, so that results of two versions never mix."""


class WeightFeatures(NamedTuple):
    """What the weights of one checkpoint say.

    Attributes:
        layers: summaries, one `[L]` for each of its fields.
        features: `[F]` float32, NaN where undefined; named by `feature_names`.
        finite: whether all weights that were read are finite numbers.
        bounds: `[C]` of each layer's channels, NaN where undefined.
    """

    layers: Spectrum
    features: jax.Array
    finite: jax.Array
    bounds: tuple[jax.Array, ...]


class _Norm(NamedTuple):
    """Parameters and statistics of a layer's BatchNorm, `[C]` each, or None where it has none."""

    scale: jax.Array | None = None
    bias: jax.Array | None = None
    var: jax.Array | None = None
    mean: jax.Array | None = None


class _Weights(NamedTuple):
    """How many weights a kernel has, and their sum and sum of squares `[2]`."""

    size: int
    sums: jax.Array


def leaf_sums(leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Sum and sum of squares of each leaf, `[2]`.

    Args:
        leaves: by name, in the order in which they lie in memory: a transposed one takes three times as long to read.

    Returns:
        By name.
    """

    def sums(leaf: jax.Array) -> jax.Array:
        axes = tuple(range(leaf.ndim))
        # A product of the leaf with itself over all axes: no squared copy of it is made.
        square = jax.lax.dot_general(leaf, leaf, ((axes, axes), ((), ())))
        return jnp.stack([jnp.sum(leaf), square])

    return {name: sums(leaf.astype(jnp.float32)) for name, leaf in leaves.items()}


class Reduced(NamedTuple):
    """What is needed of a kernel.

    Attributes:
        grams: of its channels.
        sums: its sum and sum of squares, `[2]`.
    """

    grams: Grams
    sums: jax.Array


def reduce_kernel(kernel: jax.Array, *, is_channels_first: bool) -> Reduced:
    """Reduces a kernel, or some channels of one: Gram matrices of parts follow one another, sums add up.

    Args:
        kernel: `[C, fan-in, taps]`, or `[taps, fan-in, C]`, as it lies in memory.
        is_channels_first: which of the two.

    Returns:
        The Gram matrices and sums.
    """
    return Reduced(scaled_grams(kernel, is_channels_first=is_channels_first), leaf_sums({"": kernel})[""])


def weight_features(
    graph: ChannelGraph,
    layers: tuple[Layer, ...],
    variables: Variables,
    reduced: Mapping[str, Reduced] = MappingProxyType({}),
) -> WeightFeatures:
    """Of a model whose channel graph is known.

    Args:
        graph: the model's channel graph.
        layers: of `jaxguard.graph.pairing.layers`.
        variables: arrays or tracers; kernels that were reduced are not read.
        reduced: kernels by path that were reduced before.

    Returns:
        The features.
    """
    leaves = numeric_leaves(variables)
    scores, suspicious = bounds_of(graph, layers, 0.0, variables, _norms(reduced))
    kernels = graph.kernels(variables)

    def weights(producer: int) -> _Weights:
        path, kernel = graph.producers[producer].kernel.path, kernels[producer]
        if path in reduced:
            return _Weights(kernel.size, reduced[path].sums)
        # The leaf as it lies in memory, if the kernel is all of it: the arranged kernel is transposed, and slower to
        # sum.
        leaf = leaves[path] if leaves[path].size == kernel.size else kernel
        return _Weights(kernel.size, leaf_sums({path: leaf})[path])

    norms = [_Norm() if layer.affine is None else _norm_of(graph.affines[layer.affine], leaves) for layer in layers]
    parts = [[weights(producer) for producer, _ in layer.sources] for layer in layers]
    summaries, features = _of_layers(scores, norms, parts)
    features = jnp.concatenate([features, head.head_features(graph, variables)])
    return WeightFeatures(summaries, features, ~suspicious, tuple(scores))


def structural_features(
    producers: tuple[structural.Producer, ...],
    leaves: Mapping[str, jax.Array],
    reduced: Mapping[str, Reduced] = MappingProxyType({}),
) -> WeightFeatures:
    """Of a checkpoint known by the names and shapes of its leaves alone; nothing is said of its classes.

    Args:
        producers: of `jaxguard.scores.structural.read`.
        leaves: arrays or tracers by name, those that hold weights. Kernels that were reduced are not read.
        reduced: kernels by name that were reduced before.

    Returns:
        The features.
    """

    def read(name: str | None) -> jax.Array | None:
        return None if name is None else leaves[name].astype(jnp.float32).reshape(-1)

    scores = structural.bounds_of(producers, leaves, _norms(reduced))
    norms = [_Norm(scale=read(producer.scale), var=read(producer.var)) for producer in producers]
    sums = leaf_sums({name: leaf for name, leaf in leaves.items() if name not in reduced})
    sums |= {name: one.sums for name, one in reduced.items()}
    formed = structural.kernels_of([producer for producer in producers if not producer.is_plain], leaves)

    def weights(producer: structural.Producer) -> _Weights:
        if producer.is_plain:
            return _Weights(leaves[producer.kernel].size, sums[producer.kernel])
        kernel = formed[producer.kernel]
        # Stacked layers lie in one leaf: each is scored by its own slice.
        if producer.stack is not None:
            kernel = kernel.reshape(producer.form.shape[producer.stack], -1)[producer.index]
        return _Weights(kernel.size, leaf_sums({"": kernel})[""])

    parts = [[weights(producer)] for producer in producers]
    summaries, features = _of_layers(scores, norms, parts)
    # A NaN or infinity in any leaf makes its sum one; no leaf is read a second time for this.
    finite = jnp.isfinite(jnp.stack([row[0] for row in sums.values()])).all()
    return WeightFeatures(summaries, features, finite, tuple(scores))


def feature_names(layers: Sequence[Layer]) -> tuple[str, ...]:
    """Names of the features, in their order.

    Args:
        layers: what was scored; layers that name no producers of a graph are structural, and have no features of the
            output layer.

    Returns:
        `F` names, such as `conv1 -> bn1: z`.
    """
    names = tuple(f"{layer.name}: {name}" for layer in layers for name in LAYER)
    return (*names, *head.NAMES) if any(layer.sources for layer in layers) else names


DEVIATIONS = 3.0
"""Standard deviations above its layer's mean from which a channel stands out, as `spectrum` counts them."""


def summary_of(layer: str, channels: int, row: Mapping[str, float], scores: np.ndarray | None = None) -> LayerSummary:
    """The summary of a layer from its numbers by the names of `SUMMARY`."""
    threshold = row["mean"] + DEVIATIONS * row["std"]
    return LayerSummary(
        layer,
        channels,
        undefined=int(row["undefined"]),
        mean=float(row["mean"]),
        std=float(row["std"]),
        largest=float(row["largest"]),
        channel=int(row["channel"]),
        z=float(row["z"]),
        above=int(row["above"]),
        threshold=float(threshold) if math.isfinite(threshold) else math.inf,
        scores=scores,
    )


UNDEFINED = (
    "expected channels that differ in their Lipschitz bounds, got every score undefined or the same; is this a trained "
    "model?"
)
"""Why a network has no z-score."""


def largest_z(layers: np.ndarray) -> np.ndarray:
    """The largest z-score of each network, of `[M, L, len(SUMMARY)]`; NaN where every layer's is undefined."""
    z = layers[:, :, SUMMARY.index("z")]
    return np.where(np.isnan(z).all(1), np.nan, np.nanmax(np.where(np.isnan(z), -np.inf, z), axis=1))


def _norms(reduced: Mapping[str, Reduced]) -> dict[str, jax.Array]:
    return dict(zip(reduced, norms_of([one.grams for one in reduced.values()]), strict=True))


def _of_layers(
    scores: Sequence[jax.Array], norms: Sequence[_Norm], kernels: Sequence[Sequence[_Weights]]
) -> tuple[Spectrum, jax.Array]:
    """Summary of each layer, and the features named by `LAYER`, `[L * len(LAYER)]`."""
    # Side by side, as wide as the widest: one small program for all layers, which is compiled sooner.
    widths = [len(score) for score in scores]
    first, columns = np.cumsum([0, *widths]), np.arange(max(widths))
    # Positions of an [L, C] table in the concatenated rows; beyond a row's width all point at one NaN at the end.
    places = np.where(columns < np.array(widths)[:, None], first[:-1, None] + columns, first[-1])

    # A NaN that is distributed over devices as the scores are, which a constant would not be.
    undefined = scores[0][:1] * jnp.nan

    def beside(rows: Iterable[jax.Array | None]) -> jax.Array:
        """`[L, C]` of the widest; NaN where there is nothing."""
        known = [
            jnp.broadcast_to(undefined, (width,)) if row is None else row
            for row, width in zip(rows, widths, strict=True)
        ]
        return jnp.concatenate([*known, undefined])[places]

    bounds = beside(scores)
    summary = jax.vmap(spectrum)(bounds)
    # The padding is undefined too, but it is no channel.
    summary = summary._replace(undefined=summary.undefined - (len(columns) - np.array(widths, np.float32)))
    scale, bias, var, mean = map(beside, zip(*norms, strict=True))
    var = jnp.maximum(var, LEAST_VARIANCE)
    # Bounds spread over orders of magnitude; a dead channel has no logarithm and is left out.
    logs = jnp.log(jnp.where(bounds > 0, bounds, jnp.nan))
    found = distribution(jnp.stack([logs, scale, bias, jnp.log(var), mean / jnp.sqrt(var)], axis=1))
    shape = [getattr(found, part)[:, :1] for part in BOUND]
    # [L, 4, 2] -> [L, 8]: mean and deviation of each quantity follow one another, as in LAYER.
    spreads = jnp.stack([found.mean[:, 1:], found.std[:, 1:]], axis=2).reshape(len(scores), -1)
    return summary, jnp.concatenate([summary.z[:, None], *shape, spreads, _moments(kernels)], axis=1).reshape(-1)


def _moments(kernels: Sequence[Sequence[_Weights]]) -> jax.Array:
    """Of all weights of each layer together, `[L, 2]` named by `KERNEL`."""
    sizes = np.array([sum(one.size for one in parts) for parts in kernels], np.float32)
    sums = jnp.stack([functools.reduce(jnp.add, [one.sums for one in parts]) for parts in kernels])
    # Moments of several kernels together: their sums add up, their means would not.
    mean, square = (sums / sizes[:, None]).T
    std = jnp.sqrt(jnp.maximum(square - mean**2, LEAST_VARIANCE))
    return jnp.stack([jnp.log(std), mean / std], axis=1)


def _norm_of(affine: Affine, leaves: Mapping[str, jax.Array]) -> _Norm:
    def read(view: LeafView | None) -> jax.Array | None:
        return None if view is None else view.read(leaves[view.path]).astype(jnp.float32)

    return _Norm(*map(read, (affine.scale, affine.bias, affine.var, affine.mean)))
