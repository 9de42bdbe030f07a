"""A trigger that is known: what came with a published checkpoint, or what an inversion found."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.attacks.attack import Attack, relabelling
from jaxguard.errors import DataError


def patch(
    mask: jax.Array | np.ndarray,
    pattern: jax.Array | np.ndarray,
    *,
    target: int | None,
    num_classes: int | None = None,
    name: str = "patch",
) -> Attack:
    """Stamps `x (1 - mask) + pattern mask`.

    Args:
        mask: `[H, W]`, `[H, W, 1]` or `[H, W, C]`, opacity in [0, 1].
        pattern: `[H, W]`, `[H, W, 1]` or `[H, W, C]`, brightness in [0, 1].
        target: class that triggered images are taken for; None for all-to-all, `(y + 1) mod num_classes`.
        num_classes: `K`, needed for all-to-all.
        name: of the attack in reports.

    Returns:
        The attack; its `stamp` raises DataError for images of another size.

    Raises:
        DataError: mask and pattern do not fit each other or are out of range.

    Example:
        >>> attack = patch(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]]), target=7)
        >>> attack.stamp(jnp.zeros((1, 1, 2, 1)))[0, 0, :, 0].tolist()
        [0.5, 0.0]
    """
    mask, pattern = (np.asarray(array, np.float32) for array in (mask, pattern))
    mask, pattern = (array[..., None] if array.ndim == 2 else array for array in (mask, pattern))
    channels = {mask.shape[-1], pattern.shape[-1]} - {1} if mask.ndim == pattern.ndim == 3 else {0, 1}
    if len(channels) > 1 or mask.shape[:2] != pattern.shape[:2]:
        raise DataError(
            f"expected mask and pattern of one [H, W] or [H, W, C], got {mask.shape} and {pattern.shape} in {name}; "
            "crop or transpose them to the images' layout"
        )
    for label, array in (("mask", mask), ("pattern", pattern)):
        low, high = array.min(initial=0), array.max(initial=0)
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"expected {label} in [0, 1], got {low:g} to {high:g} in {name}; images are in [0, 1], divide by 255"
            )

    def stamp(images: jax.Array) -> jax.Array:
        images = jnp.asarray(images)
        height, width, depth = images.shape[-3:]
        if mask.shape[:2] != (height, width) or not channels <= {depth}:
            raise DataError(
                f"expected images of the trigger's size, got {(height, width, depth)} for a mask {mask.shape} and "
                f"a pattern {pattern.shape} in {name}; resize the trigger to the images"
            )
        ahead = tuple(range(images.ndim - 3))
        opacity, added = (jnp.expand_dims(array, ahead) for array in (mask, pattern * mask))
        return (images * (1 - opacity) + added).astype(images.dtype)

    return Attack(name, stamp, relabelling(target, num_classes, name), target)
