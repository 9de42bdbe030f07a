"""Extraction by queries alone: a student learns the owner's labels, or its probabilities (distillation)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxguard import evaluation, training
from jaxguard.errors import TheftError
from jaxguard.theft import protocol
from jaxguard.theft.independents import FROM_SCRATCH
from jaxguard.theft.protocol import Blueprint, Copy
from jaxguard.theft.sgd import SGD
from jaxguard.training import CrossEntropyGradient, GradientFn, LossGradient, Progress
from jaxguard.types import ApplyFn, Batch, Network, Variables


def label_extraction(
    owner: Network,
    data: Batch,
    key: jax.Array,
    *,
    student: Blueprint | None = None,
    sgd: SGD = FROM_SCRATCH,
    progress: Progress | None = None,
) -> Copy:
    """Trains a student from scratch on the classes that the owner's model names.

    The defaults are those of SAC's code for CIFAR-10, except that it updates the cosine's rate in every step rather
    than every epoch, so that it rises again after 200 steps.

    Args:
        owner: the stolen model; it is queried with the thief's images, once each, and with `augment` then with every
            view that is learned.
        data: the thief's images; their labels are ignored.
        key: draws the student's weights, batches and augmentation.
        student: architecture of the copy; the owner's by default.
        sgd: how; 0 epochs leave the student random.
        progress: called as the work proceeds.

    Returns:
        The student, with the curve `loss`, `[steps]`.

    Raises:
        TheftError: no architecture, an answer is not finite, or the loss diverged.

    Reference:
        Guan, Liang, He: Are You Stealing My Model? Sample Correlation for Fingerprinting Deep Neural Networks,
        NeurIPS 2022.
    """
    return _extract(owner, data, key, student=student, loss_fn=None, sgd=sgd, progress=progress)


def distillation(
    owner: Network,
    data: Batch,
    key: jax.Array,
    *,
    student: Blueprint | None = None,
    temperature: float = 20.0,
    alpha: float = 0.9,
    sgd: SGD = SGD(epochs=200, learning_rate=0.1, schedule="cosine"),
    progress: Progress | None = None,
) -> Copy:
    """Extraction by probability: trains a student from scratch on the owner's probabilities, softened.

    The defaults are those of SAC's code for CIFAR-10, except for the schedule, see `label_extraction`, and for the
    divergence, which it averages over images and classes. Summed over classes, as here, the soft part weighs `K` times
    as much.

    Args:
        owner: see `label_extraction`, as for all others.
        data: the thief's images.
        key: draws the student's weights, batches and augmentation.
        student: architecture of the copy.
        temperature: see `DistillationLoss`.
        alpha: weight of the soft part.
        sgd: how.
        progress: called as the work proceeds.

    Returns:
        The student, with the curve `loss`, `[steps]`.

    Raises:
        TheftError: as `label_extraction`, or an option is out of range.

    Reference:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015.
    """
    if not (temperature > 0 and 0 <= alpha <= 1):
        raise TheftError(
            f"expected temperature > 0 and alpha in [0, 1], got {temperature=}, {alpha=}; SAC's are 20 and 0.9"
        )
    loss_fn = DistillationLoss(temperature, alpha)
    return _extract(owner, data, key, student=student, loss_fn=loss_fn, sgd=sgd, progress=progress)


def _extract(
    owner: Network,
    data: Batch,
    key: jax.Array,
    *,
    student: Blueprint | None,
    loss_fn: DistillationLoss | None,
    sgd: SGD,
    progress: Progress | None,
) -> Copy:
    """The student; without a loss of probabilities it learns labels alone."""
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
    if sgd.augment is None:
        variables, losses = sgd.learn(gradient_fn, start.variables, answers, key_learn, progress=progress)
    else:
        # An answer to an image is none to a view of it: every view is a query, answered inside the training step.
        params, state = training.partition(start.variables)
        parts = {"params": params, "student": state, "owner": owner.variables}
        parts, losses = sgd.learn(Answered(gradient_fn, answer_fn), parts, answers, key_learn, progress=progress)
        variables = training.combine(parts["params"], parts["student"])
        queries += len(losses) * min(sgd.batch_size, queries)
    return Copy(start.with_variables(variables), {"loss": losses}, queries=queries)


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


@partial(jax.jit, static_argnums=0)
def _answers(answer_fn: Answers, variables: Variables, chunks: jax.Array) -> jax.Array:
    return lax.map(partial(answer_fn, variables), chunks)


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
    answers = _answers(answer_fn, variables, evaluation.chunked(images, batch_size))
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
