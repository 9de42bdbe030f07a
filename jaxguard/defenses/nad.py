"""NAD, neural attention distillation: a fine-tuned copy teaches the suspect where to look.

Li, Lyu, Koren, Lyu, Li and Ma, "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks",
ICLR 2021.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, MinLen
from jax.tree_util import Partial

from jaxguard import methods, training
from jaxguard.activations.feature_maps import FeatureMap, attention, feature_maps, train_with_maps
from jaxguard.activations.layer_inputs import activations
from jaxguard.defenses.ft import ft
from jaxguard.defenses.protocol import Data, DefenseReport, one_batch, require_clean, require_training
from jaxguard.errors import DefenseError
from jaxguard.graph import ChannelGraph
from jaxguard.types import Batch, Network, TrainFn, Variables


@dataclass(frozen=True)
class AttentionGradient:
    """The gradient of `CE + sum_l beta_l MSE(A_l(student), A_l(teacher))`, the student in training mode.

    Attributes:
        graph: of the model in evaluation mode, which the teacher is run in.
        train_fn: the model in training mode.
        maps: whose attention is compared.
        beta: weight of each.
        power: `p` of the attention.
    """

    graph: ChannelGraph
    train_fn: TrainFn
    maps: tuple[FeatureMap, ...]
    beta: tuple[float, ...]
    power: float

    def __call__(
        self, teacher: Variables, params: Any, state: Any, batch: Batch
    ) -> tuple[dict[str, jax.Array], Any, Any]:
        """A `training.GradientFn` with a teacher; records `loss`, and `attention`, the teacher's part of it."""
        images = jnp.asarray(batch.images)
        # Outside of the loss: the teacher is fixed, and no gradient goes through it.
        taught = activations(self.graph, teacher, images, [one.value for one in self.maps])

        def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            logits, after, shown = train_with_maps(self.train_fn, training.combine(params, state), images, self.maps)
            distance = jnp.float32(0)
            for one, weight, ours, theirs in zip(self.maps, self.beta, shown, taught, strict=True):
                gap = attention(ours, one, self.power) - attention(theirs, one, self.power)
                distance += weight * jnp.mean(jnp.square(gap))
            return training.cross_entropy(logits, jnp.asarray(batch.labels)) + distance, (distance, after)

        (loss, (distance, after)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, state)
        return {"loss": loss, "attention": distance}, after, gradient


@functools.lru_cache(maxsize=64)
def published_rate(learning_rate: float, epoch_steps: int) -> optax.Schedule:
    """`learning_rate` for two epochs, then at most 0.01, from the 20th on at most 0.0001.

    Args:
        learning_rate: of the first epochs; the authors' is 0.1, BackdoorBench's 0.01.
        epoch_steps: steps in an epoch.

    Returns:
        A schedule `step -> rate`.

    Example:
        >>> [round(float(published_rate(0.1, 10)(step)), 4) for step in (0, 19, 20, 199, 200)]
        [0.1, 0.1, 0.01, 0.01, 0.0001]
    """

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        epoch = jnp.asarray(step) // epoch_steps
        later = jnp.where(epoch < 20, min(learning_rate, 1e-2), min(learning_rate, 1e-4))
        return jnp.where(epoch < 2, learning_rate, later)

    return schedule


