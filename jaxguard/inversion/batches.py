"""Images and labels of a search, in batches of one size, so that a network is compiled once for all of them."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import execution, memory, meshes, programs
from jaxguard.errors import DataError
from jaxguard.types import ApplyFn, Variables


def rows_of(total: int, size: int) -> np.ndarray:
    """Indices below `total` in rows of `size`; the last row is filled up from the start.

    Example:
        >>> rows_of(3, 2).tolist()
        [[0, 1], [2, 0]]
    """
    # Wrapping around fills the last row with indices that exist; their results are cut off by the caller.
    return (np.arange(-(-total // size) * size) % total).reshape(-1, size)


def in_turn(labels: np.ndarray) -> np.ndarray:
    """Numbers of images in an order in which all classes take turns.

    Example:
        >>> in_turn(np.array([0, 0, 1, 1, 1])).tolist()
        [0, 2, 1, 3, 4]
    """
    place = np.empty(len(labels), int)  # of an image among those of its class
    for y in np.unique(labels):
        own = np.flatnonzero(labels == y)
        place[own] = np.arange(len(own))
    return np.lexsort((labels, place))


@partial(programs.jit, static_argnums=0)
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
    bytes_each = memory.of_forward(apply_fn, variables, images.shape[1:])
    size = execution.stamped_images_at_once(bytes_each)

    def logits(row: np.ndarray) -> np.ndarray:
        return np.asarray(_logits(apply_fn, variables, meshes.spread(images[row])))

    threads = execution.searches_at_once(size * bytes_each)
    parts = execution.in_threads(logits, rows_of(len(images), size), threads=threads)
    return np.concatenate(list(parts))[: len(images)]


def require_unit_range(images: np.ndarray | jax.Array, where: str) -> None:
    """Check that images are in [0, 1].

    Args:
        images: not empty.
        where: name of the public function, for the error.

    Raises:
        DataError: some are not.
    """
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"expected images in [0, 1], got {low:.3g} to {high:.3g} in {where}(); divide bytes by 255, and leave "
            "mean and standard deviation to the model"
        )


def require_labels(labels: np.ndarray, number: int, num_classes: int, where: str) -> None:
    """Check that there is one class per image.

    Args:
        labels: int `[N]`.
        number: `N` of the images.
        num_classes: `K`.
        where: name of the public function, for the error.

    Raises:
        DataError: there is not.
    """
    if labels.shape != (number,) or labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(
            f"expected {number} labels in [0, {num_classes}), got shape {labels.shape} in {where}(); pass one label "
            "per image, or None for the model's own predictions"
        )
