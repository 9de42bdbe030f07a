"""Running statistics of a model's norms: frozen during training, or re-estimated after an edit."""

from dataclasses import dataclass

import jax
import numpy as np

from jaxguard import programs
from jaxguard.types import ApplyFn, TrainFn, Variables


@dataclass(frozen=True)
class RunningStatistics:
    """Trains a model in evaluation mode: running statistics are used and not updated.

    A value, so that equal ones share a compiled step.

    Attributes:
        apply_fn: the model in evaluation mode.
    """

    apply_fn: ApplyFn

    def __call__(self, variables: Variables, images: jax.Array) -> tuple[jax.Array, Variables]:
        """Logits `[B, K]`, and `variables` unchanged."""
        return self.apply_fn(variables, images), variables


def estimate_statistics(
    train_fn: TrainFn, variables: Variables, images: jax.Array | np.ndarray, *, passes: int = 50
) -> Variables:
    """Runs the same images until the running statistics are theirs; parameters do not change.

    After 50 passes at momentum 0.9, the old statistics weigh 0.5 %.

    Args:
        train_fn: training-mode model.
        variables: of the model; not modified.
        images: `[B, H, W, C]`, one batch.
        passes: forward passes, >= 0.

    Returns:
        Variables of the same tree, shapes and dtypes.

    Example:
        >>> def centre(variables, images):
        ...     return images, variables | {"mean": 0.9 * variables["mean"] + 0.1 * images.mean()}
        >>> round(float(estimate_statistics(centre, {"mean": 0.0}, np.ones((2, 4, 4, 1)))["mean"]), 3)
        0.995
    """
    observe = programs.jit(train_fn, trains=True)
    for _ in range(passes):
        _, variables = observe(variables, images)
    return variables
