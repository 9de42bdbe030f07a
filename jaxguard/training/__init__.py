"""The one training loop: every gradient descent in jaxguard goes through `descend`.

`descend` runs a step function on the default backend, `Step` is a step on shuffled and augmented data, `fit` is
supervised training with both, and `fit_many` that of many networks at once. A method with another gradient defines only
that:

    step = Step(gradient_fn, sgd(0.01), batch_size=256)
    state, metrics = descend(step.on(data, key), step.init(variables, data), num_steps)
"""

from jaxguard.training.augmentation import AUGMENTATIONS, Augment, Augmentation, CropFlip
from jaxguard.training.descent import Progress, descend, require_finite_loss, staged
from jaxguard.training.guided_step import GuidedStep
from jaxguard.training.objective import (
    CrossEntropyGradient,
    GradientFn,
    LossGradient,
    combine,
    cosine,
    cross_entropy,
    partition,
    sgd,
    update,
)
from jaxguard.training.population import fit_many
from jaxguard.training.sampling import draw, steps_per_epoch
from jaxguard.training.statistics import RunningStatistics, estimate_statistics
from jaxguard.training.step import Step, TrainState
from jaxguard.training.supervised import TrainResult, fit

__all__ = [
    "AUGMENTATIONS",
    "Augment",
    "Augmentation",
    "CropFlip",
    "CrossEntropyGradient",
    "GradientFn",
    "GuidedStep",
    "LossGradient",
    "Progress",
    "RunningStatistics",
    "Step",
    "TrainResult",
    "TrainState",
    "combine",
    "cosine",
    "cross_entropy",
    "descend",
    "draw",
    "estimate_statistics",
    "fit",
    "fit_many",
    "partition",
    "require_finite_loss",
    "sgd",
    "staged",
    "steps_per_epoch",
    "update",
]
