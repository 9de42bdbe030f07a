"""Neuron weight change: how far unlearning moves each channel's weights; backdoor channels move the most.

TSBD unlearns the defender's clean images, OTBR labelled noise. Both climb the cross-entropy with the step driver of
`jaxguard.training`, and both rank channels by the L1 norm of what it did to their kernels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import evaluation, training
from jaxguard.errors import DefenseError
from jaxguard.graph import ChannelGraph, LeafView
from jaxguard.graph.program import leaf_paths
from jaxguard.training import Augment, GradientFn, Progress
from jaxguard.types import ApplyFn, Batch, TrainFn, Variables


class Unlearned(NamedTuple):
    """A model that has unlearned, and how it got there.

    Attributes:
        variables: of the input's structure, shapes and dtypes.
        losses: float32 `[steps]`, cross-entropy before each step; it rises.
        accuracies: float64 `[epochs]`, evaluation-mode accuracy on the clean images after each epoch; empty where
            noise was unlearned.
    """

    variables: Variables
    losses: np.ndarray
    accuracies: np.ndarray


@dataclass(frozen=True)
class Ascent:
    """Turns a gradient around, so that a step of descent climbs.

    A value, not a closure: two equal ones share a compiled step.

    Attributes:
        gradient_fn: of what is climbed.
    """

    gradient_fn: GradientFn

    def __call__(self, params: Any, state: Any, batch: Batch) -> tuple[dict[str, jax.Array], Any, Any]:
        """Differentiates, and negates the gradient.

        Args:
            params: what the gradient is taken of.
            state: the other collections.
            batch: images and labels.

        Returns:
            What `gradient_fn` does, with the gradient's sign changed.
        """
        metrics, after, gradient = self.gradient_fn(params, state, batch)
        return metrics, after, jax.tree.map(jnp.negative, gradient)


@dataclass(frozen=True)
class UniformNoise:
    """An augmentation that leaves nothing of the images: fresh noise, uniform in [0, 1), in their place.

    Attributes:
        shape: of one image.
    """

    shape: tuple[int, ...]

    def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Draws noise.

        Args:
            key: random key.
            images: `[B, ...]`, of which only `B` matters.

        Returns:
            float32 `[B, *shape]`.
        """
        return jax.random.uniform(key, (len(images), *self.shape))


