"""Upper bounds of the Lipschitz constants of a network's channels, and the channels that stand out by them.

Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxguard import programs
from jaxguard.errors import UnscorableError
from jaxguard.graph import ChannelGraph, LeafView, pairing
from jaxguard.graph.pairing import Layer, Pairing
from jaxguard.graph.program import numeric_leaves
from jaxguard.kernels import lipschitz
from jaxguard.types import LayerScores, Variables


class ChannelBounds(NamedTuple):
    """UCLC of every channel.

    Attributes:
        layers: what was scored, in program order.
        scores: `[C]` per layer; NaN where undefined.
    """

    layers: tuple[Layer, ...]
    scores: list[Any]


def channel_bounds(
    graph: ChannelGraph, variables: Variables, *, pairing: Pairing = "dataflow", eps: float = 0.0
) -> ChannelBounds:
    """Upper bounds of the channels' Lipschitz constants, `|gamma| / sqrt(var + eps) * sigma_max(M)`.

    Where several convolutions meet in a sum before a BatchNorm, a channel's bound is the largest of theirs.

    Args:
        graph: the model's channel graph.
        variables: its variables.
        pairing: which kernel belongs to which BatchNorm, see `jaxguard.graph.pairing.layers`.
        eps: added to the variance; the reference adds none.

    Returns:
        The layers and their scores. A channel of zero running variance has no score (NaN); a dead channel scores 0.

    Raises:
        GraphError: nothing can be scored.
        UnscorableError: a parameter is not finite; under a trace, where this is not known, scores are NaN instead.
    """
    found = _layers(graph, pairing)
    scores, suspicious = _compiled_bounds(graph, found, eps, variables)
    if isinstance(suspicious, Tracer):  # part of a larger program, in which nothing can be refused
        return ChannelBounds(found, scores)
    if suspicious:
        require_finite(variables)
    return ChannelBounds(found, [np.asarray(score) for score in scores])


@functools.lru_cache(maxsize=32)
def _layers(graph: ChannelGraph, how: Pairing) -> tuple[Layer, ...]:
    return pairing.layers(graph, how)


def bounds_of(
    graph: ChannelGraph,
    layers: tuple[Layer, ...],
    eps: float,
    variables: Variables,
    norms: Mapping[str, jax.Array] = MappingProxyType({}),
) -> tuple[list[jax.Array], jax.Array]:
    """What `channel_bounds` computes, for programs that are compiled around it.

    Args:
        graph: the model's channel graph.
        layers: of `jaxguard.graph.pairing.layers`.
        eps: added to the variance.
        variables: arrays or tracers.
        norms: spectral norms `[C]` of kernels by path, where they are known; those kernels are not read.

    Returns:
        `[C]` scores per layer, and a bool: whether a leaf may hold NaN or infinity.
    """
    leaves = numeric_leaves(variables)
    kernels = [kernel.astype(jnp.float32) for kernel in graph.kernels(variables)]
    wanted = sorted({producer for layer in layers for producer, _ in layer.sources})
    paths = {k: graph.producers[k].kernel.path for k in wanted}
    known = {k: norms[paths[k]] for k in wanted if paths[k] in norms and graph.reads_leaf(k)}
    unknown = [k for k in wanted if k not in known]
    computed = lipschitz.spectral_norms([kernels[k] for k in unknown])
    known |= dict(zip(unknown, computed, strict=True))

    def read(view: LeafView | None) -> jax.Array | None:
        return None if view is None else view.read(leaves[view.path]).astype(jnp.float32)

    scores = []
    for layer in layers:
        largest = jnp.zeros(layer.channels)
        for producer, offset in layer.sources:
            largest = largest.at[offset : offset + known[producer].shape[0]].max(known[producer])
        if layer.affine is not None:
            affine = graph.affines[layer.affine]
            largest = largest * lipschitz.affine_scales(read(affine.scale), read(affine.var), eps=eps)
        scores.append(largest)
    read_whole = {path for k, path in paths.items() if kernels[k].size == leaves[path].size}
    # NaN and infinity survive in norms and in sums; a sum of finite numbers may also overflow.
    witnesses = [*known.values(), *(leaf for path, leaf in leaves.items() if path not in read_whole)]
    sums = jnp.stack([jnp.sum(array, dtype=jnp.float32) for array in witnesses])
    return scores, ~jnp.isfinite(sums).all()


_compiled_bounds = programs.jit(bounds_of, static_argnums=(0, 1, 2))


def layer_scores(bounds: ChannelBounds, u: float) -> tuple[LayerScores, ...]:
    """Thresholds and masks of a sweep value, `UCLC > mean + u * std` within each layer.

    Args:
        bounds: of `channel_bounds`.
        u: standard deviations above the layer's mean from which a channel is cut.

    Returns:
        One entry per layer.
    """
    results = []
    for layer, scores in zip(bounds.layers, bounds.scores, strict=True):
        threshold: Any = lipschitz.thresholds(scores, u)
        # Outside of a trace the report wants plain numbers; inside, they must stay arrays.
        is_traced = isinstance(threshold, Tracer)
        threshold = threshold if is_traced else float(threshold)
        undefined: Any = jnp.isnan(scores) if is_traced else np.isnan(scores)
        results.append(LayerScores(layer.name, scores, threshold, scores > threshold, undefined))
    return tuple(results)


def require_finite(variables: Variables) -> None:
    """Refuses a model whose scores would mean nothing.

    Args:
        variables: of the suspect.

    Raises:
        UnscorableError: a parameter is NaN or infinite.
    """
    odd = [path for path, leaf in numeric_leaves(variables).items() if not np.isfinite(leaf).all()]
    if odd:
        raise UnscorableError(
            f"expected finite parameters, got NaN or infinity in leaf '{odd[0]}' and {len(odd) - 1} others; "
            "a score would mean nothing: load the checkpoint again or retrain it"
        )
