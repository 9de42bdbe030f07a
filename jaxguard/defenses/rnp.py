"""RNP: unlearn clean images, see which channels stay shut when the accuracy is to come back, and prune those.

Li et al., "Reconstructive Neuron Pruning for Backdoor Defense", ICML 2023. Unlearning clean images with all weights
leaves the backdoor in; gates on the unlearned model, learned on the same images, then stay open for what clean images
need and close on what only the backdoor kept.
"""

from __future__ import annotations

import jax

from jaxguard import training, weight_change
from jaxguard.defenses.gate_threshold import prune
from jaxguard.defenses.holdout import hold_out
from jaxguard.defenses.learned_gates import (
    Form,
    GateGradient,
    Layers,
    Statistics,
    gating,
    learn,
    model_of,
    require_in_range,
    ungated,
)
from jaxguard.defenses.protocol import Context, DefenseReport, require_clean, require_training
from jaxguard.defenses.recovery import staged
from jaxguard.errors import DefenseError
from jaxguard.scores.channel_bounds import require_finite
from jaxguard.types import Variables


def rnp(
    variables: Variables,
    context: Context,
    key: jax.Array,
    *,
    unlearn_epochs: int = 20,
    unlearn_rate: float = 0.01,
    stop_acc: float | None = None,
    epochs: int = 20,
    learning_rate: float = 0.2,
    alpha: float = 0.2,
    batch_size: int = 256,
    momentum: float = 0.9,
    threshold: float | None = None,
    max_drop: float = 0.1,
    holdout: float = 0.2,
    layers: Layers = "all",
    form: Form = "channel",
    statistics: Statistics = "batch",
    augment: training.Augment | None = None,
) -> tuple[Variables, DefenseReport]:
    """Unlearns, learns gates on the unlearned model, and cuts the channels of low gates in the suspect.

    Numbers are the paper's code's and BackdoorBench's. Their gates are had with `layers="norms", form="weight"`, their
    fixed threshold with `threshold=0.7`; by default it is chosen on held-out clean images, which is ours, where
    BackdoorBench looks at the test ASR. Unlearning is `weight_change.unlearn`, without their weight decay and falling
    learning rate, and looks at the accuracy in evaluation mode.

    Args:
        variables: the suspect, left untouched.
        context: needs `clean`, `train_fn` and `graph`.
        key: draws held-out images, batches and augmentation.
        unlearn_epochs: passes of ascent at most, >= 1.
        unlearn_rate: learning rate of the ascent.
        stop_acc: accuracy on the clean images at which the ascent ends; by default a tenth above chance, which for ten
            classes is the 0.20 of the paper's code.
        epochs: passes in which gates are learned; 0 leaves them open.
        learning_rate: of the gates.
        alpha: factor of their loss, in [0, 1].
        batch_size: images per step; all of them where there are fewer.
        momentum: of SGD, in [0, 1), for both.
        threshold: gates up to it are cut, in [0, 1]; by default it is chosen.
        max_drop: most relative loss of held-out accuracy, in [0, 1].
        holdout: share of the clean images to choose the threshold on, in (0, 1); none if it is given.
        layers: `all` that CLP scores, or those with BatchNorm, `norms`.
        form: `channel` gates weight and bias, `weight` leaves the bias.
        statistics: BatchNorm's while gates are learned: the `batch`'s or the unlearned model's, `running`.
        augment: `(key, images) -> images`, such as `training.CropFlip(padding=2, flip=False)`.

    Returns:
        The repaired variables, and a report with `1 - gate` and the cut channels of every layer, the curves
        `unlearn_loss`, `[steps]`, `unlearn_accuracy`, `[epochs]`, and `loss` of the gates, `[steps]`, and where the
        threshold was chosen `accuracy_by_threshold`.

    Raises:
        DefenseError: the context lacks something, a hyper-parameter is out of range, or a loss or a parameter is not
            finite.
        UnscorableError: no layer can be gated.
        DataError: a clean label that the model has no class for.
    """
    options = {name: value for name, value in locals().items() if name not in ("variables", "context", "key")}
    clean, train_fn = require_clean(context, "rnp"), require_training(context, "rnp")
    require_in_range(options, "rnp")
    if not unlearn_epochs >= 1:
        raise DefenseError(f"expected unlearn_epochs >= 1, came {unlearn_epochs} in rnp(); the paper's is 20")
    where = gating(context.graph, layers, form)
    require_finite(variables)
    key_held, key_unlearn, key_learn = jax.random.split(key, 3)
    learned, held = (clean, clean) if threshold is not None else hold_out(clean, holdout, key_held, "rnp")
    num_classes = jax.eval_shape(context.apply_fn, variables, learned.images).shape[-1]
    forgotten = 1 / num_classes + 0.1 if stop_acc is None else stop_acc
    shared = {"batch_size": batch_size, "momentum": momentum, "augment": augment}
    unlearned = weight_change.unlearn(
        train_fn,
        context.apply_fn,
        variables,
        learned,
        key_unlearn,
        epochs=unlearn_epochs,
        stop_acc=forgotten,
        learning_rate=unlearn_rate,
        progress=staged(context.progress, "unlearning"),
        **shared,
    )
    gates, curves = learn(
        GateGradient(where, model_of(context, statistics, "rnp"), alpha),
        where.ones(),
        {"model": unlearned.variables},
        learned,
        key_learn,
        steps=epochs * training.steps_per_epoch(len(learned.images), min(batch_size, len(learned.images))),
        learning_rate=learning_rate,
        progress=staged(context.progress, "learning gates"),
        **shared,
    )
    pruned = prune(where, variables, gates, threshold, apply_fn=context.apply_fn, held=held, max_drop=max_drop)
    options |= {"stop_acc": forgotten, "threshold": pruned.threshold, "augment": repr(augment)}
    curves = {
        "unlearn_loss": unlearned.losses,
        "unlearn_accuracy": unlearned.accuracies,
        **curves,
        **pruned.curves,
    }
    notes = (*pruned.notes, *ungated(where.graph))
    if unlearned.accuracies[-1] > forgotten:
        notes = (
            f"Unlearning ended after {len(unlearned.accuracies)} epochs at {100 * unlearned.accuracies[-1]:.1f} % "
            f"accuracy on the clean images, above the {100 * forgotten:g} % it was to reach; raise unlearn_rate or "
            "unlearn_epochs.",
            *notes,
        )
    return pruned.variables, DefenseReport("rnp", options, pruned.layers, notes, curves)
