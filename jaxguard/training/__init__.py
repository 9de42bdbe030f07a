"""The one training loop: every method that descends goes through `descend`.

`descend` drives a step function on the backend at hand; `fit` is supervised training on top of it.
`partition`, `draw`, `loss_and_gradient`, `sgd` and `cosine` are the parts from which other methods make
their steps.
"""

from jaxguard.training.augmentation import Augment, CropFlip
from jaxguard.training.descent import Progress, descend
from jaxguard.training.objective import combine, cosine, cross_entropy, loss_and_gradient, partition, sgd
from jaxguard.training.sampling import draw, steps_per_epoch
from jaxguard.training.supervised import TrainResult, fit

__all__ = [
    "Augment",
    "CropFlip",
    "Progress",
    "TrainResult",
    "combine",
    "cosine",
    "cross_entropy",
    "descend",
    "draw",
    "fit",
    "loss_and_gradient",
    "partition",
    "sgd",
    "steps_per_epoch",
]
