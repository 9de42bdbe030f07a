"""CLP: Channel Lipschitzness based Pruning, data-free.

Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022. A channel whose upper bound of the
Lipschitz constant stands out in its layer reacts to small patterns, triggers among them, and is cut. The bound is a
heuristic: it leaves out stride, padding and everything behind the layer.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
from jax.core import Tracer

from jaxguard import methods, surgery
from jaxguard.defenses.protocol import NO_DATA, Data, DefenseReport
from jaxguard.graph import cuts
from jaxguard.graph.pairing import Pairing
from jaxguard.scores.channel_bounds import channel_bounds, layer_scores
from jaxguard.types import LayerScores, Network


@methods.checked
def clp(
    network: Network,
    data: Data = NO_DATA,
    key: jax.Array | None = None,
    *,
    u: methods.NonNegative = 3.0,
    pairing: Pairing = "dataflow",
    eps: methods.NonNegative = 0.0,
) -> tuple[Network, DefenseReport]:
    """Cuts every channel whose Lipschitz bound exceeds its layer's mean by `u` standard deviations.

    It can be traced: `jax.jit(lambda network: clp(network)[0])`. Its notes need values, and are left out then.

    Args:
        network: the suspect.
        data: not used.
        key: not used.
        u: 3 for CIFAR-10, CIFAR-100 and GTSRB, 5 for Tiny-ImageNet, as BackdoorBench sets it; the authors suggest 3.
        pairing: `dataflow`, or `module_order` as in the reference code, which mispairs pre-activation networks.
        eps: added to the running variance; 0 as in the reference code, the network itself adds some 1e-5.

    Returns:
        The repaired network, and a report with every layer's scores and cut channels.

    Raises:
        UnscorableError: a parameter is not finite, or nothing can be scored.
        GraphError: under a trace, a layer cannot be cut; otherwise the report's notes name it.
    """
    del data, key
    graph = network.graph
    bounds = channel_bounds(graph, network.variables, pairing=pairing, eps=eps)
    scored = layer_scores(bounds, u)
    is_traced = any(isinstance(layer.mask, Tracer) for layer in scored)
    repaired = network.variables
    results, uncut = [], []
    for layer, result in zip(bounds.layers, scored, strict=True):
        # Under a trace nothing is known of the mask, and a cut of no channel changes nothing.
        if is_traced or result.mask.any():
            why = None if is_traced else cuts.why_uncuttable(graph, layer)
            if why is None:
                repaired = surgery.cut(graph, repaired, layer, result.mask)
            else:
                uncut.append(f"{int(result.mask.sum())} channels of {layer.name} stand out and were not cut: {why}.")
                results.append(replace(result, mask=np.zeros_like(result.mask)))
                continue
        results.append(result)
    notes = () if is_traced else (*_notes(scored, u), *uncut)
    return network.with_variables(repaired), DefenseReport(tuple(results), notes)


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
        # The largest z-score of n numbers, one far above n - 1 equal ones, with `ddof=1`.
        reachable = (widest - 1) / widest**0.5
        notes.append(
            f"No channel exceeds its layer's mean by {u:g} standard deviations, so nothing was cut; in layers of at "
            f"most {widest} channels no z-score can exceed {reachable:.2f}."
        )
    return notes
