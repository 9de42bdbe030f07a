"""Extraction by queries alone: a student learns the owner's labels, or its probabilities (distillation)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxguard import evaluation, meshes, training
from jaxguard.errors import TheftError
from jaxguard.methods import NonNegative, Positive, Share, Steps, checked, options_of
from jaxguard.theft import protocol
from jaxguard.theft.protocol import Blueprint, TheftReport
from jaxguard.theft.sgd import SGD, Schedule
from jaxguard.training import CrossEntropyGradient, GradientFn, LossGradient, Progress
from jaxguard.types import ApplyFn, Batch, Network, Variables


@options_of(SGD)
def _extract(
    owner: Network,
    data: Batch,
    key: jax.Array,
    loss_fn: DistillationLoss | None,
    *,
    student: Blueprint | None = None,
    epochs: Steps = 200,
    learning_rate: NonNegative = 0.05,
    schedule: Schedule = "cosine",
    progress: Progress | None = None,
    **sgd: Any,
) -> tuple[Network, TheftReport]:
    """Trains a student from scratch on the owner's answers.

    Args:
        owner: the stolen model; it is queried with the thief's images, once each, and with `augment` then with every
            view that is learned.
        data: the thief's images; their labels are ignored.
        key: draws the student's weights, batches and augmentation.
        loss_fn: of the owner's probabilities; without it the student learns labels alone.
        student: architecture of the copy; the owner's by default.
        epochs: see `SGD`, as for the next two; 0 leaves the student random.
        learning_rate: of the first step.
        schedule: how it falls.
        progress: called as the work proceeds.
        sgd: other fields of `SGD`.

    Returns:
        The student, with the curve `loss`, `[steps]`.

    Raises:
        TheftError: no architecture, an answer is not finite, or the loss diverged.
    """
    how = SGD(epochs, learning_rate, schedule=schedule, **sgd)
    answer_fn, queries = Answers(owner.apply_fn, labels_only=loss_fn is None), len(data.images)
    key_init, key_learn = jax.random.split(key)
    student = protocol.require_blueprint(student, owner)
    start = student.network(student.init(key_init))
    train_fn = protocol.require_training(start)
    gradient_fn = CrossEntropyGradient(train_fn) if loss_fn is None else LossGradient(train_fn, loss_fn)
    if start.num_classes != owner.num_classes:
        raise TheftError(
            f"expected a student with the owner's {owner.num_classes} classes, got one with {start.num_classes}; build "
            "it with that num_classes"
        )
    answers = Batch(data.images, query(answer_fn, owner.variables, data.images))
    if how.augment is None:
        variables, losses = how.learn(gradient_fn, start.variables, answers, key_learn, progress=progress)
    else:
        # An answer to an image is none to a view of it: every view is a query, answered inside the training step.
        params, state = training.partition(start.variables)
        parts = {"params": params, "student": state, "owner": owner.variables}
        parts, losses = how.learn(Answered(gradient_fn, answer_fn), parts, answers, key_learn, progress=progress)
        variables = training.combine(parts["params"], parts["student"])
        queries += len(losses) * min(how.batch_size, queries)
    return start.with_variables(variables), TheftReport({"loss": losses}, queries=queries)


@checked
@options_of(_extract)
def label_extraction(owner: Network, data: Batch, key: jax.Array, **learning: Any) -> tuple[Network, TheftReport]:
    """Trains a student from scratch on the classes that the owner's model names.

    The defaults are those of SAC's code for CIFAR-10, except that it updates the cosine's rate in every step rather
    than every epoch, so that it rises again after 200 steps.

    Args:
        owner: see `_extract`, as for all others.
        data: the thief's images; their labels are ignored.
        key: draws the student's weights, batches and augmentation.
        learning: how.

    Returns:
        The student, with the curve `loss`, `[steps]`.

    Reference:
        Guan, Liang, He: Are You Stealing My Model? Sample Correlation for Fingerprinting Deep Neural Networks,
        NeurIPS 2022.
    """
    return _extract(owner, data, key, None, **learning)


@checked
@options_of(_extract)
def distillation(
    owner: Network,
    data: Batch,
    key: jax.Array,
    *,
    temperature: Positive = 20.0,
    alpha: Share = 0.9,
    learning_rate: NonNegative = 0.1,
    **learning: Any,
) -> tuple[Network, TheftReport]:
    """Extraction by probability: trains a student from scratch on the owner's probabilities, softened.

    The defaults are those of SAC's code for CIFAR-10, except for the schedule, see `label_extraction`, and for the
    divergence, which it averages over images and classes. Summed over classes, as here, the soft part weighs `K` times
    as much.

    Args:
        owner: see `_extract`, as for all others.
        data: the thief's images.
        key: draws the student's weights, batches and augmentation.
        temperature: see `DistillationLoss`.
        alpha: weight of the soft part.
        learning_rate: of the first step.
        learning: how.

    Returns:
        The student, with the curve `loss`, `[steps]`.

    Raises:
        TheftError: as `label_extraction`.

    Reference:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015.
    """
    loss_fn = DistillationLoss(temperature, alpha)
    return _extract(owner, data, key, loss_fn, learning_rate=learning_rate, **learning)


@dataclass(frozen=True)
class Answers:
    """What a thief without the weights gets: images in, answers out; a value, traceable.

    Attributes:
        apply_fn: the model in evaluation mode, hashable.
        labels_only: whether it names the class alone.
    """

    apply_fn: ApplyFn
    labels_only: bool

    def __call__(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Answers to images `[B, ...]`: int32 `[B]`, -1 where a logit is NaN, or float32 logits `[B, K]`."""
        logits = self.apply_fn(variables, images).astype(jnp.float32)
        if not self.labels_only:
            return logits
        return jnp.where(jnp.isnan(logits).any(-1), -1, logits.argmax(-1)).astype(jnp.int32)


