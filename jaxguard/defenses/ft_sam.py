"""FT-SAM: fine-tuning that looks for a flat minimum, since backdoor neurons hide behind large weights."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxguard import training
from jaxguard.defenses.protocol import Context, DefenseReport, require_clean, require_training
from jaxguard.errors import DefenseError
from jaxguard.types import Batch, Variables

BACKDOORBENCH_PERIOD = 100
"""T_max of BackdoorBench's cosine schedule, which it advances once per batch."""


def perturbation(params: Any, gradient: Any, rho: float | jax.Array) -> Any:
    """Steepest ascent in the adaptive norm: `eps = rho T^2 g / ||T g||`, `T = diag |w|`.

    Args:
        params: weights `w`.
        gradient: `g`, shaped like `params`.
        rho: radius, >= 0.

    Returns:
        `eps`, shaped like `params`; zero where `T g` is zero everywhere.

    Example:
        >>> perturbation(jnp.array([2.0, -1.0]), jnp.array([1.5, 4.0]), 1.0).tolist()  # T g = (3, 4)
        [1.2..., 0.8...]
    """
    norm = optax.tree.norm(jax.tree.map(lambda w, g: (jnp.abs(w) * g).astype(jnp.float32), params, gradient))
    scale = rho / (norm + 1e-12)
    return jax.tree.map(lambda w, g: (scale * jnp.square(w) * g).astype(w.dtype), params, gradient)


@dataclass(frozen=True)
class SharpnessAwareGradient:
    """The gradient at `w + eps`, to be descended from `w`.

    Attributes:
        gradient_fn: the plain gradient.
        rho: radius of the climb.
    """

    gradient_fn: training.GradientFn
    rho: float

    def __call__(self, params: Any, state: Any, batch: Batch) -> tuple[dict[str, jax.Array], Any, Any]:
        """Differentiates twice.

        Args:
            params: weights `w`.
            state: the other collections.
            batch: images and labels.

        Returns:
            `loss` at `w` and `sharpness`, its rise at `w + eps`; the state of the first pass, since nobody will use
            the running statistics of the perturbed weights; the gradient of the second.
        """
        metrics, after, gradient = self.gradient_fn(params, state, batch)
        climbed = jax.tree.map(jnp.add, params, perturbation(params, gradient, self.rho))
        sharp, _, gradient = self.gradient_fn(climbed, state, batch)
        return {"loss": metrics["loss"], "sharpness": sharp["loss"] - metrics["loss"]}, after, gradient


def ft_sam(
    variables: Variables,
    context: Context,
    key: jax.Array,
    *,
    rho: float = 2.0,
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.1,
    schedule: Literal["epoch", "step"] = "epoch",
    augment: training.Augment | None = None,
) -> tuple[Variables, DefenseReport]:
    """Fine-tunes on clean images with adaptive sharpness-aware minimisation.

    Each step climbs to `w + eps` (see `perturbation`) and descends with the gradient found there. The defaults are
    BackdoorBench's for CIFAR-10 but for the augmentation, which depends on the data: there it is `CropFlip()`.
    They count on some thousand clean images, 1,000 steps in all; with a hundred images they hardly move the model.

    Args:
        variables: the suspect, left untouched.
        context: needs `clean` and `train_fn`.
        key: draws batches and augmentation.
        rho: radius of the climb, >= 0; 2 for CIFAR-10, 8 for GTSRB and Tiny ImageNet; 0 is plain fine-tuning.
        epochs: passes over the clean images; 0 changes nothing.
        batch_size: images per step; all clean images where there are fewer.
        learning_rate: of the first epoch.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD.
        label_smoothing: in [0, 1].
        schedule: `epoch` falls along half a cosine to 0, epoch by epoch; `step` is BackdoorBench's quirk, which
            advances a cosine of half-period 100 with every batch, so that the rate goes down and up again.
        augment: `(key, images) -> images`, such as `training.CropFlip(padding=2, flip=False)`.

    Returns:
        The repaired variables and a report with the curves `loss` and `sharpness`, `[steps]`.

    Raises:
        DefenseError: clean images or the training-mode model are missing, a hyper-parameter is out of range, or
            the loss became NaN or infinite.

    Example:
        >>> linear = lambda w, images: images.reshape(len(images), -1) @ w
        >>> clean = Batch(np.eye(4).reshape(4, 2, 2, 1), np.arange(4))
        >>> context = Context(linear, lambda w, images: (linear(w, images), w), clean=clean)
        >>> repaired, report = ft_sam(np.eye(4), context, jax.random.key(0), epochs=3)
        >>> repaired.shape, report.curves["loss"].shape
        ((4, 4), (3,))

    Reference:
        Zhu, Wei, Shen, Fan, Wu: Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization,
        ICCV 2023.
    """
    clean, train_fn = require_clean(context, "ft-sam"), require_training(context, "ft-sam")
    options = {
        "rho": rho,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "schedule": schedule,
        "augment": repr(augment),
    }
    if min(rho, epochs, batch_size - 1) < 0 or schedule not in ("epoch", "step"):
        raise DefenseError(
            f"expected rho >= 0, epochs >= 0, batch_size >= 1 and schedule 'epoch' or 'step', came {rho=}, {epochs=}, "
            f"{batch_size=}, {schedule=} in ft_sam(); the paper's are 2, 100, 256 and 'epoch'"
        )
    batch_size = min(batch_size, len(clean.images))
    epoch_steps = training.steps_per_epoch(len(clean.images), batch_size)
    rate = training.cosine(
        learning_rate,
        epochs if schedule == "epoch" else BACKDOORBENCH_PERIOD,
        stride=epoch_steps if schedule == "epoch" else 1,
        periodic=schedule == "step",
    )
    optimizer = training.sgd(rate, momentum=momentum, weight_decay=weight_decay)
    gradient_fn = SharpnessAwareGradient(training.CrossEntropyGradient(train_fn, label_smoothing), rho)
    step = training.Step(gradient_fn, optimizer, batch_size, augment)
    last, curves = training.descend(
        step.on(clean, key), step.init(variables, clean), epochs * epoch_steps, progress=context.progress
    )
    if not np.isfinite(curves["loss"]).all():
        at = int(np.argmin(np.isfinite(curves["loss"])))
        raise DefenseError(
            f"expected a finite loss, came {curves['loss'][at]} at step {at} of {len(curves['loss'])} in ft_sam(); "
            "lower learning_rate or rho, or check the model and the images for NaN"
        )
    notes = ()
    if epochs and epoch_steps == 1:
        notes = (
            f"All {len(clean.images)} clean images went into one batch, so {epochs} epochs were {epochs} steps; the "
            "paper's setting takes 1,000. If the backdoor stays, lower batch_size or raise learning_rate.",
        )
    return last.variables(like=variables), DefenseReport("ft-sam", options, notes=notes, curves=curves)
