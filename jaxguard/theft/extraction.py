"""Extraction by queries alone: a student learns the owner's labels, or its probabilities (distillation)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxguard import training
from jaxguard.theft import protocol
from jaxguard.theft.oracle import Oracle, ask
from jaxguard.theft.protocol import Blueprint, Network, TheftError, TheftReport
from jaxguard.theft.recipe import Recipe, Schedule
from jaxguard.training import Augment, CrossEntropyGradient, GradientFn, Progress
from jaxguard.types import Batch, TrainFn

Reduction = Literal["images", "elements"]


def distillation_loss(
    logits: jax.Array, answers: jax.Array, *, temperature: float, alpha: float, reduction: Reduction = "images"
) -> jax.Array:
    """Hinton's distillation, with the teacher's own label for the hard part.

        alpha T^2 KL(softmax(answers / T) || softmax(logits / T)) + (1 - alpha) CE(logits, argmax answers)

    Args:
        logits: `[B, K]` of the student.
        answers: `[B, K]`, the teacher's logits.
        temperature: `T`, > 0.
        alpha: weight of the soft part, in [0, 1].
        reduction: the divergence is averaged over `images`, or over all `B K` elements, which divides it by `K`.

    Returns:
        float32 `[]`, in nats.

    Example:
        >>> teacher = jnp.array([[2.0, 0.0]])
        >>> loss = distillation_loss(jnp.zeros((1, 2)), teacher, temperature=1.0, alpha=1.0)
        >>> p = 1 / (1 + np.exp(-2.0))
        >>> np.allclose(loss, np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p))  # ln 2 minus the entropy
        True
    """
    logits, answers = logits.astype(jnp.float32), answers.astype(jnp.float32)
    wanted = jax.nn.log_softmax(answers / temperature)
    divergence = (jnp.exp(wanted) * (wanted - jax.nn.log_softmax(logits / temperature))).sum(-1).mean()
    if reduction == "elements":
        divergence = divergence / logits.shape[-1]
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, answers.argmax(-1)).mean()
    return alpha * temperature**2 * divergence + (1 - alpha) * hard


@dataclass(frozen=True)
class DistillationGradient:
    """The gradient of one batch's distillation loss in training mode; the batch's labels are the teacher's logits.

    A value, so that equal ones share a compiled step.

    Attributes:
        train_fn: the student in training mode.
        temperature: see `distillation_loss`, as for the others.
        alpha: weight of the soft part.
        reduction: what the divergence is averaged over.
    """

    train_fn: TrainFn
    temperature: float
    alpha: float
    reduction: Reduction

    def __call__(self, params: Any, state: Any, batch: Batch) -> tuple[dict[str, jax.Array], Any, Any]:
        """Differentiates; `loss`, the state after the batch, and the gradient."""

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            logits, after = self.train_fn(training.combine(params, state), jnp.asarray(batch.images))
            loss = distillation_loss(
                logits,
                jnp.asarray(batch.labels),
                temperature=self.temperature,
                alpha=self.alpha,
                reduction=self.reduction,
            )
            return loss, training.partition(after)[1]

        (loss, after), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return {"loss": loss}, jax.tree.map(lambda new, old: new.astype(old.dtype), after, state), gradient


def _extract(
    owner: Network,
    data: Batch | None,
    key: jax.Array,
    *,
    recipe: Recipe,
    student: Blueprint,
    gradient_fn: GradientFn,
    labels_only: bool,
    progress: Progress | None,
) -> tuple[Network, np.ndarray, int]:
    """The student, its losses, and how many images the owner's model was asked about."""
    data = protocol.require_data(data, recipe.method)
    oracle = Oracle(owner.apply_fn, labels_only)
    key_init, key_learn = jax.random.split(key)
    start = student.init(key_init)
    asked, answered = (
        protocol.num_classes(net, weights, data.images)
        for net, weights in ((student.apply_fn, start), (owner.apply_fn, owner.variables))
    )
    if asked != answered:
        raise TheftError(
            f"expected a student with the owner's {answered} classes, came one with {asked} in {recipe.method}(); "
            "build it with that num_classes"
        )
    answers = Batch(data.images, ask(oracle, owner.variables, data.images))
    teacher, queries = None, len(data.images)
    if recipe.augment is not None:  # an answer to an image is none to a view of it
        teacher = (oracle, owner.variables)
        batch_size = min(recipe.batch_size, queries)
        queries += recipe.epochs * training.steps_per_epoch(queries, batch_size) * batch_size
    copy, losses = recipe.learn(gradient_fn, start, answers, key_learn, teacher=teacher, progress=progress)
    return Network.of(student, copy), losses, queries


def named(student: Blueprint | None) -> str:
    """An architecture's specification, for a report."""
    return getattr(student, "spec", repr(student))