def query(
    answer_fn: Answers, variables: Variables, images: jax.Array | np.ndarray, *, batch_size: int = 500
) -> jax.Array:
    """Queries a model with images `[N, ...]` once each, batch by batch: `[N]` classes or `[N, K]` logits.

    Raises:
        TheftError: an answer is NaN or infinite.

    Example:
        >>> brightest = Answers(lambda variables, images: images.reshape(len(images), -1), labels_only=True)
        >>> query(brightest, {}, np.eye(3, dtype=np.float32).reshape(3, 1, 3, 1), batch_size=2).tolist()
        [0, 1, 2]
    """
    num_images = len(images)
    answers = jnp.asarray(meshes.chunk_by_chunk(answer_fn, variables, evaluation.chunked(images, batch_size)))
    answers = answers.reshape(-1, *answers.shape[2:])[:num_images]
    if not bool(jnp.isfinite(answers).all()) or (answer_fn.labels_only and bool((answers < 0).any())):
        raise TheftError(
            f"expected finite answers, got NaN or infinity for some of {num_images} images from the owner's model; "
            "check its weights, and that images are in [0, 1]"
        )
    return answers


@dataclass(frozen=True)
class Answered:
    """A gradient whose labels are a model's answers to the very images that are learned; a value like its parts.

    Its state is `{"student": ..., "owner": the answering model's variables}`.

    Attributes:
        gradient_fn: what is descended.
        answer_fn: the model's answers.
    """

    gradient_fn: GradientFn
    answer_fn: Answers

    def __call__(self, params: Any, state: Any, batch: Batch) -> tuple[dict[str, jax.Array], Any, Any]:
        """Differentiates; see `training.CrossEntropyGradient`."""
        labels = self.answer_fn(state["owner"], jnp.asarray(batch.images))
        metrics, after, gradient = self.gradient_fn(params, state["student"], batch._replace(labels=labels))
        return metrics, {**state, "student": after}, gradient


@dataclass(frozen=True)
class DistillationLoss:
    """Hinton's distillation, with the teacher's own label for the hard part.

        alpha T^2 KL(softmax(answers / T) || softmax(logits / T)) + (1 - alpha) CE(logits, argmax answers)

    Attributes:
        temperature: `T`, > 0.
        alpha: weight of the soft part, in [0, 1].

    Example:
        >>> loss = DistillationLoss(temperature=1.0, alpha=1.0)(jnp.zeros((1, 2)), jnp.array([[2.0, 0.0]]))
        >>> p = 1 / (1 + np.exp(-2.0))
        >>> np.allclose(loss, np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p))  # ln 2 minus the entropy
        True
    """

    temperature: float
    alpha: float

    def __call__(self, logits: jax.Array, answers: jax.Array) -> jax.Array:
        """The loss float32 `[]`, in nats, of the student's logits and the teacher's, both `[B, K]`."""
        logits, answers = logits.astype(jnp.float32), answers.astype(jnp.float32)
        wanted = jax.nn.log_softmax(answers / self.temperature)
        divergence = (jnp.exp(wanted) * (wanted - jax.nn.log_softmax(logits / self.temperature))).sum(-1).mean()
        hard = optax.softmax_cross_entropy_with_integer_labels(logits, answers.argmax(-1)).mean()
        return self.alpha * self.temperature**2 * divergence + (1 - self.alpha) * hard
