"""Supervised training of any model with a training-mode function."""

import contextlib
import pathlib
import time
import zlib
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from jaxguard.errors import DataError, JaxguardError
from jaxguard.training import descent, objective, sampling
from jaxguard.training.augmentation import Augment
from jaxguard.training.resumption import Resumption
from jaxguard.types import Batch, TrainFn, Variables


class TrainResult(NamedTuple):
    """A trained model and how it got there.

    Attributes:
        variables: the trained model, of the input's structure, shapes and dtypes.
        losses: float32 `[steps]`, training loss of every step, those before a resumption included.
        images_per_second: throughput of this process's steps without the first, which compiles; NaN with
            fewer than two steps.
    """

    variables: Variables
    losses: np.ndarray
    images_per_second: float


class TrainState(NamedTuple):
    """What a step hands to the next.

    Attributes:
        params: parameters.
        state: the other collections, running statistics for one.
        opt_state: the optimizer's memory.
        order: int32 `[N]`, this epoch's permutation.
    """

    params: Any
    state: Any
    opt_state: Any
    order: jax.Array


@dataclass(frozen=True)
class _Step:
    """One step; a value, so that equal settings share a compiled program."""

    train_fn: TrainFn
    optimizer: optax.GradientTransformation
    augment: Augment | None
    batch_size: int
    label_smoothing: float

    def __call__(self, data: Batch, key: jax.Array, carry: TrainState, step: jax.Array):
        key_order, key_augment = jax.random.split(key)
        order, batch = sampling.draw(key_order, carry.order, step, data, self.batch_size)
        if self.augment is not None:
            key_step = jax.random.fold_in(key_augment, step)
            batch = batch._replace(images=self.augment(key_step, jnp.asarray(batch.images)))
        loss, state, gradient = objective.loss_and_gradient(
            self.train_fn, carry.params, carry.state, batch, label_smoothing=self.label_smoothing
        )
        updates, opt_state = self.optimizer.update(gradient, carry.opt_state, carry.params)
        return TrainState(optax.apply_updates(carry.params, updates), state, opt_state, order), {"loss": loss}


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
    """Trains on data that lies on the device, shuffled and augmented inside the compiled step.

    The defaults are the recipe of the CLP paper's released code (SGD 0.1, momentum 0.9, decay 5e-4, cosine,
    128). With a `checkpoint_dir`, a run that was killed and is started again with the same arguments ends
    with the variables, bit for bit, of one that was not.

    Args:
        train_fn: training-mode model.
        variables: where to start; only the collection `params` is trained (everything, where there is none).
        data: `N` training images.
        key: draws batches and augmentation.
        steps: steps to take; give this or `epochs`.
        epochs: passes over the data.
        batch_size: images per step; the whole data set where it is smaller.
        learning_rate: of the first step.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD.
        schedule: `cosine` falls to 0 at the last step.
        label_smoothing: in [0, 1].
        augment: `(key, images) -> images`, such as `CropFlip()`.
        optimizer: takes the place of SGD; learning rate, momentum, decay and schedule are then its own.
        checkpoint_dir: folder of the states to resume from.
        checkpoint_every: steps between two saved states, >= 1; one epoch by default.
        progress: told how far the training is, a few times per second.

    Returns:
        The trained variables with the loss curve and the throughput.

    Raises:
        DataError: no image, or not one label per image.
        ValueError: not exactly one of `steps` and `epochs`, or one out of range.
        CheckpointError: `checkpoint_dir` holds another run.
        JaxguardError: the loss became NaN or infinite.

    Example:
        >>> linear = lambda w, images: (images.reshape(len(images), -1) @ w, w)
        >>> data = Batch(jnp.eye(4).reshape(4, 2, 2, 1), jnp.arange(4))
        >>> result = fit(linear, jnp.zeros((4, 4)), data, jax.random.key(0), steps=20)
        >>> bool(result.losses[-1] < result.losses[0])
        True
    """
    num_images = len(data.images)
    if num_images == 0 or np.shape(data.labels) != (num_images,):
        raise DataError(
            f"expected at least one image and a label for each, came {num_images} images and labels of shape "
            f"{np.shape(data.labels)} in fit(data=...); check how the batch was made"
        )
    if (steps is None) == (epochs is None) or min(steps or 0, epochs or 0) < 0 or batch_size < 1:
        raise ValueError(
            "expected one of steps >= 0 and epochs >= 0, and batch_size >= 1, "
            f"came {steps=}, {epochs=}, {batch_size=} in fit(); pass exactly one of the first two"
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

    params, state = objective.partition(variables)
    carry = TrainState(params, state, optimizer.init(params), jnp.zeros(num_images, jnp.int32))
    step = _Step(train_fn, optimizer, augment, batch_size, label_smoothing)
    step_fn = Partial(step, jax.device_put(data), key)
    report = progress and (lambda done, _, metrics: progress(done, total, metrics))

    done, losses, seconds, timed = 0, np.full(total, np.nan, np.float32), 0.0, 0
    with contextlib.ExitStack() as stack:
        folder, every = None, total + 1
        if checkpoint_dir is not None:
            run |= {"images": _checksum(data.images), "labels": _checksum(data.labels)}
            folder = stack.enter_context(Resumption(checkpoint_dir, run))
            every = checkpoint_every or epoch_steps
            done, (carry, losses) = folder.restore((carry, losses))
        first = done + 1  # on its own, since it compiles
        for stop in sorted({first, *range(every, total, every), total}):
            if not done < stop <= total:
                continue
            begun = time.perf_counter()
            carry, metrics = descent.descend(step_fn, carry, stop - done, start=done, progress=report)
            if stop > first:
                seconds, timed = seconds + time.perf_counter() - begun, timed + stop - done
            losses = np.concatenate([losses[:done], metrics["loss"], losses[stop:]])
            _require_finite(losses[:stop], total)
            done = stop
            if folder is not None and (stop % every == 0 or stop == total):
                folder.save(stop, (carry, losses))

    trained = objective.combine(carry.params, carry.state)
    # The input's own mapping types, where it has others than dict.
    trained = jax.tree.unflatten(jax.tree.structure(variables), jax.tree.leaves(trained))
    return TrainResult(trained, losses, timed * batch_size / seconds if timed else float("nan"))


def _checksum(array: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)


def _require_finite(losses: np.ndarray, total: int) -> None:
    finite = np.isfinite(losses)
    if not finite.all():
        at = int(np.argmin(finite))
        raise JaxguardError(
            f"expected a finite loss, came {losses[at]} at step {at} of {total} in fit(); "
            "lower learning_rate, or check the images for NaN"
        )
