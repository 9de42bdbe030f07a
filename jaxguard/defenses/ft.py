"""FT: plain fine-tuning on clean images, the baseline that every other defense has to beat."""

from __future__ import annotations

import jax

from jaxguard import training
from jaxguard.defenses.protocol import Context, DefenseReport, require_clean, require_training
from jaxguard.errors import DefenseError, JaxguardError
from jaxguard.types import Variables


def ft(
    variables: Variables,
    context: Context,
    key: jax.Array,
    *,
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.0,
    schedule_epochs: int | None = None,
    augment: training.Augment | None = None,
) -> tuple[Variables, DefenseReport]:
    """Fine-tunes all weights on clean images.

    The defaults are BackdoorBench's for CIFAR-10 but for the augmentation, which depends on the data: there it is
    `CropFlip()`. They count on some thousand clean images; with a hundred they hardly move the model.

    Args:
        variables: the suspect, left untouched.
        context: needs `clean` and `train_fn`.
        key: draws batches and augmentation.
        epochs: passes over the clean images; 0 changes nothing.
        batch_size: images per step; all clean images where there are fewer.
        learning_rate: of the first epoch; it falls along half a cosine, epoch by epoch.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD.
        label_smoothing: in [0, 1].
        schedule_epochs: epochs until the rate would be 0; as many as there are by default, 100 in BackdoorBench
            whatever `epochs` is.
        augment: `(key, images) -> images`, such as `training.CropFlip(padding=2, flip=False)`.

    Returns:
        The repaired variables and a report with the curve `loss`, `[steps]`.

    Raises:
        DefenseError: clean images or the training-mode model are missing, a hyper-parameter is out of range, or the
            loss became NaN or infinite.

    Example:
        >>> import numpy as np
        >>> from jaxguard.types import Batch
        >>> linear = lambda w, images: images.reshape(len(images), -1) @ w
        >>> clean = Batch(np.eye(4).reshape(4, 2, 2, 1), np.arange(4))
        >>> context = Context(linear, lambda w, images: (linear(w, images), w), clean=clean)
        >>> repaired, report = ft(np.eye(4), context, jax.random.key(0), epochs=3)
        >>> repaired.shape, report.curves["loss"].shape
        ((4, 4), (3,))
    """
    clean, train_fn = require_clean(context, "ft"), require_training(context, "ft")
    period = epochs if schedule_epochs is None else schedule_epochs
    too_small = min(epochs, batch_size - 1) < 0 or (period < 1 and schedule_epochs is not None)
    if too_small or not 0 <= label_smoothing <= 1:
        raise DefenseError(
            "expected epochs >= 0, batch_size and schedule_epochs >= 1 and label_smoothing in [0, 1], came "
            f"{epochs=}, {batch_size=}, {schedule_epochs=}, {label_smoothing=} in ft(); BackdoorBench's are 100, 256, "
            "100 and 0"
        )
    batch_size = min(batch_size, len(clean.images))
    epoch_steps = training.steps_per_epoch(len(clean.images), batch_size)
    rate = training.cosine(learning_rate, period, stride=epoch_steps, periodic=True)
    try:
        result = training.fit(
            train_fn,
            variables,
            clean,
            key,
            epochs=epochs,
            batch_size=batch_size,
            label_smoothing=label_smoothing,
            augment=augment,
            optimizer=training.sgd(rate, momentum=momentum, weight_decay=weight_decay),
            progress=context.progress,
        )
    except JaxguardError as error:
        raise DefenseError(f"in ft(): {error}") from error
    options = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "schedule_epochs": schedule_epochs,
        "augment": repr(augment),
    }
    return result.variables, DefenseReport("ft", options, curves={"loss": result.losses})
