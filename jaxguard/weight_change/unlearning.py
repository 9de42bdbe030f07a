"""Unlearning: gradient ascent on the cross-entropy of the defender's clean images or of labelled noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import evaluation, training
from jaxguard.errors import DefenseError
from jaxguard.graph.program import numeric_leaves
from jaxguard.training import Augment, GradientFn, Progress
from jaxguard.types import Batch, Network, Variables


class Unlearned(NamedTuple):
    """An unlearned model and its curves.

    Attributes:
        variables: with the structure, shapes and dtypes of the input.
        losses: float32 `[steps]`, rising cross-entropy before each step.
        accuracies: float64 `[epochs]`, evaluation-mode accuracy on the clean images after each epoch; empty for noise.
    """

    variables: Variables
    losses: np.ndarray
    accuracies: np.ndarray


@dataclass(frozen=True)
class Ascent:
    """Negates a gradient, so that a step of descent ascends.

    A value, not a closure: two equal ones share a compiled step.

    Attributes:
        gradient_fn: gradient of the objective to maximise.
    """

    gradient_fn: GradientFn

    def __call__(self, params: Any, state: Any, batch: Batch) -> tuple[dict[str, jax.Array], Any, Any]:
        """The result of `gradient_fn` with the gradient negated."""
        metrics, after, gradient = self.gradient_fn(params, state, batch)
        return metrics, after, jax.tree.map(jnp.negative, gradient)


@dataclass(frozen=True)
class UniformNoise:
    """An augmentation that replaces the images by fresh noise, uniform in [0, 1).

    Attributes:
        shape: of one image.
    """

    shape: tuple[int, ...]

    def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Noise, float32 `[B, *shape]` for images `[B, ...]`."""
        return jax.random.uniform(key, (len(images), *self.shape))


def unlearn(
    network: Network,
    data: Batch,
    key: jax.Array,
    *,
    epochs: int = 1000,
    stop_acc: float | None = None,
    batch_size: int = 256,
    learning_rate: float = 1e-4,
    momentum: float = 0.9,
    augment: Augment | None = None,
    progress: Progress | None = None,
) -> Unlearned:
    """Maximises the cross-entropy of clean images until the accuracy is that of chance (TSBD, stage 1).

    The accuracy is measured after every epoch, between two calls of one compiled step. Images are shuffled, and the
    last batch of an epoch is filled up; the reference code takes them in order and keeps a last, smaller batch.

    Args:
        network: where to start, with a training mode; left untouched.
        data: clean images.
        key: draws batches and augmentation.
        epochs: upper limit, >= 0.
        stop_acc: accuracy at or below which to stop; `1/K` by default, 0.10 in the reference code for every data set.
        batch_size: images per step, at most all of them.
        learning_rate: of SGD, without decay or schedule.
        momentum: of SGD, in [0, 1).
        augment: `(key, images) -> images`; the accuracy is measured without it.
        progress: called a few times per second; the total is that of all epochs.

    Returns:
        The unlearned variables and the curves; at least one epoch is run unless `epochs` is 0.

    Raises:
        DefenseError: the loss became NaN or infinite.
        DataError: no images, or a label that is not a class of the model.
    """
    batch_size = min(batch_size, len(data.images))
    epoch_steps = training.steps_per_epoch(len(data.images), batch_size)
    if stop_acc is None:
        stop_acc = 1 / network.num_classes
    variables = network.variables
    step = _ascent(network, learning_rate, momentum, batch_size, augment)
    step_fn, carry, total = step.on(data, key), step.init(variables, data), epochs * epoch_steps
    report = progress and (lambda done, _, metrics: progress(done, total, metrics))
    losses, accuracies = [np.zeros(0, np.float32)], []
    for epoch in range(epochs):
        carry, curves = training.descend(
            step_fn, carry, epoch_steps, start=epoch * epoch_steps, progress=report, trains=True
        )
        losses.append(curves["loss"])
        # Ascent has no bound: a loss that overflows ends it here, rather than in an unusable ranking.
        _require_finite(np.concatenate(losses), carry.params)
        accuracies.append(evaluation.accuracy(network.with_variables(carry.variables(like=variables)), data))
        if accuracies[-1] <= stop_acc:
            break
    return Unlearned(carry.variables(like=variables), np.concatenate(losses), np.array(accuracies, np.float64))


