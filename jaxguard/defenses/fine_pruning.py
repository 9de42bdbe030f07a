"""Fine-Pruning: cut the last hidden channels that sleep on clean images, then fine-tune.

Liu, Dolan-Gavitt and Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", RAID 2018. A
backdoor is expected in channels that clean images leave alone. The paper cuts channels of the last convolution;
BackdoorBench cuts columns of the layer that makes the logits.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import evaluation, surgery, training
from jaxguard.defenses.ft import ft
from jaxguard.defenses.holdout import hold_out
from jaxguard.defenses.layer_inputs import mean_activations
from jaxguard.defenses.protocol import (
    Context,
    DefenseReport,
    require_clean,
    require_graph,
    require_training,
)
from jaxguard.errors import DefenseError, UnscorableError
from jaxguard.graph import ChannelGraph, Member
from jaxguard.scores.channel_bounds import require_finite
from jaxguard.types import LayerScores, Variables

Prune = Literal["channels", "inputs"]
Dormancy = Literal["magnitude", "mean"]


class LastHidden(NamedTuple):
    """Channels that the layer of the logits reads.

    Attributes:
        name: of the first layer that makes them.
        activations: `[C]` mean activation of each.
        places: where they lie in the parameters.
    """

    name: str
    activations: np.ndarray
    places: tuple[Member, ...]


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
    found: dict[str, list[tuple[np.ndarray, tuple[Member, ...]]]] = {}
    hidden = {producer.name for number, producer in enumerate(graph.producers) if number not in graph.outputs}
    edited = _parameters(graph, variables)
    for number in sorted(graph.outputs):
        producer = graph.producers[number]
        inputs = mean_activations(graph, variables, images, number, magnitude=dormancy == "magnitude")
        for k, axis in enumerate(producer.in_axes):
            along = inputs.mean(tuple(j for j in range(inputs.ndim) if j != k))
            if prune == "inputs":
                place = Member(producer.kernel.path, axis, np.arange(len(along))[None])
                found.setdefault(producer.name, []).append((along, (place,)))
                continue
            taken = np.zeros(len(along), bool)
            for group in sorted(graph.groups, key=lambda group: -group.size):
                own = [m.positions for m in group.members if (m.path, m.axis) == (producer.kernel.path, axis)]
                if own and group.name in hidden and not taken[np.concatenate(own)].any():
                    positions = np.concatenate(own)
                    taken[positions] = True
                    places = tuple(member for member in group.members if member.path in edited)
                    found.setdefault(group.name, []).append((along[positions].mean(0), places))
    if not found:
        raise UnscorableError(
            f"expected hidden channels that the layer of the logits reads, came none among {len(graph.producers)} "
            f"producers with {prune=} in fine_pruning(); a model with nothing but an output layer hides no channels"
        )
    return [LastHidden(name, *parts) for name, entries in found.items() for parts in entries]


def _parameters(graph: ChannelGraph, variables: Variables) -> set[str]:
    """Leaves that are no running statistics."""
    views = [view for affine in graph.affines for view in (affine.mean, affine.var)]
    statistics = {view.path for view in views if view}
    has_collections = training.partition(variables)[1] is not None
    paths = {path for path in graph.program.paths if path.startswith("params/") or not has_collections}
    return paths - statistics


def cut(variables: Variables, layers: list[LastHidden], masks: list[np.ndarray]) -> Any:
    """Sets channels to zero wherever they lie.

    Args:
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
    return variables


