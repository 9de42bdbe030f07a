"""Adversarial extraction: a student extracted by label is hardened against its own adversarial examples.

The student keeps the owner's labels and loses its adversarial examples, on which many fingerprints rely.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxguard import programs, training
from jaxguard.errors import TheftError
from jaxguard.methods import NonNegative, Steps, checked, options_of
from jaxguard.theft import protocol
from jaxguard.theft.extraction import Answers, label_extraction, query
from jaxguard.theft.protocol import Blueprint, TheftReport
from jaxguard.theft.sgd import SGD
from jaxguard.training import Progress
from jaxguard.types import ApplyFn, Batch, Network, TrainFn, Variables


@checked
@options_of(SGD)
def adversarial_extraction(
    owner: Network,
    data: Batch,
    key: jax.Array,
    *,
    start: Network | None = None,
    student: Blueprint | None = None,
    extraction: Mapping[str, Any] | None = None,
    attack_steps: Steps = 30,
    step_size: NonNegative = 1 / 256,
    epsilon: NonNegative = 4 / 256,
    epochs: Steps = 2,
    learning_rate: NonNegative = 1e-3,
    progress: Progress | None = None,
    **sgd: Any,
) -> tuple[Network, TheftReport]:
    """Trains an extracted student on images and on adversarial examples against itself, both under the owner's label.

    The defaults are those of SAC's code for CIFAR-10; batch size, momentum and decay are taken over from its extraction
    by label, and that attacks start from a random point within `epsilon` is ours. Each step attacks its batch again, so
    it costs `attack_steps` + 2 passes.

    Args:
        owner: the stolen model; it is queried with the thief's images once each, whether or not the student has to be
            extracted first.
        data: the thief's images in [0, 1]; their labels are ignored.
        key: draws the student, batches, and where attacks start.
        start: a student that `label_extraction` made; None makes one.
        student: architecture of the student to make; the owner's by default.
        extraction: options of `label_extraction` for making it.
        attack_steps: of projected gradient ascent.
        step_size: of the attack, in pixels.
        epsilon: largest change of a pixel.
        epochs: of hardening; 0 returns the student as it was.
        learning_rate: of its first step.
        progress: called as the work proceeds.
        sgd: other fields of `SGD`, but for the augmentation.

    Returns:
        The student, with the curves `loss` and `attacked_loss`, the part of it that adversarial examples have, each
        `[steps]`.

    Raises:
        TheftError: something is missing, an answer is not finite, or the loss diverged.
    """
    how = SGD(epochs, learning_rate, **sgd)
    if how.augment is not None or (start is not None and (student or extraction)):
        raise TheftError(
            "expected no augment, and no student nor extraction beside start, got "
            f"augment={how.augment}, start={start is not None}, student={student is not None}, {extraction=}"
        )
    key_student, key_learn = jax.random.split(key)
    num_images = queries = len(data.images)
    if start is None:
        options = extraction or {}
        start, made = label_extraction(owner, data, key_student, student=student, **options)
        queries = made.queries + (queries if options.get("augment") else 0)
    train_fn = protocol.require_training(start)
    labels = query(Answers(owner.apply_fn, labels_only=True), owner.variables, data.images)
    answered = Batch(jnp.asarray(data.images), labels)

    draw = _Draw(min(how.batch_size, num_images), epsilon)
    attack = PGDStep(start.apply_fn, step_size, epsilon)
    step = training.Step(AdversarialGradient(train_fn), how.optimizer(num_images), draw.batch_size)
    order, variables, carry = jnp.zeros(num_images, jnp.int32), start.variables, None
    num_steps = epochs * training.steps_per_epoch(num_images, draw.batch_size)
    rows = []
    for index in range(num_steps):
        order, batch, begin = draw(answered, key_learn, order, np.int32(index))
        carry = step.init(variables, batch) if carry is None else carry
        # On CPU a convolution's gradient is fast outside of loops only: descend decides, for the attack as well.
        found, _ = training.descend(Partial(attack, variables, batch), begin, attack_steps, trains=True)
        pairs = Batch(jnp.stack([jnp.asarray(batch.images), found], axis=1), batch.labels)
        carry, metrics = training.descend(step.on(pairs, key_learn), carry, 1, start=index, trains=True)
        variables = carry.variables(like=variables)
        rows.append([float(metrics[name][0]) for name in ("loss", "attacked_loss")])
        training.require_finite_loss(np.array(rows)[:, 0], "adversarial extraction", "lower learning_rate", TheftError)
        if progress is not None:
            progress(index + 1, num_steps, {"loss": rows[-1][0]})
    losses, attacked = np.array(rows, np.float32).reshape(-1, 2).T
    curves = {"loss": losses, "attacked_loss": attacked}
    return start.with_variables(variables), TheftReport(curves, queries=queries)


@dataclass(frozen=True)
class PGDStep:
    """One step of projected gradient ascent on the cross-entropy; a value, so that equal ones share a program.

    Attributes:
        apply_fn: the attacked model in evaluation mode.
        step_size: `a`, in pixels.
        epsilon: largest change of a pixel.
    """

    apply_fn: ApplyFn
    step_size: float
    epsilon: float

    def __call__(
        self, variables: Variables, batch: Batch, images: jax.Array, index: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """One step from `images` `[B, ...]`, which `batch` holds as they were, with the labels to lead away from.

        Returns images within `epsilon` of those of `batch` and within [0, 1], and the `loss` before the step.
        """
        del index

        def loss_fn(images: jax.Array) -> jax.Array:
            # A sum: the sign of an image's gradient is its own.
            return training.cross_entropy(self.apply_fn(variables, images), jnp.asarray(batch.labels)) * len(images)

        loss, gradient = jax.value_and_grad(loss_fn)(images)
        origin = jnp.asarray(batch.images)
        moved = images + self.step_size * jnp.sign(gradient)
        clipped = jnp.clip(moved, origin - self.epsilon, origin + self.epsilon)
        return jnp.clip(clipped, 0, 1).astype(images.dtype), {"loss": loss / len(images)}


@dataclass(frozen=True)
class AdversarialGradient:
    """The gradient of `CE(x) + CE(x_adv)`, each in training mode; images are pairs `[B, 2, ...]` of both.

    Attributes:
        train_fn: the student in training mode.
    """

    train_fn: TrainFn

    def __call__(self, params: Any, state: Any, batch: Batch) -> tuple[dict[str, jax.Array], Any, Any]:
        """Differentiates; `loss` and the second term, the state after both passes, and the gradient."""
        pairs, labels = jnp.asarray(batch.images), jnp.asarray(batch.labels)

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            losses, after = [], state
            for k in range(2):
                logits, variables = self.train_fn(training.combine(params, after), pairs[:, k])
                losses.append(training.cross_entropy(logits, labels))
                after = training.partition(variables)[1]
            return losses[0] + losses[1], (losses[1], after)

        (loss, (attacked, after)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        metrics = {"loss": loss, "attacked_loss": attacked}
        return metrics, jax.tree.map(lambda new, old: new.astype(old.dtype), after, state), gradient


@dataclass(frozen=True)
class _Draw:
    """One step's batch, and where its attack starts."""

    batch_size: int
    noise: float

    @partial(programs.jit, static_argnums=0)
    def __call__(
        self, data: Batch, key: jax.Array, order: jax.Array, index: jax.Array
    ) -> tuple[jax.Array, Batch, jax.Array]:
        key_order, key_noise = jax.random.split(key)
        order, batch = training.draw(key_order, order, index, data, self.batch_size)
        images = jnp.asarray(batch.images)
        key_step = jax.random.fold_in(key_noise, index)
        shift = jax.random.uniform(key_step, images.shape, minval=-self.noise, maxval=self.noise)
        return order, batch, jnp.clip(images + shift, 0, 1)
