"""Running statistics of a model's norms: used as they are while it learns, or estimated anew after an edit."""

from dataclasses import dataclass

import jax
import numpy as np

from jaxguard.types import ApplyFn, TrainFn, Variables


@dataclass(frozen=True)
class RunningStatistics:
    """A model in evaluation mode in the place of one in training mode: running statistics are used, and stay.

    A value, so that equal ones share a compiled step.

    Attributes:
        apply_fn: the model in evaluation mode.
    """

    apply_fn: ApplyFn

    def __call__(self, variables: Variables, images: jax.Array) -> tuple[jax.Array, Variables]:
        """Logits, and the variables as they are.

        Args:
            variables: of the model.
            images: `[B, ...]`.

        Returns:
            `[B, K]` and `variables`.
        """
        return self.apply_fn(variables, images), variables


def estimate_statistics(
    train_fn: TrainFn, variables: Variables, images: jax.Array | np.ndarray, *, passes: int = 50
) -> Variables:
    """Shows a model the same images until its running statistics are theirs; parameters stay.

    A norm of momentum 0.9 forgets what it knew to 0.5 % in 50 passes.

    Args:
        train_fn: training-mode model.
        variables: of the model; left untouched.
        images: `[B, H, W, C]`, all of them one batch.
        passes: forward passes, >= 0.

    Returns:
        Variables of the same tree, shapes and dtypes.

    Example:
        >>> def centre(variables, images):
        ...     return images, variables | {"mean": 0.9 * variables["mean"] + 0.1 * images.mean()}
        >>> round(float(estimate_statistics(centre, {"mean": 0.0}, np.ones((2, 4, 4, 1)))["mean"]), 3)
        0.995
    """
    observe = jax.jit(train_fn)
    for _ in range(passes):
        _, variables = observe(variables, images)
    return variables
