"""The owner's model as a thief without its weights sees it: images in, answers out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxguard import evaluation
from jaxguard.theft.protocol import TheftError
from jaxguard.types import ApplyFn, Variables


@dataclass(frozen=True)
class Oracle:
    """What a model answers; a value, traceable.

    Attributes:
        apply_fn: the model in evaluation mode, hashable.
        labels_only: whether it names the class alone.
    """

    apply_fn: ApplyFn
    labels_only: bool

    def __call__(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Answers.

        Args:
            variables: the model's.
            images: `[B, ...]`.

        Returns:
            int32 `[B]`, or float32 logits `[B, K]`, which softmax turns into probabilities. An image with a logit that
            is NaN is of class -1.
        """
        logits = self.apply_fn(variables, images).astype(jnp.float32)
        if not self.labels_only:
            return logits
        return jnp.where(jnp.isnan(logits).any(-1), -1, logits.argmax(-1)).astype(jnp.int32)


@partial(jax.jit, static_argnums=0)
def _answers(oracle: Oracle, variables: Variables, chunks: jax.Array) -> jax.Array:
    return lax.map(partial(oracle, variables), chunks)


def ask(oracle: Oracle, variables: Variables, images: jax.Array | np.ndarray, *, batch_size: int = 500) -> jax.Array:
    """Asks about every image once, batch by batch.

    Args:
        oracle: the model's answers.
        variables: its weights.
        images: `[N, ...]`, N >= 1.
        batch_size: images per forward pass; the last batch is padded.

    Returns:
        `[N]` classes or `[N, K]` logits.

    Raises:
        TheftError: an answer is NaN or infinite.

    Example:
        >>> brightest = Oracle(lambda variables, images: images.reshape(len(images), -1), labels_only=True)
        >>> ask(brightest, {}, np.eye(3, dtype=np.float32).reshape(3, 1, 3, 1), batch_size=2).tolist()
        [0, 1, 2]
    """
    num_images = len(images)
    answers = _answers(oracle, variables, evaluation.chunked(images, batch_size))
    answers = answers.reshape(-1, *answers.shape[2:])[:num_images]
    if not bool(jnp.isfinite(answers).all()) or (oracle.labels_only and bool((answers < 0).any())):
        raise TheftError(
            f"expected finite answers, came NaN or infinity for some of {num_images} images from the owner's model; "
            "check its weights, and that images are in [0, 1]"
        )
    return answers