def unlearn(
    train_fn: TrainFn,
    apply_fn: ApplyFn,
    variables: Variables,
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
    """Climbs the cross-entropy of clean images until the model knows no more than chance (TSBD, stage 1).

    The accuracy is looked at after every epoch, between two calls of one compiled step. Images are shuffled, and the
    last batch of an epoch is filled up; the reference code takes them in order and keeps a last, smaller batch.

    Args:
        train_fn: training-mode model.
        apply_fn: evaluation-mode model, for the accuracy.
        variables: where to start; left untouched.
        data: clean images.
        key: draws batches and augmentation.
        epochs: passes at most, >= 0.
        stop_acc: accuracy from which no further epoch begins; `1/K` by default, 0.10 in the reference code whatever
            the data set.
        batch_size: images per step; all of them where there are fewer.
        learning_rate: of SGD, without decay or schedule.
        momentum: of SGD, in [0, 1).
        augment: `(key, images) -> images`; the accuracy is that of the images as they are.
        progress: told how far the descent is; the number of steps is that of all epochs.

    Returns:
        The unlearned variables and the curves; at least one epoch is taken unless `epochs` is 0.

    Raises:
        DefenseError: the loss became NaN or infinite.
        DataError: no image, or a label the model has no class for.
    """
    batch_size = min(batch_size, len(data.images))
    epoch_steps = training.steps_per_epoch(len(data.images), batch_size)
    if stop_acc is None:
        stop_acc = 1 / jax.eval_shape(apply_fn, variables, data.images).shape[-1]
    step = _ascent(train_fn, learning_rate, momentum, batch_size, augment)
    step_fn, carry, total = step.on(data, key), step.init(variables, data), epochs * epoch_steps
    told = progress and (lambda done, _, metrics: progress(done, total, metrics))
    losses, accuracies = [np.zeros(0, np.float32)], []
    for epoch in range(epochs):
        carry, curves = training.descend(step_fn, carry, epoch_steps, start=epoch * epoch_steps, progress=told)
        losses.append(curves["loss"])
        _require_finite(np.concatenate(losses), carry.params)
        accuracies.append(evaluation.accuracy(apply_fn, carry.variables(like=variables), data))
        if accuracies[-1] <= stop_acc:
            break
    return Unlearned(carry.variables(like=variables), np.concatenate(losses), np.array(accuracies, np.float64))


def unlearn_noise(
    train_fn: TrainFn,
    variables: Variables,
    image_shape: Sequence[int],
    num_labels: int,
    key: jax.Array,
    *,
    steps: int = 20,
    batch_size: int = 256,
    learning_rate: float = 1e-4,
    momentum: float = 0.9,
    progress: Progress | None = None,
) -> Unlearned:
    """Climbs the cross-entropy of labelled noise, fresh in every step; needs no data (OTBR, stage 1).

    The noise is what a model of this library takes as an image, uniform in [0, 1) before its normalisation; the
    reference code feeds the same noise past the normalisation.

    Args:
        train_fn: training-mode model.
        variables: where to start; left untouched.
        image_shape: of one image.
        num_labels: labels are uniform in [0, num_labels): `K`, or `K - 1` as in the reference code, which never draws
            the last class.
        key: draws the noise.
        steps: >= 0.
        batch_size: images per step.
        learning_rate: of SGD, without decay or schedule.
        momentum: of SGD, in [0, 1).
        progress: told how far the descent is.

    Returns:
        The unlearned variables and the loss curve.

    Raises:
        DefenseError: the loss became NaN or infinite.
    """
    key_labels, key_noise = jax.random.split(key)
    # An image of zero pixels is the place of one that the augmentation draws.
    count = max(steps, 1) * batch_size
    data = Batch(np.zeros((count, 0), np.float32), jax.random.randint(key_labels, (count,), 0, num_labels))
    step = _ascent(train_fn, learning_rate, momentum, batch_size, UniformNoise(tuple(image_shape)))
    carry, curves = training.descend(step.on(data, key_noise), step.init(variables, data), steps, progress=progress)
    _require_finite(curves["loss"], carry.params)
    return Unlearned(carry.variables(like=variables), curves["loss"], np.zeros(0))


def neuron_weight_change(
    graph: ChannelGraph, before: Variables, after: Variables, *, decimals: int | None = None
) -> tuple[np.ndarray, ...]:
    """NWC of every channel: the L1 norm of what its kernel moved (TSBD, section 3; OTBR, stage 1).

    It is not divided by the fan-in, so wide layers score higher; biases and norms are left out.

    Args:
        graph: the model's channel graph.
        before: its variables.
        after: those of the unlearned model.
        decimals: places to round to; 4 as in the reference codes, which write the scores to a text file.

    Returns:
        float32 `[C]` per producer of the graph; a kernel that is used twice has the same score at both places.

    Raises:
        GraphError: the variables are not those the graph was derived from.

    Example:
        >>> from jaxguard.graph import channel_graph
        >>> mlp = lambda v, x: jax.nn.relu(x @ v["w1"]) @ v["w2"]
        >>> v = {"w1": jnp.ones((2, 3)), "w2": jnp.ones((3, 2))}
        >>> moved = {"w1": v["w1"].at[0].add(jnp.array([1.0, -2.0, 0.0])), "w2": v["w2"]}
        >>> graph = channel_graph(mlp, v, jnp.ones((1, 2)))
        >>> [scores.tolist() for scores in neuron_weight_change(graph, v, moved)]
        [[1.0, 2.0, 0.0], [0.0, 0.0]]
    """
    scores = [np.asarray(change.sum(1)) for change in weight_change(graph, before, after)]
    return tuple(scores if decimals is None else [np.round(score, decimals) for score in scores])


@functools.partial(jax.jit, static_argnums=0)
def weight_change(graph: ChannelGraph, before: Variables, after: Variables) -> list[jax.Array]:
    """`|after - before|` of every weight, channel by channel, as it lies in the kernel's leaf.

    Args:
        graph: the model's channel graph.
        before: its variables.
        after: those of the unlearned model.

    Returns:
        float32 `[C, weights per channel]` per producer of the graph.

    Raises:
        GraphError: the variables are not those the graph was derived from.
    """
    olds, news = (graph.leaves(graph.program, variables) for variables in (before, after))
    places = dict(zip(leaf_paths(before), graph.program.leaves, strict=True))
    changes = []
    for producer in graph.producers:
        place = places[producer.kernel.path]
        changes.append(_rows(producer.kernel, jnp.abs(_float32(news[place]) - _float32(olds[place]))))
    return changes


def _float32(leaf: Any) -> jax.Array:
    return jnp.asarray(leaf).astype(jnp.float32)


def _rows(view: LeafView, leaf: jax.Array) -> jax.Array:
    run = jnp.moveaxis(leaf[view.index], view.axes, range(len(view.axes)))
    return run.reshape(math.prod(view.shape), -1)


def _ascent(
    train_fn: TrainFn, learning_rate: float, momentum: float, batch_size: int, augment: Augment | None
) -> training.Step:
    optimizer = training.sgd(learning_rate, momentum=momentum, weight_decay=0.0)
    return training.Step(Ascent(training.CrossEntropyGradient(train_fn)), optimizer, batch_size, augment)


def _require_finite(losses: np.ndarray, params: Any) -> None:
    finite = np.isfinite(losses)
    if not finite.all():
        at = int(np.argmin(finite))
        raise DefenseError(
            f"expected a finite loss, came {losses[at]} at step {at} of unlearning; lower its learning rate, or check "
            "the model and the images for NaN"
        )
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params)):
        raise DefenseError(
            f"expected finite parameters, came NaN or infinity after step {len(losses)} of unlearning; lower its "
            "learning rate"
        )
