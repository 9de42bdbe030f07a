"""TSBD: unlearn to find the backdoor's weights, set them to zero, fine-tune without reactivating them.

Lin et al., "Unveiling and Mitigating Backdoor Vulnerabilities based on Unlearning Weight Changes and Backdoor
Activeness", NeurIPS 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import jax
import numpy as np
from annotated_types import Le

from jaxguard import evaluation, methods, training, weight_change
from jaxguard.defenses.protocol import Data, DefenseReport, one_batch, require_clean, require_training
from jaxguard.errors import DefenseError
from jaxguard.graph import ChannelGraph
from jaxguard.training.activeness import Norm, Schedule, Statistics, fine_tune
from jaxguard.types import Network, Variables
from jaxguard.weight_change import Layers, Ranking, rank
from jaxguard.weight_change.reinitialization import reinitialize

SWEEP = (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9)
"""Values of `n` that the reference code tries."""


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
    """Our rule for `n`: the smallest of `SWEEP` at which zeroing alone forgets what unlearning forgot.

    Unlearning moved the weights until the accuracy on clean images was `stop_acc`. The smallest share of channels that
    brings it as low once their most changed weights are zero holds what unlearning found; more would cost clean
    accuracy for nothing. It uses clean images alone, and fine-tunes nothing.

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


@methods.checked
def tsbd(
    network: Network,
    data: Data,
    key: jax.Array,
    *,
    n: methods.Share | None = None,
    m: methods.Share = 0.7,
    unlearn_epochs: methods.Count = 1000,
    unlearn_rate: methods.NonNegative = 1e-4,
    stop_acc: Annotated[float, Le(1)] | None = None,
    epochs: methods.Steps = 20,
    extra_epoch: bool = False,
    batch_size: methods.Count = 256,
    learning_rate: methods.NonNegative = 0.01,
    schedule: Schedule = "constant",
    momentum: methods.Momentum = 0.9,
    r: methods.NonNegative = 0.05,
    alpha: methods.Share = 0.7,
    norm: Norm = "global",
    statistics: Statistics = "after",
    layers: Layers = "hidden",
    exclude: str = "",
    decimals: methods.Steps | None = None,
    augment: training.Augmentation = None,
) -> tuple[Network, DefenseReport]:
    """Unlearns clean images, zeroes the weights that moved most, and fine-tunes with a small gradient.

    `stop_acc=0.10, extra_epoch=True, norm="per_tensor", layers="convolutions", exclude="shortcut", decimals=4`, and
    `augment="crop-flip"` for CIFAR-10, give the reference code. Its batches come in order, ours shuffled;
    its running variances are unbiased, those of a Flax model are not. It tries all of `SWEEP` for `n` and has no rule.
    The defaults are made for some thousand clean images; with a hundred, raise both learning rates.

    Args:
        network: the suspect.
        data: needs `clean`.
        key: draws batches and augmentation.
        n: share of the channels that are reinitialised; chosen by `choose` by default.
        m: share of their weights.
        unlearn_epochs: passes of ascent at most.
        unlearn_rate: learning rate of the ascent.
        stop_acc: accuracy on the clean images at which the ascent ends; chance, `1/K`, by default.
        epochs: passes of fine-tuning.
        extra_epoch: one pass more, as the reference code's inclusive loop takes.
        batch_size: images per step, at most all clean images.
        learning_rate: of the fine-tuning.
        schedule: of the fine-tuning: `constant`, as the reference code runs, or `cosine`, as its settings say.
        momentum: of SGD, for both.
        r: length of the step along the gradient.
        alpha: share of the gradient found there.
        norm: `global`, or `per_tensor` as in the reference code.
        statistics: whether BatchNorm's running statistics are those of the weights `after` or `before` each step.
        layers: `hidden`, all but the layer that makes the logits, or `convolutions` among these.
        exclude: layers with this in their name are left alone; `shortcut` in the reference code.
        decimals: places that NWC is rounded to before ranking; 4 in the reference code.
        augment: of the images, such as `crop` for digits and signs, `crop-flip` for photographs.

    Returns:
        The repaired network, and a report with NWC and the reinitialised channels of every layer, and the curves
        `unlearn_loss`, `loss` and `gradient_norm`, `[steps]`, `unlearn_accuracy`, `[epochs]`, and where `n` was chosen
        `accuracy_by_n`.

    Raises:
        DefenseError: clean images or a training mode are missing, or a loss became NaN or infinite.
        UnscorableError: no layer is left to rank.
        DataError: a clean label that the model has no class for.
    """
    clean, train_fn = require_clean(data, "tsbd"), require_training(network, "tsbd")
    graph, variables = network.graph, network.variables
    forgotten = 1 / network.num_classes if stop_acc is None else stop_acc
    key_unlearn, key_tune = jax.random.split(key)
    unlearned = weight_change.unlearn(
        network, clean, key_unlearn,
        epochs=unlearn_epochs, stop_acc=forgotten, learning_rate=unlearn_rate, batch_size=batch_size,
        momentum=momentum, augment=augment, progress=data.progress,
    )  # fmt: skip
    ranking = rank(
        graph, variables, unlearned.variables, layers=layers, exclude=exclude, decimals=decimals, scope="weights"
    )
    curves = {"unlearn_loss": unlearned.losses, "unlearn_accuracy": unlearned.accuracies}
    notes = [
        *ranking.notes,
        *weight_change.shortfall(unlearned, forgotten),
        *one_batch(clean, batch_size, epochs, "the paper's setting takes 200"),
    ]
    chosen = {"stop_acc": forgotten} if stop_acc is None else {}
    if n is None:
        n, curves["accuracy_by_n"] = choose(
            lambda n: evaluation.accuracy(
                network.with_variables(reinitialized(graph, variables, ranking, n, m)), clean
            ),
            forgotten,
        )
        chosen["n"] = n
        notes.append(_choice_note(n, curves["accuracy_by_n"], forgotten))
    model = reinitialized(graph, variables, ranking, n, m)
    ((repaired, tuning),) = fine_tune(
        [model], train_fn, clean, key_tune,
        epochs=epochs + extra_epoch, learning_rate=learning_rate, schedule=schedule, r=r, alpha=alpha, norm=norm,
        statistics=statistics, batch_size=batch_size, momentum=momentum, augment=augment, progress=data.progress,
    )  # fmt: skip
    training.require_finite_loss(tuning["loss"], "fine-tuning of tsbd", "lower learning_rate or r", DefenseError)
    return network.with_variables(repaired), DefenseReport(
        ranking.layers(graph, n), tuple(notes), {**curves, **tuning}, chosen=chosen
    )


def _choice_note(n: float, accuracies: np.ndarray, stop_acc: float) -> str:
    reached = accuracies[-1] <= stop_acc
    return (
        f"n = {n:g} was chosen on clean images: zeroing the weights that moved most in this share of the channels "
        f"leaves {100 * accuracies[-1]:.1f} % accuracy"
        + (", as little as unlearning did." if reached else f", still more than {100 * stop_acc:.1f} %.")
    )
