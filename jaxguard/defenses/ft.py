"""FT: plain fine-tuning on clean images, the baseline that every other defense has to beat."""

from __future__ import annotations

import jax

from jaxguard import methods, training
from jaxguard.defenses.protocol import Data, DefenseReport, require_clean, require_training
from jaxguard.errors import DefenseError, JaxguardError
from jaxguard.types import Network


@methods.checked
def ft(
    network: Network,
    data: Data,
    key: jax.Array,
    *,
    epochs: methods.Steps = 100,
    batch_size: methods.Count = 256,
    learning_rate: methods.NonNegative = 0.01,
    momentum: methods.Momentum = 0.9,
    weight_decay: methods.NonNegative = 5e-4,
    label_smoothing: methods.Share = 0.0,
    schedule_epochs: methods.Count | None = None,
    augment: training.Augmentation = None,
) -> tuple[Network, DefenseReport]:
    """Fine-tunes all weights on clean images.

    The defaults are BackdoorBench's for CIFAR-10 but for the augmentation, which depends on the data: there it is
    `CropFlip()`. They are made for some thousand clean images; with a hundred they hardly change the network.

    Args:
        network: the suspect.
        data: needs `clean`.
        key: draws batches and augmentation.
        epochs: passes over the clean images; 0 changes nothing.
        batch_size: images per step, at most all clean images.
        learning_rate: of the first epoch; it falls along half a cosine, epoch by epoch.
        momentum: of SGD.
        weight_decay: of SGD.
        label_smoothing: share of a label given to all classes.
        schedule_epochs: epochs until the rate would be 0; as many as there are by default, 100 in BackdoorBench
            whatever `epochs` is.
        augment: of the images, such as `crop` for digits and signs, `crop-flip` for photographs.

    Returns:
        The repaired network and a report with the curve `loss`, `[steps]`.

    Raises:
        DefenseError: clean images or a training mode are missing, or the loss became NaN or infinite.

    Example:
        >>> import numpy as np
        >>> from jaxguard.types import Batch
        >>> linear = lambda w, images: images.reshape(len(images), -1) @ w
        >>> image = jax.ShapeDtypeStruct((2, 2, 1), np.float32)
        >>> network = Network(np.eye(4), linear, image, lambda w, images: (linear(w, images), w))
        >>> data = Data(clean=Batch(np.eye(4).reshape(4, 2, 2, 1), np.arange(4)))
        >>> repaired, report = ft(network, data, jax.random.key(0), epochs=3)
        >>> repaired.variables.shape, report.curves["loss"].shape
        ((4, 4), (3,))
    """
    clean, train_fn = require_clean(data, "ft"), require_training(network, "ft")
    batch_size = min(batch_size, len(clean.images))
    epoch_steps = training.steps_per_epoch(len(clean.images), batch_size)
    rate = training.cosine(learning_rate, schedule_epochs or epochs, stride=epoch_steps, periodic=True)
    try:
        result = training.fit(
            train_fn,
            network.variables,
            clean,
            key,
            epochs=epochs,
            batch_size=batch_size,
            label_smoothing=label_smoothing,
            augment=augment,
            optimizer=training.sgd(rate, momentum=momentum, weight_decay=weight_decay),
            progress=data.progress,
        )
    except JaxguardError as error:
        raise DefenseError(f"in ft(): {error}") from error
    return network.with_variables(result.variables), DefenseReport(curves={"loss": result.losses})
