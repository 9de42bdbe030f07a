"""How low a learned gate must be for its channel to be cut: chosen on clean images that no gate has seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxguard import evaluation
from jaxguard.pruning.learned_gates import Gating
from jaxguard.types import Batch, LayerScores, Network, Variables

THRESHOLDS = tuple(np.round(np.arange(19) * 0.05, 2).tolist())
"""0, 0.05, ..., 0.90, as BackdoorBench tries them."""


def choose(accuracies: Sequence[float], max_drop: float) -> int:
    """The rule for the threshold, which is ours: cut as much as accuracy on held-out clean images allows.

    BackdoorBench takes, of the thresholds that cost no more than `max_drop`, that of the lowest test ASR.

    Args:
        accuracies: before any cut, and then threshold by threshold, rising.
        max_drop: most relative loss of accuracy.

    Returns:
        Number of the last threshold before the first that costs more; -1 if the first does already.

    Example:
        >>> choose([0.98, 0.98, 0.96, 0.80, 0.97], max_drop=0.1)
        1
    """
    # The margin is for rounding: an accuracy exactly at the limit is accepted.
    least = (1 - max_drop) * accuracies[0] - 1e-9
    harmful = [accuracy < least for accuracy in accuracies[1:]]
    return harmful.index(True) - 1 if True in harmful else len(harmful) - 1


class Pruned(NamedTuple):
    """A model pruned by its gates.

    Attributes:
        variables: the repaired model.
        threshold: gates up to it were cut; -1 where even the lowest threshold cost too much.
        layers: `1 - gate` as scores, the highest that was spared as their threshold, and what was cut.
        curves: `accuracy_by_threshold` on held-out images, where the threshold was chosen.
        notes: how it was chosen.
    """

    variables: Variables
    threshold: float
    layers: tuple[LayerScores, ...]
    curves: dict[str, np.ndarray]
    notes: tuple[str, ...]


def prune(
    where: Gating,
    network: Network,
    gates: Sequence[np.ndarray],
    threshold: float | None,
    *,
    held: Batch,
    max_drop: float,
) -> Pruned:
    """Cuts the channels of low gates, `m <= threshold`.

    Args:
        where: the gating.
        network: the suspect; not modified.
        gates: `[C]` per layer.
        threshold: 0 cuts closed gates alone, a negative one nothing; None chooses one of `THRESHOLDS`.
        held: images to choose it on, which no gate has seen.
        max_drop: see `choose`.

    Returns:
        The pruned model.

    Raises:
        DataError: a label the model has no class for.
    """
    if threshold is not None:
        return _prune(where, network.variables, gates, threshold)
    before = evaluation.accuracy(network, held)
    tried = [_prune(where, network.variables, gates, threshold) for threshold in THRESHOLDS]
    accuracies = [evaluation.accuracy(network.with_variables(pruned.variables), held) for pruned in tried]
    number = choose([before, *accuracies], max_drop)
    if number < 0:
        pruned = _prune(where, network.variables, gates, -1.0)
        note = (
            f"Even threshold 0 costs more than {100 * max_drop:g} % of the accuracy on {len(held.images)} held-out "
            "clean images, so nothing was cut."
        )
    else:
        pruned = tried[number]
        note = (
            f"Threshold {pruned.threshold:g} was chosen on {len(held.images)} held-out clean images; cutting takes "
            f"their accuracy from {100 * before:.1f} % to {100 * accuracies[number]:.1f} %."
        )
    return pruned._replace(curves={"accuracy_by_threshold": np.array(accuracies)}, notes=(note,))


def _prune(where: Gating, variables: Variables, gates: Sequence[np.ndarray], threshold: float) -> Pruned:
    masks = [gate <= threshold for gate in gates]
    # Scores are `1 - gate`, so that higher is more suspicious; the highest one spared is the threshold in the report.
    spared = np.concatenate([1 - gate[~mask] for gate, mask in zip(gates, masks, strict=True)])
    highest = float(spared.max()) if spared.size else 0.0
    layers = tuple(
        LayerScores(layer.name, 1 - gate, highest, mask, np.zeros(len(gate), bool))
        for layer, gate, mask in zip(where.layers, gates, masks, strict=True)
    )
    return Pruned(where.cut(variables, masks), threshold, layers, {}, ())
