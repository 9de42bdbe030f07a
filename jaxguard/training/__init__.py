"""The one training loop: every method that descends goes through `descend`.

`descend` drives a step function on the backend at hand, `Step` is one on shuffled and augmented data, and `fit` is
supervised training on top of both. A method with another gradient writes that alone:

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
)
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
    "partition",
    "require_finite_loss",
    "sgd",
    "staged",
    "steps_per_epoch",
]
