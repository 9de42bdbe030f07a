"""Small pictures stamped at a place of their own."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.errors import DataError


def place(
    images: jax.Array | np.ndarray,
    picture: np.ndarray,
    mask: np.ndarray,
    seed: int,
    attack: str,
) -> jax.Array:
    """Stamps a picture on all images at one place, drawn uniformly from those where all of it fits.

    Args:
        images: `[..., H, W, C]`.
        picture: `[s, s, 1]` or `[s, s, C]` in [0, 1].
        mask: `[s, s, 1]` or `[s, s, C]`, 1 where the picture replaces the image and 0 elsewhere.
        seed: draws the place.
        attack: name for messages.

    Returns:
        The images; pixels outside the mask are unchanged, bit for bit.

    Raises:
        DataError: the images are smaller than the picture.

    Example:
        >>> place(jnp.zeros((3, 3, 1)), np.ones((2, 2, 1)), np.ones((2, 2, 1)), 0, "square")[:, :, 0].tolist()
        [[0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    """
    images = jnp.asarray(images)
    height, width, depth = images.shape[-3:]
    size = picture.shape[0]
    if size > min(height, width):
        raise DataError(
            f"expected a trigger that fits the image, got {size}x{size} pixels for images of {height}x{width} "
            f"in {attack}(size=...); lower the size"
        )
    free = (height - size + 1, width - size + 1)
    row, column = (int(corner) for corner in np.random.default_rng(seed).integers(free))
    window = (..., slice(row, row + size), slice(column, column + size), slice(None))
    ahead, shape = tuple(range(images.ndim - 3)), (size, size, depth)
    new, shown = (np.expand_dims(np.broadcast_to(a, shape), ahead) for a in (picture, mask.astype(bool)))
    return images.at[window].set(jnp.where(shown, jnp.asarray(new, images.dtype), images[window]))