def unlearn_noise(
    network: Network,
    key: jax.Array,
    *,
    image_shape: Sequence[int] | None = None,
    num_labels: int | None = None,
    steps: int = 20,
    batch_size: int = 256,
    learning_rate: float = 1e-4,
    momentum: float = 0.9,
    progress: Progress | None = None,
) -> Unlearned:
    """Maximises the cross-entropy of labelled noise, fresh in every step; needs no data (OTBR, stage 1).

    The noise is uniform in [0, 1) before the model's normalisation; in the reference code it bypasses the
    normalisation.

    Args:
        network: where to start; left untouched. Without a training mode, norms keep their running statistics.
        key: draws the noise.
        image_shape: of one image; the network's own by default.
        num_labels: labels are uniform in [0, num_labels): `K` by default, `K - 1` in the reference code, which never
            draws the last class.
        steps: >= 0.
        batch_size: images per step.
        learning_rate: of SGD, without decay or schedule.
        momentum: of SGD, in [0, 1).
        progress: called a few times per second.

    Returns:
        The unlearned variables and the loss curve.

    Raises:
        DefenseError: the loss became NaN or infinite.
    """
    key_labels, key_noise = jax.random.split(key)
    # Images without pixels are placeholders: the augmentation draws the noise.
    count = max(steps, 1) * batch_size
    num_labels = network.num_classes if num_labels is None else num_labels
    data = Batch(np.zeros((count, 0), np.float32), jax.random.randint(key_labels, (count,), 0, num_labels))
    noise = UniformNoise(tuple(network.input_spec.shape if image_shape is None else image_shape))
    step = _ascent(network, learning_rate, momentum, batch_size, noise)
    carry = step.init(network.variables, data)
    carry, curves = training.descend(step.on(data, key_noise), carry, steps, progress=progress, trains=True)
    _require_finite(curves["loss"], carry.params)
    return Unlearned(carry.variables(like=network.variables), curves["loss"], np.zeros(0))


def shortfall(unlearned: Unlearned, stop_acc: float) -> tuple[str, ...]:
    """A note where unlearning ended above the accuracy it was to reach.

    Args:
        unlearned: of `unlearn`.
        stop_acc: the accuracy.

    Returns:
        The note; nothing where it was reached.
    """
    accuracies = unlearned.accuracies
    if accuracies[-1] <= stop_acc:
        return ()
    return (
        f"Unlearning ended after {len(accuracies)} epochs at {100 * accuracies[-1]:.1f} % accuracy on the clean "
        f"images, above the target of {100 * stop_acc:.1f} %; raise unlearn_rate or unlearn_epochs.",
    )


def _ascent(
    network: Network, learning_rate: float, momentum: float, batch_size: int, augment: Augment | None
) -> training.Step:
    optimizer = training.sgd(learning_rate, momentum=momentum, weight_decay=0.0)
    train_fn = network.train_fn or training.RunningStatistics(network.apply_fn)
    return training.Step(Ascent(training.CrossEntropyGradient(train_fn)), optimizer, batch_size, augment)


def _require_finite(losses: np.ndarray, params: Any) -> None:
    training.require_finite_loss(losses, "unlearning", "lower its learning rate", DefenseError)
    if not all(np.isfinite(leaf).all() for leaf in jax.device_get(numeric_leaves(params)).values()):
        raise DefenseError(
            f"expected finite parameters, got NaN or infinity after step {len(losses)} of unlearning; lower its "
            "learning rate"
        )
