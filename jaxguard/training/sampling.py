"""Shuffled batches of data on the device."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxguard.types import Batch


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Steps in which every image is drawn at least once.

    Args:
        num_images: images in the data set, >= 1.
        batch_size: images per step, >= 1.

    Returns:
        `ceil(num_images / batch_size)`.

    Example:
        >>> steps_per_epoch(300, 128)
        3
    """
    return -(-num_images // batch_size)


def draw(
    key: jax.Array, order: jax.Array, step: jax.Array, data: Batch, batch_size: int, *, rows: jax.Array | None = None
) -> tuple[jax.Array, Batch]:
    """Draws the batch of one step; an epoch's permutation depends only on `key` and the epoch.

    If `batch_size` does not divide the number of images, the epoch's first images fill up its last batch.

    Args:
        key: the same key in every step.
        order: int32 `[N]`, what the previous step returned; ignored at the first step of an epoch.
        step: int32 `[]`, counted from 0 over all epochs.
        data: `N` images, or those that `rows` are taken from.
        batch_size: images per step, at most `N`.
        rows: int `[N]`, which images are drawn from; all by default.

    Returns:
        The order to carry to the next step, and the batch.
    """
    num_images = len(order)
    epoch, position = jnp.divmod(step, steps_per_epoch(num_images, batch_size))
    # The order is part of the carry, and shuffled at the first step of each epoch only.
    order = lax.cond(
        position == 0,
        lambda: jax.random.permutation(jax.random.fold_in(key, epoch), num_images).astype(order.dtype),
        lambda: order,
    )
    # The last batch wraps around to the first images of the epoch: batches have one shape.
    indices = order[(position * batch_size + jnp.arange(batch_size)) % num_images]
    indices = indices if rows is None else rows[indices]
    return order, Batch(data.images[indices], data.labels[indices])
