"""CLP: Channel Lipschitzness based Pruning, data-free.

Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022. A channel whose upper bound of the
Lipschitz constant stands out in its layer reacts to small patterns, triggers among them, and is cut. The bound is a
heuristic: it leaves stride, padding and everything behind the layer out.
"""

from __future__ import annotations

from typing import Any

import jax

from jaxguard import surgery
from jaxguard.defenses.protocol import Context, DefenseReport, require_graph
from jaxguard.errors import DefenseError
from jaxguard.graph.pairing import Pairing
from jaxguard.scores.channel_bounds import channel_bounds, layer_scores
from jaxguard.types import LayerScores, Variables


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
