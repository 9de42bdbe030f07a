"""BadNets: a small square of one brightness in a corner."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from annotated_types import Ge

from jaxguard import methods
from jaxguard.attacks.attack import Attack, relabelling
from jaxguard.errors import DataError

Corner = Literal["top_left", "top_right", "bottom_left", "bottom_right"]


@methods.checked
def badnets(
    *,
    target: int | None = 0,
    num_classes: Annotated[int, Ge(2)] | None = None,
    size: methods.Count = 3,
    value: methods.Share = 1.0,
    corner: Corner = "bottom_right",
) -> Attack:
    """Replaces a `size` x `size` square in a corner by `value`; BackdoorBench's is the white 3x3 of the default.

    Args:
        target: class that triggered images are taken for; None for all-to-all, `(y + 1) mod num_classes`.
        num_classes: `K`, needed for all-to-all.
        size: side of the square in pixels.
        value: brightness.
        corner: `top_left`, `top_right`, `bottom_left` or `bottom_right`.

    Returns:
        The attack; its `stamp` raises DataError for images smaller than the square.

    Raises:
        OptionError: an option is out of range.
        DataError: `target` is no class, or `num_classes` is missing.

    Example:
        >>> badnets(size=1).stamp(jnp.zeros((1, 2, 2, 1)))[0, :, :, 0].tolist()
        [[0.0, 0.0], [0.0, 1.0]]

    Reference:
        Gu, Dolan-Gavitt, Garg: BadNets, 2017, arXiv 1708.06733.
    """
    rows = slice(None, size) if corner.startswith("top") else slice(-size, None)
    columns = slice(None, size) if corner.endswith("left") else slice(-size, None)

    def stamp(images: jax.Array) -> jax.Array:
        images = jnp.asarray(images)
        height, width = images.shape[-3:-1]
        if size > min(height, width):
            raise DataError(
                f"expected a trigger that fits the image, got a {size}x{size} square for images of {height}x{width} "
                "in badnets(size=...); lower the size"
            )
        return images.at[..., rows, columns, :].set(value)

    return Attack("badnets", stamp, relabelling(target, num_classes, "badnets"), target)
