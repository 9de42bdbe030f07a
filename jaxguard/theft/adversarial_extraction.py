"""Adversarial extraction: a student extracted by label is hardened against its own adversarial examples.

The student keeps the owner's labels and loses its adversarial examples, which fingerprints made of those rely on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxguard import training
from jaxguard.theft import protocol
from jaxguard.theft.extraction import label_extraction, named
from jaxguard.theft.oracle import Oracle, ask
from jaxguard.theft.protocol import Blueprint, Network, TheftError, TheftReport
from jaxguard.theft.recipe import Recipe, Schedule
from jaxguard.training import Progress
from jaxguard.types import ApplyFn, Batch, TrainFn, Variables


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
        """Takes one step.

        Args:
            variables: of the attacked model.
            batch: images `[B, ...]` in [0, 1] before the attack, and the labels it leads away from.
            images: the images by now.
            index: ignored.

        Returns:
            Images within `epsilon` of the first ones and within [0, 1], and the `loss` before the step.
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

    @partial(jax.jit, static_argnums=0)
    def __call__(
        self, data: Batch, key: jax.Array, order: jax.Array, index: jax.Array
    ) -> tuple[jax.Array, Batch, jax.Array]:
        key_order, key_noise = jax.random.split(key)
        order, batch = training.draw(key_order, order, index, data, self.batch_size)
        images = jnp.asarray(batch.images)
        key_step = jax.random.fold_in(key_noise, index)
        shift = jax.random.uniform(key_step, images.shape, minval=-self.noise, maxval=self.noise)
        return order, batch, jnp.clip(images + shift, 0, 1)


def adversarial_extraction(
    owner: Network,
    data: Batch | None,
    key: jax.Array,
    *,
    start: Network | None = None,
    student: Blueprint | None = None,
    extraction: Mapping[str, Any] | None = None,
    attack_steps: int = 30,
    step_size: float = 1 / 256,
    epsilon: float = 4 / 256,
    random_start: bool = True,
    epochs: int = 2,
    batch_size: int = 512,
    learning_rate: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Schedule = "constant",
    progress: Progress | None = None,
) -> tuple[Network, TheftReport]:
    """Trains an extracted student on images and on adversarial examples against itself, both under the owner's label.

    The defaults are those of SAC's code for CIFAR-10; batch size, momentum and decay are taken over from its extraction
    by label, and the random start is ours. Each step attacks its batch anew, so it costs `attack_steps` + 2 passes.

    Args:
        owner: the stolen model; it is asked about the thief's images once each, whether or not the student has to be
            extracted first.
        data: the thief's images in [0, 1]; their labels are not looked at.
        key: draws the student, batches, and where attacks start.
        start: a student that `label_extraction` made; None makes one.
        student: architecture of the student to make; the owner's by default.
        extraction: hyper-parameters of `label_extraction` for it.
        attack_steps: of projected gradient ascent, >= 0.
        step_size: of the attack, in pixels.
        epsilon: largest change of a pixel.
        random_start: whether attacks start from a random point within `epsilon`, or from the image.
        epochs: passes over the images; 0 returns the student as it was.
        batch_size: images per step.
        learning_rate: of SGD.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD.
        schedule: how the rate falls.
        progress: told how far the hardening is.

    Returns:
        The student, and a report with the curves `loss` and `attacked_loss`, the part of it that adversarial examples
        have, each `[steps]`.

    Raises:
        TheftError: something is missing or out of range, an answer is not finite, or the loss diverged.
        DataError: no images.
    """
    data = protocol.require_data(data, "adversarial_extraction")
    recipe = Recipe(
        "adversarial_extraction", epochs, batch_size, learning_rate, momentum, weight_decay, schedule
    )  # fmt: skip
    if attack_steps < 0 or min(step_size, epsilon) < 0 or (start is not None and (student or extraction)):
        raise TheftError(
            "expected attack_steps, step_size and epsilon >= 0, and no student nor extraction beside start, came "
            f"{attack_steps=}, {step_size=}, {epsilon=}, start={start is not None}, student={student is not None}, "
            f"extraction={extraction} in adversarial_extraction(); SAC's are 30, 1/256 and 4/256"
        )
    key_student, key_learn = jax.random.split(key)
    made_here, queries = start is None, len(data.images)
    if start is None:
        start, made = label_extraction(owner, data, key_student, student=student, **(extraction or {}))
        same_images = (extraction or {}).get("augment") is None
        queries = made.queries + (0 if same_images else queries)
    train_fn = protocol.require_training(start.train_fn, "adversarial_extraction")
    labels = ask(Oracle(owner.apply_fn, labels_only=True), owner.variables, data.images)
    answered = Batch(jnp.asarray(data.images), labels)

    num_images = len(data.images)
    batch_size = min(batch_size, num_images)
    draw = _Draw(batch_size, epsilon if random_start else 0.0)
    attack = PGDStep(start.apply_fn, step_size, epsilon)
    step = training.Step(AdversarialGradient(train_fn), recipe.optimizer(num_images), batch_size)
    order, copy, carry = jnp.zeros(num_images, jnp.int32), start, None
    num_steps = epochs * training.steps_per_epoch(num_images, batch_size)
    rows = []
    for index in range(num_steps):
        order, batch, begin = draw(answered, key_learn, order, np.int32(index))
        carry = step.init(copy.variables, batch) if carry is None else carry
        # On CPU a convolution's gradient is fast outside of loops only: descend decides, for the attack as well.
        found, _ = training.descend(Partial(attack, copy.variables, batch), begin, attack_steps)
        pairs = Batch(jnp.stack([jnp.asarray(batch.images), found], axis=1), batch.labels)
        carry, metrics = training.descend(step.on(pairs, key_learn), carry, 1, start=index)
        copy = replace(copy, variables=carry.variables(like=copy.variables))
        rows.append([float(metrics[name][0]) for name in ("loss", "attacked_loss")])
        recipe.require_finite(np.array(rows)[:, 0])
        if progress is not None:
            progress(index + 1, num_steps, {"loss": rows[-1][0]})
    losses, attacked = np.array(rows, np.float32).reshape(-1, 2).T
    options = {
        "start": "made here" if made_here else "given",
        "student": named(start.model),
        "extraction": dict(extraction or {}),
        "attack_steps": attack_steps,
        "step_size": step_size,
        "epsilon": epsilon,
        "random_start": random_start,
        **{name: value for name, value in recipe.options().items() if name != "augment"},
    }
    curves = {"loss": losses, "attacked_loss": attacked}
    return copy, TheftReport("adversarial-extraction", options, curves=curves, queries=queries)