@methods.checked
def nad(
    network: Network,
    data: Data,
    key: jax.Array,
    *,
    teacher_epochs: methods.Steps = 10,
    epochs: methods.Steps = 20,
    beta: Annotated[Sequence[methods.NonNegative], MinLen(1)] = (500.0, 1000.0, 1000.0),
    power: Annotated[float, Ge(1)] = 2.0,
    batch_size: methods.Count = 256,
    learning_rate: methods.NonNegative = 0.01,
    momentum: methods.Momentum = 0.9,
    weight_decay: methods.NonNegative = 5e-4,
    schedule_epochs: methods.Count | None = None,
    augment: training.Augmentation = None,
) -> tuple[Network, DefenseReport]:
    """Fine-tunes a copy, then the suspect itself with the copy's attention maps as a second goal.

    Attention is `A = sum_c |F|^p`, of norm 1 for each image, of the maps of `jaxguard.activations.feature_maps`: the
    ends of the last stages, before any pooling. BackdoorBench takes PreActResNet-18's last map behind the pooling,
    where one position is left and its attention is 1 whatever the network does. A perceptron has no positions, and
    each of its units counts as one; a vision transformer has tokens, and its maps lie at even distances. Where there
    are fewer maps than weights, the last weights count.

    The defaults are BackdoorBench's for CIFAR-10 but for the augmentation, which there is `CropFlip()`, and for the
    number of epochs, which is the authors': BackdoorBench's student takes `teacher_epochs`, whatever its `epochs` are.
    Its teacher's rate falls with `schedule_epochs=100`. They are made for some thousand clean images.

    Args:
        network: the suspect.
        data: needs `clean`.
        key: draws batches and augmentation.
        teacher_epochs: passes over the clean images that make the teacher, see `jaxguard.defenses.ft.ft`.
        epochs: passes of the student; 0 changes nothing.
        beta: weight of each map, first to last.
        power: `p`.
        batch_size: images per step, at most all clean images.
        learning_rate: of the teacher's first epoch, and of the student's first two, see `published_rate`.
        momentum: of SGD.
        weight_decay: of SGD.
        schedule_epochs: of the teacher: epochs until its rate would be 0; `teacher_epochs` by default.
        augment: of the images, such as `crop` for digits and signs, `crop-flip` for photographs.

    Returns:
        The student, and a report with the curves `teacher_loss`, `loss` and `attention`, its distance from the
        teacher's maps, `[steps]`.

    Raises:
        DefenseError: clean images or a training mode are missing, the network has other layers in training mode or
            none but the logits', or a loss became NaN or infinite.
    """
    clean, train_fn = require_clean(data, "nad"), require_training(network, "nad")
    maps = feature_maps(network.graph, len(beta))
    if not maps:
        raise DefenseError(
            "expected a hidden layer whose output another layer reads, got none in nad(); a model with nothing but an "
            "output layer has no attention to teach"
        )
    key_teacher, key_student = jax.random.split(key)
    teacher, taught = ft(
        network, replace(data, progress=training.staged(data.progress, "training the teacher")), key_teacher,
        epochs=teacher_epochs, batch_size=batch_size, learning_rate=learning_rate, momentum=momentum,
        weight_decay=weight_decay, schedule_epochs=schedule_epochs, augment=augment,
    )  # fmt: skip
    batch_size = min(batch_size, len(clean.images))
    epoch_steps = training.steps_per_epoch(len(clean.images), batch_size)
    gradient_fn = AttentionGradient(network.graph, train_fn, maps, tuple(beta)[-len(maps) :], power)
    optimizer = training.sgd(published_rate(learning_rate, epoch_steps), momentum=momentum, weight_decay=weight_decay)
    lesson = training.GuidedStep(gradient_fn, optimizer, batch_size, augment)
    student, curves = training.descend(
        Partial(lesson, teacher.variables, jax.device_put(clean), key_student),
        lesson.guided(teacher.variables).init(network.variables, clean),
        epochs * epoch_steps,
        progress=training.staged(data.progress, "training the student"),
        trains=True,
    )
    training.require_finite_loss(curves["loss"], "the student of nad", "lower learning_rate or beta", DefenseError)
    notes = (_note(maps), *one_batch(clean, batch_size, epochs, "BackdoorBench takes 100"))
    curves = {"teacher_loss": taught.curves["loss"], **curves}
    return network.with_variables(student.variables(like=network.variables)), DefenseReport(notes=notes, curves=curves)


def _note(maps: Sequence[FeatureMap]) -> str:
    sizes = ("x".join(map(str, one.shape)) if one.positions > 1 else "no" for one in maps)
    places = ", ".join(f"{one.layer} ({size} positions)" for one, size in zip(maps, sizes, strict=True))
    return f"Attention was taught on the way to {places}, before any pooling."
