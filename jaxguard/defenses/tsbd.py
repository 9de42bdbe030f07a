"""TSBD: unlearn to find the backdoor's weights, set them to zero, fine-tune without waking them.

Lin et al., "Unveiling and Mitigating Backdoor Vulnerabilities based on Unlearning Weight Changes and Backdoor
Activeness", NeurIPS 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import numpy as np

from jaxguard import evaluation, training, weight_change
from jaxguard.defenses.activeness import Norm, Schedule, Statistics, fine_tune
from jaxguard.defenses.protocol import Context, DefenseReport, require_clean, require_graph, require_training
from jaxguard.errors import DefenseError, UnscorableError
from jaxguard.graph import ChannelGraph
from jaxguard.types import LayerScores, Variables
from jaxguard.weight_change.reinitialization import reinitialize

SWEEP = (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9)
"""Values of `n` that the reference code tries."""

Layers = Literal["hidden", "convolutions"]


class Ranking(NamedTuple):
    """The channels that may be reinitialised, and how far unlearning moved them.

    Attributes:
        numbers: of the producers in the channel graph.
        scores: NWC, `[C]` per producer.
        changes: `|theta_ul - theta|`, `[C, weights per channel]` per producer.
    """

    numbers: tuple[int, ...]
    scores: list[np.ndarray]
    changes: list[np.ndarray]

    def top(self, n: float) -> dict[int, np.ndarray]:
        """The channels of the highest NWC, over all layers.

        Args:
            n: share of the channels.

        Returns:
            Producer number -> bool `[C]`.
        """
        return dict(zip(self.numbers, weight_change.highest(self.scores, n), strict=True))

    def layers(self, graph: ChannelGraph, n: float) -> tuple[LayerScores, ...]:
        """Scores and masks for a report; the threshold is the highest score that was spared.

        Args:
            graph: the model's channel graph.
            n: share of the channels.

        Returns:
            One entry per producer.
        """
        masks = self.top(n)
        spared = np.concatenate([score[~masks[k]] for k, score in zip(self.numbers, self.scores, strict=True)])
        threshold = float(spared.max()) if spared.size else 0.0
        return tuple(
            LayerScores(graph.producers[k].name, score, threshold, masks[k], np.zeros(len(score), bool))
            for k, score in zip(self.numbers, self.scores, strict=True)
        )


def rank(
    graph: ChannelGraph,
    before: Variables,
    after: Variables,
    *,
    layers: Layers = "hidden",
    exclude: str = "",
    decimals: int | None = None,
) -> Ranking:
    """Compares a model with its unlearned copy.

    Args:
        graph: the model's channel graph.
        before: its variables.
        after: those of the copy.
        layers: see `tsbd`.
        exclude: see `tsbd`.
        decimals: see `tsbd`.

    Returns:
        The ranking; a kernel that is used twice stands in it once.

    Raises:
        UnscorableError: no layer is left.
    """
    kernels: dict[str, int] = {}
    for k, producer in enumerate(graph.producers):
        wanted = k not in graph.outputs and (layers == "hidden" or producer.is_convolution)
        if wanted and not (exclude and exclude in producer.name):
            kernels.setdefault(repr(producer.kernel), k)
    numbers = tuple(kernels.values())
    if not numbers:
        raise UnscorableError(
            f"expected layers to rank, came none of the {len(graph.producers)} producers with {layers=} and "
            f"{exclude=}; the layer that makes the logits is never reinitialised"
        )
    scores = weight_change.neuron_weight_change(graph, before, after, decimals=decimals)
    changes = weight_change.weight_change(graph, before, after)
    return Ranking(numbers, [scores[k] for k in numbers], [np.asarray(changes[k]) for k in numbers])


def reinitialized(graph: ChannelGraph, variables: Variables, ranking: Ranking, n: float, m: float) -> Variables:
    """The model with the most changed weights of its most changed channels set to zero.

    Args:
        graph: the model's channel graph.
        variables: its variables; not modified.
        ranking: of `rank`.
        n: share of the channels.
        m: share of their weights.

    Returns:
        The edited variables; the same where `n` or `m` is too small to name a single weight.
    """
    return reinitialize(graph, variables, dict(zip(ranking.numbers, ranking.changes, strict=True)), ranking.top(n), m)


def choose(accuracy_fn: Callable[[float], float], stop_acc: float) -> tuple[float, np.ndarray]:
    """The rule for `n`, which is ours: the smallest of `SWEEP` at which zeroing alone forgets what unlearning forgot.

    Unlearning moved the weights until the accuracy on clean images was `stop_acc`. The smallest share of channels that
    brings it as low once their most changed weights are zero holds what unlearning found; more would cost clean
    accuracy for nothing. Clean images alone are looked at, and nothing is fine-tuned for it.

    Args:
        accuracy_fn: `n -> accuracy` of the reinitialised model on clean images.
        stop_acc: accuracy to reach.

    Returns:
        `n`, the largest of `SWEEP` if none reaches it; and the accuracies of the values tried, in the order of `SWEEP`.

    Example:
        >>> choose(lambda n: 1 - 4 * n, stop_acc=0.5)
        (0.15, array([0.96, 0.8 , 0.6 , 0.4 ]))
    """
    accuracies = []
    for n in SWEEP:
        accuracies.append(accuracy_fn(n))
        if accuracies[-1] <= stop_acc:
            break
    return SWEEP[len(accuracies) - 1], np.array(accuracies)


def tsbd(
    variables: Variables,
    context: Context,
    key: jax.Array,
    *,
    n: float | None = None,
    m: float = 0.7,
    unlearn_epochs: int = 1000,
    unlearn_rate: float = 1e-4,
    stop_acc: float | None = None,
    epochs: int = 20,
    extra_epoch: bool = False,
    batch_size: int = 256,
    learning_rate: float = 0.01,
    schedule: Schedule = "constant",
    momentum: float = 0.9,
    r: float = 0.05,
    alpha: float = 0.7,
    norm: Norm = "global",
    statistics: Statistics = "after",
    layers: Layers = "hidden",
    exclude: str = "",
    decimals: int | None = None,
    augment: training.Augment | None = None,
) -> tuple[Variables, DefenseReport]:
    """Unlearns clean images, zeroes the weights that moved most, and fine-tunes with a small gradient.

    The reference code is had with `stop_acc=0.10, extra_epoch=True, norm="per_tensor", layers="convolutions",
    exclude="shortcut", decimals=4`, and `augment=CropFlip()` for CIFAR-10. Its batches come in order, ours shuffled;
    its running variances are unbiased, those of a Flax model are not. It tries all of `SWEEP` for `n` and has no rule.
    The defaults count on some thousand clean images; with a hundred, raise both learning rates.

    Args:
        variables: the suspect, left untouched.
        context: needs `clean`, `train_fn` and `graph`.
        key: draws batches and augmentation.
        n: share of the channels that are reinitialised, in [0, 1]; by default `choose` finds it.
        m: share of their weights, in [0, 1].
        unlearn_epochs: passes of ascent at most, >= 1.
        unlearn_rate: learning rate of the ascent.
        stop_acc: accuracy on the clean images at which the ascent ends; chance, `1/K`, by default.
        epochs: passes of fine-tuning, >= 0.
        extra_epoch: one pass more, as the reference code's inclusive loop takes.
        batch_size: images per step; all clean images where there are fewer.
        learning_rate: of the fine-tuning.
        schedule: of the fine-tuning: `constant`, as the reference code runs, or `cosine`, as its settings say.
        momentum: of SGD, in [0, 1), for both.
        r: length of the step along the gradient, >= 0.
        alpha: share of the gradient found there, in [0, 1].
        norm: `global`, or `per_tensor` as in the reference code.
        statistics: whether BatchNorm's running statistics are those of the weights `after` or `before` each step.
        layers: `hidden`, all but the layer that makes the logits, or `convolutions` among these.
        exclude: layers with this in their name are left alone; `shortcut` in the reference code.
        decimals: places that NWC is rounded to before ranking; 4 in the reference code.
        augment: `(key, images) -> images`, such as `training.CropFlip(padding=2, flip=False)`.

    Returns:
        The repaired variables, and a report with NWC and the reinitialised channels of every layer, and the curves
        `unlearn_loss`, `loss` and `gradient_norm`, `[steps]`, `unlearn_accuracy`, `[epochs]`, and where `n` was chosen
        `accuracy_by_n`.

    Raises:
        DefenseError: the context lacks something, a hyper-parameter is out of range, or a loss became NaN or infinite.
        UnscorableError: no layer is left to rank.
        DataError: a clean label that the model has no class for.
    """
    clean, train_fn = require_clean(context, "tsbd"), require_training(context, "tsbd")
    graph, apply_fn = require_graph(context.graph), context.apply_fn
    _require_in_range(
        shares={"n": n or 0, "m": m, "alpha": alpha},
        counts={"unlearn_epochs": unlearn_epochs - 1, "epochs": epochs, "batch_size": batch_size - 1, "r": r},
        choices={
            "schedule": (schedule, Schedule),
            "norm": (norm, Norm),
            "statistics": (statistics, Statistics),
            "layers": (layers, Layers),
        },
    )
    num_classes = jax.eval_shape(apply_fn, variables, clean.images).shape[-1]
    forgotten = 1 / num_classes if stop_acc is None else stop_acc
    key_unlearn, key_tune = jax.random.split(key)
    shared = {"batch_size": batch_size, "momentum": momentum, "augment": augment, "progress": context.progress}
    unlearned = weight_change.unlearn(
        train_fn, apply_fn, variables, clean, key_unlearn,
        epochs=unlearn_epochs, stop_acc=forgotten, learning_rate=unlearn_rate, **shared,
    )  # fmt: skip
    ranking = rank(graph, variables, unlearned.variables, layers=layers, exclude=exclude, decimals=decimals)
    curves = {"unlearn_loss": unlearned.losses, "unlearn_accuracy": unlearned.accuracies}
    notes = _notes(unlearned.accuracies, forgotten)
    if epochs and len(clean.images) <= batch_size:
        notes.append(
            f"All {len(clean.images)} clean images went into one batch, so {epochs} epochs of fine-tuning were as many "
            "steps; the paper's setting takes 200. If the backdoor stays, lower batch_size or raise learning_rate."
        )
    if n is None:
        n, curves["accuracy_by_n"] = choose(
            lambda n: evaluation.accuracy(apply_fn, reinitialized(graph, variables, ranking, n, m), clean), forgotten
        )
        notes.append(_choice_note(n, curves["accuracy_by_n"], forgotten))
    model = reinitialized(graph, variables, ranking, n, m)
    ((repaired, tuning),) = fine_tune(
        [model], train_fn, clean, key_tune,
        epochs=epochs + extra_epoch, learning_rate=learning_rate, schedule=schedule, r=r, alpha=alpha, norm=norm,
        statistics=statistics, **shared,
    )  # fmt: skip
    if not np.isfinite(tuning["loss"]).all():
        at = int(np.argmin(np.isfinite(tuning["loss"])))
        raise DefenseError(
            f"expected a finite loss, came {tuning['loss'][at]} at step {at} of {len(tuning['loss'])} of tsbd()'s "
            "fine-tuning; lower learning_rate or r, or check the model and the images for NaN"
        )
    options = {
        "n": n,
        "m": m,
        "unlearn_epochs": unlearn_epochs,
        "unlearn_rate": unlearn_rate,
        "stop_acc": forgotten,
        "epochs": epochs,
        "extra_epoch": extra_epoch,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "momentum": momentum,
        "r": r,
        "alpha": alpha,
        "norm": norm,
        "statistics": statistics,
        "layers": layers,
        "exclude": exclude,
        "decimals": decimals,
        "augment": repr(augment),
    }
    scored = ranking.layers(graph, n)
    return repaired, DefenseReport("tsbd", options, scored, notes=tuple(notes), curves={**curves, **tuning})


def _require_in_range(
    shares: dict[str, float], counts: dict[str, float], choices: dict[str, tuple[str, object]]
) -> None:
    wrong = [f"{name} outside [0, 1]" for name, value in shares.items() if not 0 <= value <= 1]
    wrong += [f"{name} too small" for name, value in counts.items() if not value >= 0]
    for name, (value, literal) in choices.items():
        if value not in get_args(literal):
            wrong.append(f"{name}={value!r}, which is none of {', '.join(get_args(literal))}")
    if wrong:
        raise DefenseError(
            "expected n, m and alpha in [0, 1], epochs and r >= 0, unlearn_epochs and batch_size >= 1, came "
            f"{'; '.join(wrong)} in tsbd()"
        )


def _notes(accuracies: np.ndarray, stop_acc: float) -> list[str]:
    if accuracies[-1] <= stop_acc:
        return []
    return [
        f"Unlearning ended after {len(accuracies)} epochs at {100 * accuracies[-1]:.1f} % accuracy on the clean "
        f"images, above the {100 * stop_acc:.1f} % it was to reach; raise unlearn_rate or unlearn_epochs."
    ]


def _choice_note(n: float, accuracies: np.ndarray, stop_acc: float) -> str:
    reached = accuracies[-1] <= stop_acc
    return (
        f"n = {n:g} was chosen on clean images: zeroing the weights that moved most in this share of the channels "
        f"leaves {100 * accuracies[-1]:.1f} % accuracy"
        + (", as little as unlearning did." if reached else f", still more than {100 * stop_acc:.1f} %.")
    )
