"""Batches of one size, so that a network is compiled once for all of a search."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import execution
from jaxguard.types import ApplyFn, Variables


def rows_of(total: int, size: int) -> np.ndarray:
    """Indices below `total` in rows of `size`; the last row is filled up from the start.

    Example:
        >>> rows_of(3, 2).tolist()
        [[0, 1], [2, 0]]
    """
    # Wrapping around fills the last row with indices that exist; their results are cut off by the caller.
    return (np.arange(-(-total // size) * size) % total).reshape(-1, size)


@partial(jax.jit, static_argnums=0)
def _logits(apply_fn: ApplyFn, variables: Variables, images: jax.Array) -> jax.Array:
    return apply_fn(variables, images).astype(jnp.float32)


def logits_of(apply_fn: ApplyFn, variables: Variables, images: np.ndarray) -> np.ndarray:
    """Logits of any number of images, batch by batch on all cores.

    Args:
        apply_fn: the model.
        variables: its variables.
        images: `[N, H, W, C]`, N >= 1.

    Returns:
        float32 `[N, K]`.
    """
    rows = rows_of(len(images), execution.stamped_images_at_once())
    parts = execution.in_threads(lambda row: np.asarray(_logits(apply_fn, variables, images[row])), rows)
    return np.concatenate(list(parts))[: len(images)]
