"""OTBR: prune what unlearning noise moves most, then fuse the pruned model with the original; needs no data.

Lin, Liu, Wang, Liu: Fusing Pruned and Backdoored Models: Optimal Transport-based Data-free Backdoor Mitigation, AAAI
2025. The pruned model has lost the backdoor and much of its accuracy. Transport carries its channels over to those of
the original, channels of high weight change becoming mixtures of many of low weight change, and the average of both is
said to keep the accuracy and to dilute the backdoor.

In the paper norms keep the original's statistics. On networks too narrow to spare what is pruned that costs most of the
accuracy: the statistics no longer fit. `statistics="synthesised"` re-estimates them on images made from the suspect
itself, by matching its BatchNorms. That gives accuracy back, and half-pruned backdoors as well, so that more must be
pruned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

from jaxguard import fusion, methods, surgery, training, weight_change
from jaxguard.defenses.protocol import Data, DefenseReport
from jaxguard.errors import DefenseError
from jaxguard.inversion import Synthesis, synthesise
from jaxguard.kernels import transport
from jaxguard.types import Network, Variables
from jaxguard.weight_change import Layers, Ranking, rank

SWEEP = (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
"""Values of `gamma` that the reference code tries."""

FACTOR = 3.0
"""How far above the median a channel's weight change must lie to be pruned, by the rule for `gamma`.