def fine_pruning(
    variables: Variables,
    context: Context,
    key: jax.Array,
    *,
    prune: Prune = "channels",
    dormancy: Dormancy = "magnitude",
    stride: float = 0.01,
    max_drop: float = 0.1,
    max_share: float = 1.0,
    holdout: float = 0.2,
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.0,
    schedule_epochs: int | None = None,
    augment: training.Augment | None = None,
) -> tuple[Any, DefenseReport]:
    """Cuts dormant channels while held-out clean images are still recognised, then fine-tunes what is left.

    What was cut stays zero while fine-tuning. BackdoorBench's cuts are had with `prune="inputs", dormancy="mean"`, its
    fine-tuning with `schedule_epochs=100` and, for CIFAR-10, `augment=CropFlip()`. It measures the accuracy on *test*
    images, cuts one column less than it counts and keeps the step that went too far; here the accuracy is that of
    clean images which are used for nothing else, and the step that goes too far is taken back.

    Args:
        variables: the suspect, left untouched.
        context: needs `clean`, at least two images, `train_fn` and `graph`.
        key: draws the held-out images, batches and augmentation.
        prune: see `last_hidden`.
        dormancy: see `last_hidden`.
        stride: share of the channels cut at a time, rounded up.
        max_drop: a cut that loses this share of the accuracy is taken back, and no more are tried.
        max_share: most channels cut, as a share of all; one is always left.
        holdout: share of the clean images that only judge the cuts, one at least.
        epochs: of fine-tuning, see `jaxguard.defenses.ft.ft`, as are the others.
        batch_size: images per step.
        learning_rate: of the first epoch.
        momentum: of SGD.
        weight_decay: of SGD.
        label_smoothing: in [0, 1].
        schedule_epochs: epochs until the rate would be 0.
        augment: `(key, images) -> images`.

    Returns:
        The repaired variables, and a report with the channels cut, whose scores are their mean activations times -1,
        and the curves `accuracy_by_cut`, before any cut and after each, and `loss`, `[steps]`.

    Raises:
        DefenseError: the context lacks something, a hyper-parameter is out of range, or the loss became NaN or
            infinite.
        UnscorableError: no hidden channel reaches the logits' layer.
    """
    clean, train_fn = require_clean(context, "fine-pruning"), require_training(context, "fine-pruning")
    graph = require_graph(context.graph)
    shares = {"max_drop": max_drop, "max_share": max_share, "holdout": holdout}
    if not (0 < stride <= 1 and 0 < holdout < 1 and all(0 <= share <= 1 for share in shares.values())):
        raise DefenseError(
            f"expected stride in (0, 1], holdout in (0, 1), max_drop and max_share in [0, 1], came {stride=}, {shares} "
            "in fine_pruning(); BackdoorBench's stride is 0.01 and its drop 0.1"
        )
    for name, value, known in (("prune", prune, Prune), ("dormancy", dormancy, Dormancy)):
        if value not in get_args(known):
            raise DefenseError(
                f"expected {name} to be {' or '.join(get_args(known))}, came {value!r} in fine_pruning()"
            )
    require_finite(variables)
    key_split, key_tune = jax.random.split(key)
    learned, judges = hold_out(clean, holdout, key_split, "fine-pruning")
    layers = last_hidden(graph, variables, learned.images, prune=prune, dormancy=dormancy)
    activations = np.concatenate([layer.activations for layer in layers])
    order = np.argsort(activations, kind="stable")
    edges = np.cumsum([len(layer.activations) for layer in layers])[:-1]

    def masks(count: int) -> list[np.ndarray]:
        return np.split(np.isin(np.arange(len(order)), order[:count]), edges)

    stops = range(0, min(math.floor(max_share * len(order)), len(order) - 1) + 1, math.ceil(stride * len(order)))
    accuracies, chosen = [], 0
    for count in stops:
        pruned = cut(variables, layers, masks(count))
        accuracies.append(evaluation.accuracy(context.apply_fn, pruned, judges))
        if count and accuracies[0] - accuracies[-1] >= max_drop * accuracies[0]:
            break
        chosen = count
    chosen_masks = masks(chosen)

    def pruned_train_fn(variables: Variables, images: jax.Array) -> tuple[jax.Array, Variables]:
        return train_fn(cut(variables, layers, chosen_masks), images)

    tuning = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "schedule_epochs": schedule_epochs,
        "augment": augment,
    }
    given = replace(context, clean=learned, train_fn=pruned_train_fn)
    repaired, tuned = ft(cut(variables, layers, chosen_masks), given, key_tune, **tuning)
    threshold = -float(activations[order[chosen]])
    scored = tuple(
        LayerScores(layer.name, -layer.activations, threshold, mask, np.zeros(len(mask), bool))
        for layer, mask in zip(layers, chosen_masks, strict=True)
    )
    cuts = {"prune": prune, "dormancy": dormancy, "stride": stride, **shares}
    return repaired, DefenseReport(
        "fine-pruning",
        {**cuts, **tuned.options},
        scored,
        notes=(_note(chosen, len(order), accuracies, stops, len(judges.images)),),
        curves={"accuracy_by_cut": np.array(accuracies), **tuned.curves},
    )


def _note(chosen: int, total: int, accuracies: list[float], stops: range, judged: int) -> str:
    kept = accuracies[stops.index(chosen)]
    then = "more were not tried" if stops[len(accuracies) - 1] == chosen else "the next cut cost too much"
    return (
        f"{chosen} of {total} channels were cut, judged on {judged} held-out clean images: accuracy "
        f"{100 * accuracies[0]:.1f} % before, {100 * kept:.1f} % after, and {then}."
    )
