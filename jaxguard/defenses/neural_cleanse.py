"""Neural Cleanse unlearning: recover the trigger, then fine-tune on images that bear it under their true labels.

Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", S&P 2019.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import training
from jaxguard.defenses.ft import ft
from jaxguard.defenses.protocol import (
    Context,
    DefenseReport,
    require_clean,
    require_graph,
    require_training,
)
from jaxguard.defenses.recovery import Recovered, recover, staged, stamp
from jaxguard.errors import DefenseError
from jaxguard.scores.channel_bounds import require_finite
from jaxguard.types import Batch, Variables

FLAGGED = 2.0
"""Anomaly index above which a class is flagged."""


def stamped_share(
    clean: Batch, patch: tuple[jax.Array, jax.Array], share: float, key: jax.Array
) -> tuple[Batch, np.ndarray]:
    """The images, some of them with the trigger; labels stay.

    Args:
        clean: `N` images.
        patch: mask `[H, W, 1]` and pattern `[H, W, C]`.
        share: how many are stamped, in [0, 1], rounded.
        key: draws which.

    Returns:
        The images, and the numbers of those stamped.
    """
    total = len(clean.images)
    chosen = np.sort(np.asarray(jax.random.permutation(key, total))[: round(share * total)])
    images = np.array(clean.images)
    images[chosen] = stamp(jnp.asarray(images[chosen]), patch)
    return Batch(images, clean.labels), chosen


def stretched(part: jax.Array) -> jax.Array:
    """Spreads values over [0, 1], as a picture is saved; all 0 where they are equal.

    Example:
        >>> stretched(jnp.array([0.25, 0.5, 0.75])).tolist()
        [0.0, 0.5, 1.0]
    """
    low, high = part.min(), part.max()
    return (part - low) / jnp.where(high > low, high - low, 1)


def neural_cleanse(
    variables: Variables,
    context: Context,
    key: jax.Array,
    *,
    target: int | None = None,
    share: float = 0.2,
    stretch: bool = False,
    inversion_steps: int = 800,
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.0,
    schedule_epochs: int | None = None,
    augment: training.Augment | None = None,
) -> tuple[Variables, DefenseReport]:
    """Finds the class of an unusually small trigger, and unlearns that trigger.

    Patches of all classes are recovered on the clean images (`jaxguard.inversion`). Where the smallest one's anomaly
    index is above 2, some of the images get it under their true labels, and the model is fine-tuned on all of them.
    Where no class is flagged, nothing is changed, and a note says so. The paper also offers to prune; that is
    ShapPruning's business here.

    BackdoorBench's fine-tuning is had with `schedule_epochs=100` and, for CIFAR-10, `augment=CropFlip()`; it shifts
    and mirrors the trigger as well.

    Args:
        variables: the suspect, left untouched.
        context: needs `clean`, `train_fn` and `graph`.
        key: draws patches, which images are stamped, batches and augmentation.
        target: the class to unlearn, flagged or not; only its trigger is recovered then.
        share: of the clean images that are stamped, in [0, 1].
        stretch: whether mask and pattern are first spread over [0, 1], as BackdoorBench does by way of saved
            pictures: a faint mask becomes opaque somewhere.
        inversion_steps: most steps of the inversion per class.
        epochs: of fine-tuning, see `jaxguard.defenses.ft.ft`, as are the others.
        batch_size: images per step.
        learning_rate: of the first epoch.
        momentum: of SGD.
        weight_decay: of SGD.
        label_smoothing: in [0, 1].
        schedule_epochs: epochs until the rate would be 0.
        augment: `(key, images) -> images`.

    Returns:
        The repaired variables, and a report with the recovered trigger and, where a class was unlearned, the curve
        `loss`, `[steps]`.

    Raises:
        DefenseError: the context lacks something, a hyper-parameter is out of range, or the loss became NaN or
            infinite.
        DataError: the images are not in [0, 1], or do not fit the model.
    """
    clean = require_clean(context, "neural-cleanse")
    require_training(context, "neural-cleanse")
    require_graph(context.graph)
    if not 0 <= share <= 1 or inversion_steps < 1:
        raise DefenseError(
            f"expected share in [0, 1] and inversion_steps >= 1, came {share=}, {inversion_steps=} in "
            "neural_cleanse(); the paper's share is 0.2"
        )
    require_finite(variables)
    key_recover, key_stamp, key_tune = jax.random.split(key, 3)
    recovered = recover(
        variables,
        context,
        key_recover,
        target=target,
        most=len(clean.images),
        synthesised=0,
        synthesis_steps=1,
        steps=inversion_steps,
    )
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
    cleansing = {"target": target, "share": share, "stretch": stretch, "inversion_steps": inversion_steps}
    if recovered.trigger.target is None:
        options = {**cleansing, **tuning, "augment": repr(augment)}
        notes = (_nothing(recovered),)
        return variables, DefenseReport("neural-cleanse", options, notes=notes, trigger=recovered.trigger)
    mask, pattern = recovered.patch
    patch = (stretched(mask), stretched(pattern)) if stretch else (mask, pattern)
    taught, chosen = stamped_share(clean, patch, share, key_stamp)
    given = replace(context, clean=taught, progress=staged(context.progress, "unlearning the trigger"))
    repaired, tuned = ft(variables, given, key_tune, **tuning)
    notes = (*recovered.notes, *_unlearned(recovered, len(chosen), len(clean.images)))
    return repaired, DefenseReport(
        "neural-cleanse",
        {**cleansing, **tuned.options},
        notes=notes,
        curves=tuned.curves,
        trigger=recovered.trigger,
    )


def _nothing(recovered: Recovered) -> str:
    return (
        f"No class is flagged: the highest anomaly index is {recovered.trigger.anomaly.max():.1f}, not above "
        f"{FLAGGED:g}, so nothing was changed. The model may have no backdoor of this kind; target={recovered.target} "
        "unlearns the smallest patch nevertheless."
    )


def _unlearned(recovered: Recovered, stamped: int, total: int) -> list[str]:
    notes = [f"{stamped} of {total} clean images bore class {recovered.target}'s trigger under their true labels."]
    others = np.flatnonzero(recovered.trigger.anomaly > FLAGGED)
    others = others[others != recovered.target]
    if others.size:
        names = ", ".join(map(str, others))
        notes.append(f"Also flagged, but not unlearned: {names}. Repair again with target= for each of them.")
    return notes