Chosen on the demo's networks of seeds 10-13; `experiments/sweep_rules.py` measures it on others.
"""

IMAGES_PER_CLASS = 20
"""Images synthesised of each class, where running statistics are estimated on some."""

Statistics = Literal["stored", "synthesised"]


class Repair(NamedTuple):
    """The model repaired with one value of `gamma`.

    Attributes:
        gamma: share of the channels that were pruned.
        variables: the fused model.
        alignments: how each set of channels was carried over, where channels were pruned.
    """

    gamma: float
    variables: Variables
    alignments: tuple[fusion.Alignment, ...]


def choose(scores: Sequence[np.ndarray], *, factor: float = FACTOR) -> float:
    """Our rule for `gamma`: the share of channels whose NWC is `factor` times the median or more.

    Unlearning moves most channels alike and a few much farther; the scores alone show how many those are.

    Args:
        scores: NWC, `[C]` per layer.
        factor: how far above the median of all channels.

    Returns:
        `gamma` in (0, 1], at least one channel's share.

    Example:
        >>> choose([np.array([1.0, 1.0, 1.2, 0.9, 5.0])])
        0.2
    """
    flat = np.concatenate(scores)
    return max(int((flat >= factor * np.median(flat)).sum()), 1) / len(flat)


def repairs(
    network: Network,
    ranking: Ranking,
    gammas: Sequence[float],
    *,
    weight: float = 0.5,
    chain: fusion.Chain = "dataflow",
    cost_on_transported: bool = False,
    canonical: bool = True,
    solver: transport.Solver = "exact",
) -> list[Repair]:
    """Prunes and fuses with several values of `gamma`, whose plans are solved together.

    Args:
        network: the suspect.
        ranking: how far unlearning moved each channel.
        gammas: shares of the channels to prune, in [0, 1].
        weight: see `otbr`.
        chain: see `otbr`.
        cost_on_transported: see `otbr`.
        canonical: see `otbr`.
        solver: see `jaxguard.kernels.transport.solve`.

    Returns:
        One repair per value; the suspect itself where it prunes nothing.

    Raises:
        GraphError: `parameter_order` with layers that do not read each other.
    """
    graph, variables = network.graph, network.variables
    names = [graph.producers[number].name for number in ranking.numbers]
    channels = fusion.find_channels(graph, chain, names if chain == "parameter_order" else None)
    by_producer = dict(zip(names, ranking.scores, strict=True))
    masses = [fusion.masses_of(graph, one, by_producer) for one in channels]
    masses = [mass if mass is not None and mass.sum() > 0 else None for mass in masses]
    pruned, active = [], []
    for gamma in gammas:
        masks = {number: mask for number, mask in ranking.top(gamma).items() if mask.any()}
        cut = variables
        for number, mask in masks.items():
            cut = surgery.cut_kernel(graph, cut, number, mask)
        pruned.append(cut)
        edited = {graph.producers[number].kernel.path for number in masks}
        touched = [k for k, one in enumerate(channels) if any(row.kernel.path in edited for row in one.rows)]
        # The reference's list begins at the first pruned layer; in the dataflow, sets that lost nothing stay.
        active.append(range(min(touched), len(channels)) if touched and chain == "parameter_order" else touched)
    found = fusion.align(
        channels,
        [fusion.leaves_by_path(graph, one) for one in pruned],
        fusion.leaves_by_path(graph, variables),
        target_masses=masses,
        active=active,
        cost_on_transported=cost_on_transported,
        canonical=canonical,
        solver=solver,
    )
    results = []
    for gamma, one, alignments in zip(gammas, pruned, found, strict=True):
        paths = None if chain == "dataflow" else {channels[k].rows[0].kernel.path for k in alignments}
        fused = variables
        if alignments:
            fused = fusion.blend(channels, alignments, one, variables, weight=weight, paths=paths)
        results.append(Repair(gamma, fused, tuple(alignments.values())))
    return results


@methods.checked
def otbr(
    network: Network,
    data: Data,
    key: jax.Array,
    *,
    gamma: methods.Share | None = None,
    factor: methods.Positive = FACTOR,
    weight: methods.Share = 0.5,
    statistics: Statistics = "stored",
    steps: methods.Count = 20,
    learning_rate: methods.NonNegative = 1e-4,
    momentum: methods.Momentum = 0.9,
    batch_size: methods.Count = 256,
    label_high: methods.Count | None = None,
    noise_size: methods.Count | None = None,
    layers: Layers = "hidden",
    exclude: str = "",
    decimals: methods.Steps | None = None,
    chain: fusion.Chain = "dataflow",
    cost_on_transported: bool = False,
    canonical: bool = True,
    solver: transport.Solver = "exact",
) -> tuple[Network, DefenseReport]:
    """Unlearns noise, prunes the channels that moved most, and fuses what is left with the original.

    `label_high=K - 1, noise_size=32, layers="convolutions", exclude="shortcut", decimals=4, chain="parameter_order",
    canonical=False, solver="exact"` give the reference code, except that it feeds its noise past the normalisation. It
    tries all of `SWEEP` for `gamma` and has no rule.

    Args:
        network: the suspect; without a training mode, norms unlearn with their running statistics.
        data: not used.
        key: draws the noise.
        gamma: share of the channels that are pruned; chosen by `choose` by default.
        factor: of `choose`.
        weight: of the pruned model in the average; the paper's lambda.
        statistics: of the norms: `stored`, the suspect's, as in the paper; or re-estimated on images `synthesised` of
            the suspect.
        steps: of gradient ascent on noise.
        learning_rate: of the ascent.
        momentum: of SGD.
        batch_size: noise images per step.
        label_high: labels are drawn from [0, label_high); all `K` classes by default, `K - 1` in the reference code.
        noise_size: height and width of the noise; the model's own by default, 32 in the reference code.
        layers: `hidden`, all but the layer that makes the logits, or `convolutions` among these.
        exclude: layers with this in their name are left alone; `shortcut` in the reference code.
        decimals: places that NWC is rounded to before ranking; 4 in the reference code.
        chain: `dataflow` carries channels over wherever they are, `parameter_order` from each layer to the next in a
            list, as the reference code does; see `jaxguard.fusion.fuse`.
        cost_on_transported: whether channels are compared after their inputs have been carried over; the reference
            does not, as both models have theirs in one order.
        canonical: whether equal channels, such as the pruned ones, are treated alike.
        solver: see `jaxguard.kernels.transport.solve`.

    Returns:
        The repaired network, and a report with NWC and the pruned channels of every layer and the curve
        `unlearn_loss`, `[steps]`.

    Raises:
        DefenseError: `label_high` is too large, a training mode is missing, or a loss is not finite.
        UnscorableError: no layer is left to rank.
        GraphError: `parameter_order` with layers that do not read each other.
    """
    graph, variables = network.graph, network.variables
    image_shape = network.input_spec.shape
    if noise_size is not None:
        image_shape = (noise_size, noise_size, *image_shape[2:])
    if label_high is not None and label_high > network.num_classes:
        raise DefenseError(
            f"expected label_high <= {network.num_classes}, the number of classes, got {label_high} in otbr(); "
            "leave it out"
        )
    unlearned = weight_change.unlearn_noise(
        network,
        key,
        image_shape=image_shape,
        num_labels=label_high,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        progress=data.progress,
    )
    ranking = rank(graph, variables, unlearned.variables, layers=layers, exclude=exclude, decimals=decimals)
    share = choose(ranking.scores, factor=factor) if gamma is None else gamma
    (repair,) = repairs(
        network,
        ranking,
        [share],
        weight=weight,
        chain=chain,
        cost_on_transported=cost_on_transported,
        canonical=canonical,
        solver=solver,
    )
    repaired, made = network.with_variables(repair.variables), None
    if statistics == "synthesised" and repair.alignments:
        repaired, made = _with_new_statistics(network, repaired, jax.random.fold_in(key, 1), data.progress)
    notes = _notes(
        ranking,
        repair,
        factor=factor if gamma is None else None,
        batch_statistics=network.train_fn is not None,
        made=made,
    )
    curves = {"unlearn_loss": unlearned.losses}
    chosen = {} if gamma is not None else {"gamma": share}
    return repaired, DefenseReport(ranking.layers(graph, share), notes, curves, chosen=chosen)


def _with_new_statistics(
    suspect: Network, repaired: Network, key: jax.Array, progress: training.Progress | None
) -> tuple[Network, Synthesis]:
    if suspect.train_fn is None:
        raise DefenseError(
            "expected a network with a training mode in otbr(statistics='synthesised'), got none (network.train_fn); "
            "pass it, or statistics='stored'"
        )
    labels = np.repeat(np.arange(suspect.num_classes), IMAGES_PER_CLASS)
    made = synthesise(suspect.graph, suspect.variables, key, labels=labels, progress=progress)
    if not made.norms:
        return repaired, made
    estimated = training.estimate_statistics(suspect.train_fn, repaired.variables, made.images)
    return repaired.with_variables(estimated), made


def _notes(
    ranking: Ranking, repair: Repair, *, factor: float | None, batch_statistics: bool, made: Synthesis | None
) -> tuple[str, ...]:
    notes = list(ranking.notes)
    total = sum(len(scores) for scores in ranking.scores)
    if factor is not None:
        notes.append(
            f"gamma = {repair.gamma:.3g} was chosen without images: in {round(repair.gamma * total)} of {total} "
            f"channels unlearning noise changed the weights at least {factor:g} times as much as in the median channel."
        )
    if not repair.alignments:
        notes.append(f"gamma = {repair.gamma:g} of {total} channels is less than one channel; nothing was changed.")
    if not batch_statistics:
        notes.append("No training mode is known; unlearning used the norms' running statistics.")
    if made is not None and made.norms:
        notes.append(f"The norms' running statistics were re-estimated on {made.source}.")
    elif made is not None:
        notes.append("No BatchNorm, and so no running statistics to estimate.")
    unconverged = [alignment for alignment in repair.alignments if not alignment.converged]
    if unconverged:
        worst = max(unconverged, key=lambda alignment: alignment.error)
        notes.append(
            f"Sinkhorn did not converge in {len(unconverged)} of {len(repair.alignments)} sets of channels; the worst "
            f"is {worst.name}, its masses off by {worst.error:.2g}. Take solver='exact'."
        )
    return tuple(notes)
