"""Fine-Pruning: cut the last hidden channels that are dormant on clean images, then fine-tune.

Liu, Dolan-Gavitt and Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", RAID 2018. A
backdoor is expected in channels that clean images do not activate. The paper cuts channels of the last convolution;
BackdoorBench cuts columns of the layer that makes the logits.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval

from jaxguard import evaluation, methods, surgery, training
from jaxguard.activations.layer_inputs import mean_activations
from jaxguard.defenses.ft import ft
from jaxguard.defenses.protocol import Data, DefenseReport, require_clean, require_training
from jaxguard.errors import UnscorableError
from jaxguard.graph import ChannelGraph, Group, LeafView, Member, kernel_cuts
from jaxguard.pruning.holdout import hold_out
from jaxguard.scores.channel_bounds import require_finite
from jaxguard.types import LayerScores, Network, Variables

Prune = Literal["channels", "inputs"]
Dormancy = Literal["magnitude", "mean"]


class LastHidden(NamedTuple):
    """Channels that the layer of the logits reads.

    Attributes:
        name: of the first layer that makes them.
        activations: `[C]` mean activation of each.
        places: where they lie in the parameters and are set to zero.
        kernels: numbers of producers that make them by kernels which are cut otherwise, and where they lie there.
        why: why they cannot be cut; empty if they can.
    """

    name: str
    activations: np.ndarray
    places: tuple[Member, ...]
    kernels: tuple[tuple[int, Member], ...] = ()
    why: str = ""


def last_hidden(
    graph: ChannelGraph,
    variables: Variables,
    images: jax.Array | np.ndarray,
    *,
    prune: Prune = "channels",
    dormancy: Dormancy = "magnitude",
) -> list[LastHidden]:
    """What may be cut, with its activation on clean images as the layer of the logits reads it, pooled and all.

    Args:
        graph: the model's channel graph.
        variables: its variables.
        images: `[N, ...]`.
        prune: `channels` are the graph's groups, everywhere they lie: kernels that make or read them, biases, norms.
            Behind residual sums that is a channel of the whole last stage, and with padded shortcuts, as in ResNet-20,
            of earlier ones too. Where several groups share an input, as after grouped convolutions, the largest is
            taken. `inputs` are rows of the logits' kernel alone.
        dormancy: mean over the images of the activation's `magnitude`, or `mean`, as BackdoorBench has it, which cuts
            strongly negative channels first where no ReLU comes before the logits.

    Returns:
        One entry per group, or per layer that makes logits.

    Raises:
        UnscorableError: no hidden channel reaches the logits' layer.
    """
    found: dict[str, list[LastHidden]] = {}
    hidden = {producer.name for number, producer in enumerate(graph.producers) if number not in graph.outputs}
    edited = _parameters(graph, variables)
    for number in sorted(graph.outputs):
        producer = graph.producers[number]
        inputs = mean_activations(graph, variables, images, number, magnitude=dormancy == "magnitude")
        for k, axis in enumerate(producer.in_axes):
            along = inputs.mean(tuple(j for j in range(inputs.ndim) if j != k))
            if prune == "inputs":
                place = Member(producer.kernel.path, axis, np.arange(len(along))[None])
                is_zero = kernel_cuts.is_zero_where_leaves_are(graph, number, (place,))
                why = "" if is_zero else f"zeros in {place.path} are none in the kernel that is computed from it"
                found.setdefault(producer.name, []).append(LastHidden(producer.name, along, (place,), why=why))
                continue
            taken = np.zeros(len(along), bool)
            for group in sorted(graph.groups, key=lambda group: -group.size):
                own = [m.positions for m in group.members if (m.path, m.axis) == (producer.kernel.path, axis)]
                if own and group.name in hidden and not taken[np.concatenate(own)].any():
                    positions = np.concatenate(own)
                    taken[positions] = True
                    one = _with_cut(graph, group, edited)
                    found.setdefault(group.name, []).append(one._replace(activations=along[positions].mean(0)))
    if not found:
        raise UnscorableError(
            f"expected hidden channels that the layer of the logits reads, got none among {len(graph.producers)} "
            f"producers with {prune=} in fine_pruning(); a model with nothing but an output layer hides no channels"
        )
    return [one for entries in found.values() for one in entries]


def _with_cut(graph: ChannelGraph, group: Group, edited: set[str]) -> LastHidden:
    """How a group's channels are cut: zeros wherever they lie, but in leaves whose zeros are none in the kernel."""
    places = tuple(member for member in group.members if member.path in edited)
    computed = [k for k in range(len(graph.producers)) if not kernel_cuts.is_zero_where_leaves_are(graph, k, places)]
    inside = {path for k in computed for path in graph.program.leaves_under(graph.producers[k].operand)}
    kernels, why = [], []
    for k in dict.fromkeys(graph.first_uses[k] for k in computed):
        view = graph.producers[k].kernel
        made = [member for member in group.members if member.path == view.path and member.axis in view.axes]
        kernels += [(k, member) for member in made]
        why += [reason for _ in made if (reason := kernel_cuts.why_uncuttable(graph, k))]
    kept = tuple(place for place in places if place.path not in inside)
    return LastHidden(group.name, np.zeros(0), kept, tuple(kernels), "; ".join(dict.fromkeys(why)))


