"""What a checkpoint's weights give away: numbers that depend neither on the order of its channels nor of its classes.

Everything here is traceable and reads one checkpoint; `jaxguard.fleet` compiles it once for all of a structure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxguard import structural
from jaxguard.defenses.clp import bounds_of
from jaxguard.graph import ChannelGraph
from jaxguard.graph.pairing import Layer
from jaxguard.kernels.spectrum import Spectrum, spectrum
from jaxguard.types import Variables


class WeightFeatures(NamedTuple):
    """What is known of one checkpoint by its weights.

    Attributes:
        layers: one summary per layer.
        features: `[F]` float32, NaN where undefined; named by `feature_names`.
        finite: whether all weights that were read are finite numbers.
    """

    layers: tuple[Spectrum, ...]
    features: jax.Array
    finite: jax.Array


def weight_features(graph: ChannelGraph, layers: tuple[Layer, ...], variables: Variables) -> WeightFeatures:
    """Of a model whose channel graph is known.

    Args:
        graph: the model's channel graph.
        layers: of `jaxguard.graph.pairing.layers`.
        variables: arrays or tracers.

    Returns:
        The features.
    """
    scores, suspicious = bounds_of(graph, layers, 0.0, variables)
    return _features(scores, ~suspicious)


def structural_features(producers: tuple[structural.Producer, ...], leaves: Mapping[str, jax.Array]) -> WeightFeatures:
    """Of a checkpoint known by the names and shapes of its leaves alone.

    Args:
        producers: of `jaxguard.structural.find_producers`.
        leaves: arrays or tracers by name; floating-point ones at least.

    Returns:
        The features.
    """
    sums = [jnp.sum(leaf, dtype=jnp.float32) for leaf in leaves.values()]
    return _features(structural.bounds_of(producers, leaves), jnp.isfinite(jnp.stack(sums)).all())


def feature_names(layers: Sequence[Layer]) -> tuple[str, ...]:
    """Names of the features, in their order.

    Args:
        layers: what was scored.

    Returns:
        `F` names, such as `conv1 -> bn1: z`.
    """
    return tuple(f"{layer.name}: {name}" for layer in layers for name in ("z",))


def _features(scores: Sequence[jax.Array], finite: jax.Array) -> WeightFeatures:
    layers = tuple(spectrum(score) for score in scores)
    return WeightFeatures(layers, jnp.stack([layer.z for layer in layers]), finite)