def label_extraction(
    owner: Network,
    data: Batch | None,
    key: jax.Array,
    *,
    student: Blueprint | None = None,
    epochs: int = 200,
    batch_size: int = 512,
    learning_rate: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Schedule = "cosine",
    augment: Augment | None = None,
    progress: Progress | None = None,
) -> tuple[Network, TheftReport]:
    """Trains a student from scratch on the classes that the owner's model names.

    The defaults are those of SAC's code for CIFAR-10, but that it updates the cosine's rate in every step rather than
    every epoch, so that it rises again after 200 steps: `schedule="cosine by step"`.

    Args:
        owner: the stolen model; it is asked about the thief's images, once each, and with `augment` then about every
            view that is learned.
        data: the thief's images; their labels are not looked at.
        key: draws the student's weights, batches and augmentation.
        student: architecture of the copy; the owner's by default.
        epochs: passes over the images; 0 leaves the student random.
        batch_size: images per step.
        learning_rate: of SGD, in the first epoch.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD.
        schedule: how the rate falls.
        augment: `(key, images) -> images`.
        progress: told how far the training is.

    Returns:
        The student and a report with the curve `loss`, `[steps]`.

    Raises:
        TheftError: something is missing or out of range, an answer is not finite, or the loss diverged.
        DataError: no images.

    Reference:
        Guan, Liang, He: Are You Stealing My Model? Sample Correlation for Fingerprinting Deep Neural Networks,
        NeurIPS 2022.
    """
    student = protocol.require_blueprint(student, owner, "label_extraction")
    recipe = Recipe(
        "label_extraction", epochs, batch_size, learning_rate, momentum, weight_decay, schedule, augment
    )  # fmt: skip
    gradient_fn = CrossEntropyGradient(student.train_fn)
    copy, losses, queries = _extract(
        owner, data, key,
        recipe=recipe, student=student, gradient_fn=gradient_fn, labels_only=True, progress=progress,
    )  # fmt: skip
    options = {"student": named(student), **recipe.options()}
    return copy, TheftReport("label-extraction", options, curves={"loss": losses}, queries=queries)


def distillation(
    owner: Network,
    data: Batch | None,
    key: jax.Array,
    *,
    student: Blueprint | None = None,
    temperature: float = 20.0,
    alpha: float = 0.9,
    reduction: Reduction = "images",
    epochs: int = 200,
    batch_size: int = 512,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Schedule = "cosine",
    augment: Augment | None = None,
    progress: Progress | None = None,
) -> tuple[Network, TheftReport]:
    """Extraction by probability: trains a student from scratch on the owner's probabilities, softened.

    The defaults are those of SAC's code for CIFAR-10, but for the schedule, see `label_extraction`, and for the
    divergence, which it averages over images and classes: `reduction="elements"`. Summed over classes, as by default
    here, the soft part weighs `K` times as much.

    Args:
        owner: the stolen model; it is asked as in `label_extraction`.
        data: the thief's images; their labels are not looked at.
        key: draws the student's weights, batches and augmentation.
        student: architecture of the copy; the owner's by default.
        temperature: `T`, > 0.
        alpha: weight of the soft part, in [0, 1].
        reduction: what the divergence is averaged over, `images` or `elements`.
        epochs: passes over the images; 0 leaves the student random.
        batch_size: images per step.
        learning_rate: of SGD, in the first epoch.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD.
        schedule: how the rate falls.
        augment: `(key, images) -> images`.
        progress: told how far the training is.

    Returns:
        The student and a report with the curve `loss`, `[steps]`.

    Raises:
        TheftError: something is missing or out of range, an answer is not finite, or the loss diverged.
        DataError: no images.

    Reference:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015.
    """
    if not (temperature > 0 and 0 <= alpha <= 1) or reduction not in ("images", "elements"):
        raise TheftError(
            f"expected temperature > 0, alpha in [0, 1] and reduction to be images or elements, came {temperature=}, "
            f"{alpha=}, {reduction=} in distillation(); SAC's are 20, 0.9 and elements"
        )
    student = protocol.require_blueprint(student, owner, "distillation")
    recipe = Recipe(
        "distillation", epochs, batch_size, learning_rate, momentum, weight_decay, schedule, augment
    )  # fmt: skip
    gradient_fn = DistillationGradient(student.train_fn, temperature, alpha, reduction)
    copy, losses, queries = _extract(
        owner, data, key,
        recipe=recipe, student=student, gradient_fn=gradient_fn, labels_only=False, progress=progress,
    )  # fmt: skip
    soft = {"temperature": temperature, "alpha": alpha, "reduction": reduction}
    options = {"student": named(student), **soft, **recipe.options()}
    return copy, TheftReport("distillation", options, curves={"loss": losses}, queries=queries)
