"""Supervised training of any model with a training-mode function."""

import contextlib
import pathlib
import time
import zlib
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from jaxguard.errors import DataError, JaxguardError
from jaxguard.training import descent, objective, sampling
from jaxguard.training.augmentation import Augment
from jaxguard.training.resumption import Resumption
from jaxguard.training.step import Step
from jaxguard.types import Batch, TrainFn, Variables


class TrainResult(NamedTuple):
    """A trained model and its training record.

    Attributes:
        variables: the trained model, with the structure, shapes and dtypes of the input.
        losses: float32 `[steps]`, training loss of every step, those before a resumption included.
        images_per_second: throughput of this process's steps without the first, which compiles; NaN with
            fewer than two steps.
    """

    variables: Variables
    losses: np.ndarray
    images_per_second: float


def fit(
    train_fn: TrainFn,
    variables: Variables,
    data: Batch,
    key: jax.Array,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Literal["cosine", "constant"] = "cosine",
    label_smoothing: float = 0.0,
    augment: Augment | None = None,
    optimizer: optax.GradientTransformation | None = None,
    checkpoint_dir: str | pathlib.Path | None = None,
    checkpoint_every: int | None = None,
    progress: descent.Progress | None = None,
) -> TrainResult:
    """Trains on data on the device, shuffled and augmented inside the compiled step.

    The defaults are the recipe of the CLP paper's released code (SGD 0.1, momentum 0.9, decay 5e-4, cosine,
    128). With a `checkpoint_dir`, a killed run that is started again with the same arguments gives the same
    variables, bit for bit, as an uninterrupted one.

    Args:
        train_fn: training-mode model.
        variables: initial values; only the collection `params` is trained, or everything without one.
        data: `N` training images.
        key: draws batches and augmentation.
        steps: steps to take; pass this or `epochs`.
        epochs: passes over the data.
        batch_size: images per step, at most `N`.
        learning_rate: of the first step.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD.
        schedule: `cosine` falls to 0 at the last step.
        label_smoothing: in [0, 1].
        augment: `(key, images) -> images`, such as `CropFlip()`.
        optimizer: replaces SGD; learning rate, momentum, decay and schedule are then ignored.
        checkpoint_dir: folder of the states to resume from.
        checkpoint_every: steps between two saved states, >= 1; one epoch by default.
        progress: called a few times per second.

    Returns:
        The trained variables, the loss curve and the throughput.

    Raises:
        DataError: no images, or not one label per image.
        ValueError: not exactly one of `steps` and `epochs`, or a value out of range.
        CheckpointError: `checkpoint_dir` holds another run.
        JaxguardError: the loss became NaN or infinite.

    Example:
        >>> linear = lambda w, images: (images.reshape(len(images), -1) @ w, w)
        >>> data = Batch(np.eye(4).reshape(4, 2, 2, 1), np.arange(4))
        >>> result = fit(linear, np.zeros((4, 4)), data, jax.random.key(0), steps=20)
        >>> bool(result.losses[-1] < result.losses[0])
        True
    """
    num_images = len(data.images)
    if num_images == 0 or np.shape(data.labels) != (num_images,):
        raise DataError(
            f"expected at least one image and a label for each, got {num_images} images and labels of shape "
            f"{np.shape(data.labels)} in fit(data=...); check how the batch was made"
        )
    if (steps is None) == (epochs is None) or min(steps or 0, epochs or 0) < 0 or batch_size < 1:
        raise ValueError(
            "expected one of steps >= 0 and epochs >= 0, and batch_size >= 1, "
            f"got {steps=}, {epochs=}, {batch_size=} in fit(); pass exactly one of the first two"
        )
    batch_size = min(batch_size, num_images)
    epoch_steps = sampling.steps_per_epoch(num_images, batch_size)
    total = steps if steps is not None else (epochs or 0) * epoch_steps
    run = {
        "steps": total,
        "batch_size": batch_size,
        "optimizer": "given" if optimizer else ["sgd", learning_rate, momentum, weight_decay, schedule],
        "label_smoothing": label_smoothing,
        "augment": repr(augment),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
    }
    if optimizer is None:
        rate = objective.cosine(learning_rate, total) if schedule == "cosine" else learning_rate
        optimizer = objective.sgd(rate, momentum=momentum, weight_decay=weight_decay)

    gradient_fn = objective.CrossEntropyGradient(train_fn, label_smoothing)
    step = Step(gradient_fn, optimizer, batch_size, augment)
    step_fn, carry = step.on(data, key), step.init(variables, data)
    report = progress and (lambda done, _, metrics: progress(done, total, metrics))

    done, losses, seconds, timed = 0, np.full(total, np.nan, np.float32), 0.0, 0
    with contextlib.ExitStack() as stack:
        folder, every = None, total + 1
        if checkpoint_dir is not None:
            run |= {"images": _checksum(data.images), "labels": _checksum(data.labels)}
            folder = stack.enter_context(Resumption(checkpoint_dir, run))
            every = checkpoint_every or epoch_steps
            done, (carry, losses) = folder.restore((carry, losses))
        first = done + 1  # by itself, because it compiles: not timed
        for stop in sorted({first, *range(every, total, every), total}):
            if not done < stop <= total:
                continue
            begun = time.perf_counter()
            carry, metrics = descent.descend(step_fn, carry, stop - done, start=done, progress=report, trains=True)
            if stop > first:
                seconds, timed = seconds + time.perf_counter() - begun, timed + stop - done
            losses = np.concatenate([losses[:done], metrics["loss"], losses[stop:]])
            descent.require_finite_loss(losses[:stop], "fit()", "lower learning_rate", JaxguardError, total=total)
            done = stop
            if folder is not None and (stop % every == 0 or stop == total):
                folder.save(stop, (carry, losses))

    return TrainResult(carry.variables(like=variables), losses, timed * batch_size / seconds if timed else float("nan"))


def _checksum(array: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)