def _parameters(graph: ChannelGraph, variables: Variables) -> set[str]:
    """Leaves that are no running statistics."""
    views = [view for affine in graph.affines for view in (affine.mean, affine.var)]
    statistics = {view.path for view in views if view}
    has_collections = training.partition(variables)[1] is not None
    paths = {path for path in graph.program.paths if path.startswith("params/") or not has_collections}
    return paths - statistics


def cut(graph: ChannelGraph, variables: Variables, layers: list[LastHidden], masks: list[np.ndarray]) -> Any:
    """Sets channels to zero wherever they lie.

    Args:
        graph: the model's channel graph.
        variables: of the model; not modified.
        layers: of `last_hidden`.
        masks: bool `[C]` for each.

    Returns:
        The edited variables, in which nothing depends on the channels any more.
    """
    for layer, mask in zip(layers, masks, strict=True):
        for path, axis, positions in layer.places if mask.any() else ():
            index = (slice(None),) * axis + (positions[:, mask].reshape(-1),)
            variables = surgery.edit(variables, {path: lambda leaf, index=index: jnp.asarray(leaf).at[index].set(0)})
        for number, member in layer.kernels if mask.any() else ():
            channels = _channels_at(graph.producers[number].kernel, member, mask)
            variables = surgery.cut_kernel(graph, variables, number, channels)
    return variables


def _channels_at(view: LeafView, member: Member, mask: np.ndarray) -> np.ndarray:
    """Which of a kernel's channels `[C]` are the masked ones of a group that lies on one of its axes."""
    run = view.index[member.axis]
    along = np.isin(np.arange(run.start, run.stop), member.positions[:, mask])
    sizes = [size if axis == member.axis else 1 for axis, size in zip(view.axes, view.shape, strict=True)]
    return np.broadcast_to(along.reshape(sizes), view.shape).reshape(-1)


