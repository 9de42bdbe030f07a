"""RNP: unlearn clean images, learn gates that give the accuracy back, and prune the channels whose gates close.

Li et al., "Reconstructive Neuron Pruning for Backdoor Defense", ICML 2023. Unlearning clean images with all weights
leaves the backdoor in; gates on the unlearned model, learned on the same images, then stay open for what clean images
need and close on what only the backdoor kept.
"""

from __future__ import annotations

from typing import Annotated

import jax
from annotated_types import Interval, Le

from jaxguard import methods, training, weight_change
from jaxguard.defenses.protocol import Data, DefenseReport, require_clean, require_training
from jaxguard.pruning.gate_threshold import prune
from jaxguard.pruning.holdout import hold_out
from jaxguard.pruning.learned_gates import (
    BatchStatistics,
    Form,
    GateGradient,
    Layers,
    Statistics,
    gating,
    learn,
    ungated,
)
from jaxguard.scores.channel_bounds import require_finite
from jaxguard.types import Network


@methods.checked
def rnp(
    network: Network,
    data: Data,
    key: jax.Array,
    *,
    unlearn_epochs: methods.Count = 20,
    unlearn_rate: methods.NonNegative = 0.01,
    stop_acc: Annotated[float, Le(1)] | None = None,
    epochs: methods.Steps = 20,
    learning_rate: methods.NonNegative = 0.2,
    alpha: methods.Share = 0.2,
    batch_size: methods.Count = 256,
    momentum: methods.Momentum = 0.9,
    threshold: methods.Share | None = None,
    max_drop: methods.Share = 0.1,
    holdout: Annotated[float, Interval(gt=0, lt=1)] = 0.2,
    layers: Layers = "all",
    form: Form = "channel",
    statistics: Statistics = "batch",
    augment: training.Augmentation = None,
) -> tuple[Network, DefenseReport]:
    """Unlearns, learns gates on the unlearned model, and cuts the channels of low gates in the suspect.

    The defaults are those of the paper's code and of BackdoorBench. `layers="norms", form="weight"` gives their gates,
    `threshold=0.7` their fixed threshold; by default it is chosen on held-out clean images, by a rule of ours, where
    BackdoorBench uses the test ASR. Unlearning is `weight_change.unlearn`, without their weight decay and falling
    learning rate, and measures the accuracy in evaluation mode.

    Args:
        network: the suspect.
        data: needs `clean`.
        key: draws held-out images, batches and augmentation.
        unlearn_epochs: passes of ascent at most.
        unlearn_rate: learning rate of the ascent.
        stop_acc: accuracy on the clean images at which the ascent ends; by default a tenth above chance, which for ten
            classes is the 0.20 of the paper's code.
        epochs: passes in which gates are learned; 0 leaves them open.
        learning_rate: of the gates.
        alpha: factor of their loss.
        batch_size: images per step, at most all of them.
        momentum: of SGD, for both.
        threshold: gates up to it are cut; chosen by default.
        max_drop: most relative loss of held-out accuracy.
        holdout: share of the clean images to choose the threshold on; none if it is given.
        layers: `all` that CLP scores, or those with BatchNorm, `norms`.
        form: `channel` gates weight and bias, `weight` leaves the bias.
        statistics: BatchNorm's while gates are learned: the `batch`'s or the unlearned model's, `running`.
        augment: of the images, such as `crop` for digits and signs, `crop-flip` for photographs.

    Returns:
        The repaired network, and a report with `1 - gate` and the cut channels of every layer, the curves
        `unlearn_loss`, `[steps]`, `unlearn_accuracy`, `[epochs]`, and `loss` of the gates, `[steps]`, and where the
        threshold was chosen `accuracy_by_threshold`.

    Raises:
        DefenseError: clean images or a training mode are missing, or a loss is not finite.
        UnscorableError: no layer can be gated, or a parameter is not finite.
        DataError: a clean label that the model has no class for.
    """
    clean, train_fn = require_clean(data, "rnp"), require_training(network, "rnp")
    where = gating(network.graph, layers, form)
    require_finite(network.variables)
    key_held, key_unlearn, key_learn = jax.random.split(key, 3)
    learned, held = (clean, clean) if threshold is not None else hold_out(clean, holdout, key_held, "rnp")
    forgotten = 1 / network.num_classes + 0.1 if stop_acc is None else stop_acc
    unlearned = weight_change.unlearn(
        network,
        learned,
        key_unlearn,
        epochs=unlearn_epochs,
        stop_acc=forgotten,
        batch_size=batch_size,
        learning_rate=unlearn_rate,
        momentum=momentum,
        augment=augment,
        progress=training.staged(data.progress, "unlearning"),
    )
    logits_fn = network.apply_fn if statistics == "running" else BatchStatistics(train_fn)
    gates, curves = learn(
        GateGradient(where, logits_fn, alpha),
        where.ones(),
        {"model": unlearned.variables},
        learned,
        key_learn,
        steps=epochs * training.steps_per_epoch(len(learned.images), min(batch_size, len(learned.images))),
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        augment=augment,
        progress=training.staged(data.progress, "learning gates"),
    )
    pruned = prune(where, network, gates, threshold, held=held, max_drop=max_drop)
    curves = {"unlearn_loss": unlearned.losses, "unlearn_accuracy": unlearned.accuracies, **curves, **pruned.curves}
    notes = (*weight_change.shortfall(unlearned, forgotten), *pruned.notes, *ungated(where.graph))
    left_open = {"stop_acc": (stop_acc, forgotten), "threshold": (threshold, pruned.threshold)}
    chosen = {name: value for name, (given, value) in left_open.items() if given is None}
    return network.with_variables(pruned.variables), DefenseReport(pruned.layers, notes, curves, chosen=chosen)
