"""CLP: Channel Lipschitzness based Pruning, data-free.

Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022. A channel whose upper bound of the
Lipschitz constant stands out in its layer reacts to small patterns, triggers among them, and is cut. The bound is a
heuristic: it leaves stride, padding and everything behind the layer out.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import surgery
from jaxguard.defenses.protocol import Context, DefenseReport, require_finite, require_graph
from jaxguard.errors import DefenseError
from jaxguard.graph import ChannelGraph, LeafView, pairing
from jaxguard.graph.pairing import Layer, Pairing
from jaxguard.graph.program import leaf_paths
from jaxguard.kernels import lipschitz
from jaxguard.types import LayerScores, Variables


class ChannelBounds(NamedTuple):
    """UCLC of every channel.

    Attributes:
        layers: what was scored, in program order.
        scores: `[C]` per layer; NaN where undefined.
    """

    layers: tuple[Layer, ...]
    scores: list[np.ndarray]


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
        DefenseError: a parameter is not finite.
    """
    found = _layers(graph, pairing)
    scores, suspicious = _compiled_bounds(graph, found, eps, variables)
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
    leaves = dict(zip(leaf_paths(variables), jax.tree.leaves(variables), strict=True))
    kernels = [kernel.astype(jnp.float32) for kernel in graph.kernels(variables)]
    wanted = sorted({producer for layer in layers for producer, _ in layer.sources})
    paths = {k: graph.producers[k].kernel.path for k in wanted}
    known = {k: norms[paths[k]] for k in wanted if paths[k] in norms and graph.reads_leaf(k)}
    unknown = [k for k in wanted if k not in known]
    computed = lipschitz.spectral_norms([kernels[k] for k in unknown])
    known |= dict(zip(unknown, computed, strict=True))

    def read(view: LeafView | None) -> jax.Array | None:
        return None if view is None else surgery.read(view, leaves[view.path]).astype(jnp.float32)

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


_compiled_bounds = jax.jit(bounds_of, static_argnums=(0, 1, 2))


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
        threshold = float(lipschitz.thresholds(scores, u))
        results.append(LayerScores(layer.name, scores, threshold, scores > threshold, np.isnan(scores)))
    return tuple(results)


def clp(
    variables: Variables,
    context: Context,
    key: jax.Array | None = None,
    *,
    u: float = 3.0,
    pairing: Pairing = "dataflow",
    eps: float = 0.0,
) -> tuple[Any, DefenseReport]:
    """Cut every channel whose Lipschitz bound exceeds its layer's mean by `u` standard deviations.

    Args:
        variables: of the suspect; not modified.
        context: only its graph is used; CLP needs no data.
        key: not used, CLP is deterministic.
        u: 3 for CIFAR-10, CIFAR-100 and GTSRB, 5 for Tiny-ImageNet, as BackdoorBench sets it; the authors suggest 3.
        pairing: `dataflow`, or `module_order` as in the reference code, which mispairs pre-activation networks.
        eps: added to the running variance; 0 as in the reference code.

    Returns:
        The repaired variables, and a report with every layer's scores and cut channels.

    Raises:
        DefenseError: no graph in the context, `u` or `eps` negative or NaN, or a parameter that is not finite.
        GraphError: nothing can be scored.
    """
    del key
    graph = require_graph(context.graph)
    if not u >= 0:
        raise DefenseError(f"expected u >= 0 standard deviations, got {u=} in clp(); the paper's value is 3")
    if not eps >= 0:
        raise DefenseError(f"expected eps >= 0, got {eps=} in clp(); the reference adds 0, the model itself some 1e-5")
    bounds = channel_bounds(graph, variables, pairing=pairing, eps=eps)
    scored = layer_scores(bounds, u)
    repaired = variables
    for layer, result in zip(bounds.layers, scored, strict=True):
        if result.mask.any():
            repaired = surgery.cut(graph, repaired, layer, result.mask)
    options = {"u": u, "pairing": pairing, "eps": eps}
    return repaired, DefenseReport("clp", options, scored, notes=tuple(_notes(scored, u)))


def _notes(layers: tuple[LayerScores, ...], u: float) -> list[str]:
    notes = []
    undefined = sum(int(layer.undefined.sum()) for layer in layers)
    if undefined:
        names = ", ".join(layer.name for layer in layers if layer.undefined.any())
        notes.append(f"{undefined} channels without a positive variance have no score and were left alone: {names}.")
    dead = sum(int((layer.scores == 0).sum()) for layer in layers)
    if dead:
        notes.append(f"{dead} dead channels score 0; they count in their layer's mean and deviation.")
    if not any(layer.mask.any() for layer in layers):
        widest = max(len(layer.scores) for layer in layers)
        reachable = (widest - 1) / widest**0.5
        notes.append(
            f"No channel exceeds its layer's mean by {u:g} standard deviations, so nothing was cut; in layers of at "
            f"most {widest} channels no z-score can exceed {reachable:.2f}."
        )
    return notes