@methods.checked
@methods.options_of(ft)
def fine_pruning(
    network: Network,
    data: Data,
    key: jax.Array,
    *,
    prune: Prune = "channels",
    dormancy: Dormancy = "magnitude",
    stride: Annotated[float, Interval(gt=0, le=1)] = 0.01,
    max_drop: methods.Share = 0.1,
    max_share: methods.Share = 1.0,
    holdout: Annotated[float, Interval(gt=0, lt=1)] = 0.2,
    **tuning: Any,
) -> tuple[Network, DefenseReport]:
    """Cuts dormant channels while held-out clean images are still recognised, then fine-tunes what is left.

    What was cut stays zero while fine-tuning. `prune="inputs", dormancy="mean"` give BackdoorBench's cuts,
    `schedule_epochs=100` and, for CIFAR-10, `augment="crop-flip"` its fine-tuning. It measures the accuracy on *test*
    images, cuts one column less than it counts and keeps the step that went too far; here the accuracy is that of
    clean images which are used for nothing else, and the step that goes too far is taken back.

    Args:
        network: the suspect.
        data: needs `clean`, at least two images.
        key: draws the held-out images, batches and augmentation.
        prune: see `last_hidden`.
        dormancy: see `last_hidden`.
        stride: share of the channels cut at a time, rounded up.
        max_drop: a cut that loses this share of the accuracy is taken back, and no more are tried.
        max_share: most channels cut, as a share of all; one is always left.
        holdout: share of the clean images that only judge the cuts, one at least.
        tuning: options of `ft`, which fine-tunes.

    Returns:
        The repaired network, and a report with the channels cut, whose scores are their mean activations times -1,
        and the curves `accuracy_by_cut`, before any cut and after each, and `loss`, `[steps]`.

    Raises:
        DefenseError: clean images or a training mode are missing, or the loss became NaN or infinite.
        UnscorableError: no hidden channel reaches the logits' layer or can be cut, or a parameter is not finite.
    """
    clean, train_fn = require_clean(data, "fine-pruning"), require_training(network, "fine-pruning")
    require_finite(network.variables)
    key_split, key_tune = jax.random.split(key)
    learned, judges = hold_out(clean, holdout, key_split, "fine-pruning")
    graph = network.graph
    candidates = last_hidden(graph, network.variables, learned.images, prune=prune, dormancy=dormancy)
    layers = [one for one in candidates if not one.why]
    uncut = tuple(f"The channels of {one.name} cannot be cut: {one.why}." for one in candidates if one.why)
    if not layers:
        raise UnscorableError(
            f"expected hidden channels that can be cut in the leaves, got none in fine_pruning(). {' '.join(uncut)}"
        )
    activations = np.concatenate([layer.activations for layer in layers])
    order = np.argsort(activations, kind="stable")
    edges = np.cumsum([len(layer.activations) for layer in layers])[:-1]

    def masks(count: int) -> list[np.ndarray]:
        return np.split(np.isin(np.arange(len(order)), order[:count]), edges)

    stops = range(0, min(math.floor(max_share * len(order)), len(order) - 1) + 1, math.ceil(stride * len(order)))
    accuracies, chosen = [], 0
    for count in stops:
        pruned = cut(graph, network.variables, layers, masks(count))
        accuracies.append(evaluation.accuracy(network.with_variables(pruned), judges))
        if count and accuracies[0] - accuracies[-1] >= max_drop * accuracies[0]:
            break
        chosen = count
    chosen_masks = masks(chosen)

    def pruned_train_fn(variables: Variables, images: jax.Array) -> tuple[jax.Array, Variables]:
        return train_fn(cut(graph, variables, layers, chosen_masks), images)

    pruned = Network(
        cut(graph, network.variables, layers, chosen_masks), network.apply_fn, network.input_spec, pruned_train_fn
    )
    repaired, tuned = ft(
        pruned,
        replace(data, clean=learned),
        key_tune,
        **tuning,
    )
    threshold = -float(activations[order[chosen]])
    scored = tuple(
        LayerScores(layer.name, -layer.activations, threshold, mask, np.zeros(len(mask), bool))
        for layer, mask in zip(layers, chosen_masks, strict=True)
    )
    return network.with_variables(repaired.variables), DefenseReport(
        scored,
        (_note(chosen, len(order), accuracies, stops, len(judges.images)), *uncut),
        {"accuracy_by_cut": np.array(accuracies), **tuned.curves},
    )


def _note(chosen: int, total: int, accuracies: list[float], stops: range, judged: int) -> str:
    kept = accuracies[stops.index(chosen)]
    then = "more were not tried" if stops[len(accuracies) - 1] == chosen else "the next cut cost too much"
    return (
        f"{chosen} of {total} channels were cut, judged on {judged} held-out clean images: accuracy "
        f"{100 * accuracies[0]:.1f} % before, {100 * kept:.1f} % after, and {then}."
    )
