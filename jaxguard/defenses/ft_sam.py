"""FT-SAM: fine-tuning towards a flat minimum, since backdoor neurons have large weights.

Zhu, Wei, Shen, Fan and Wu, "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization", ICCV 2023.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxguard import methods, training
from jaxguard.defenses.protocol import Data, DefenseReport, one_batch, require_clean, require_training
from jaxguard.errors import DefenseError
from jaxguard.types import Batch, Network

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

    def climb(w: jax.Array, g: jax.Array) -> jax.Array:
        # Half-precision leaves are scaled in float32, as the norm is.
        return (scale * jnp.square(w).astype(scale.dtype) * g.astype(scale.dtype)).astype(w.dtype)

    return jax.tree.map(climb, params, gradient)


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
        """A `training.GradientFn`; records the `loss` at `w`, and `sharpness`, its rise at `w + eps`.

        The state is that of the first pass: running statistics of the perturbed weights are of no use.
        """
        metrics, after, gradient = self.gradient_fn(params, state, batch)
        climbed = jax.tree.map(jnp.add, params, perturbation(params, gradient, self.rho))
        sharp, _, gradient = self.gradient_fn(climbed, state, batch)
        return {"loss": metrics["loss"], "sharpness": sharp["loss"] - metrics["loss"]}, after, gradient


@methods.checked
def ft_sam(
    network: Network,
    data: Data,
    key: jax.Array,
    *,
    rho: methods.NonNegative = 2.0,
    epochs: methods.Steps = 100,
    batch_size: methods.Count = 256,
    learning_rate: methods.NonNegative = 0.01,
    momentum: methods.Momentum = 0.9,
    weight_decay: methods.NonNegative = 5e-4,
    label_smoothing: methods.Share = 0.1,
    schedule: Literal["epoch", "step"] = "epoch",
    augment: training.Augmentation = None,
) -> tuple[Network, DefenseReport]:
    """Fine-tunes on clean images with adaptive sharpness-aware minimisation.

    Each step climbs to `w + eps` (see `perturbation`) and descends with the gradient found there. The defaults are
    BackdoorBench's for CIFAR-10 but for the augmentation, which depends on the data: there it is `CropFlip()`.
    They are made for some thousand clean images, 1,000 steps in all; with a hundred they hardly change the network.

    Args:
        network: the suspect.
        data: needs `clean`.
        key: draws batches and augmentation.
        rho: radius of the climb; 2 for CIFAR-10, 8 for GTSRB and Tiny ImageNet; 0 is plain fine-tuning.
        epochs: passes over the clean images; 0 changes nothing.
        batch_size: images per step; all clean images where there are fewer.
        learning_rate: of the first epoch.
        momentum: of SGD.
        weight_decay: of SGD.
        label_smoothing: share of a label given to all classes.
        schedule: `epoch` falls along half a cosine to 0, epoch by epoch; `step` is BackdoorBench's quirk, which
            advances a cosine of half-period 100 with every batch, so that the rate goes down and up again.
        augment: of the images, such as `crop` for digits and signs, `crop-flip` for photographs.

    Returns:
        The repaired network and a report with the curves `loss` and `sharpness`, `[steps]`.

    Raises:
        DefenseError: clean images or a training mode are missing, or the loss became NaN or infinite.
    """
    clean, train_fn = require_clean(data, "ft-sam"), require_training(network, "ft-sam")
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
        step.on(clean, key),
        step.init(network.variables, clean),
        epochs * epoch_steps,
        progress=data.progress,
        trains=True,
    )
    training.require_finite_loss(curves["loss"], "ft-sam", "lower learning_rate or rho", DefenseError)
    notes = one_batch(clean, batch_size, epochs, "the paper's setting takes 1,000")
    return network.with_variables(last.variables(like=network.variables)), DefenseReport(notes=notes, curves=curves)
