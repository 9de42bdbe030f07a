"""Pixels of random colours: a square of noise, or a few specks of it."""

from typing import Annotated

import jax
import numpy as np
from annotated_types import Ge

from jaxguard import methods
from jaxguard.attacks.attack import Attack, relabelling
from jaxguard.attacks.placement import place
from jaxguard.errors import DataError


@methods.checked
def random_pixels(
    *,
    target: int | None = 0,
    num_classes: Annotated[int, Ge(2)] | None = None,
    size: methods.Count = 4,
    count: methods.Count | None = None,
    seed: int = 0,
) -> Attack:
    """Replaces pixels of a `size` x `size` square by colours drawn uniformly, the same for all images.

    Args:
        target: class that triggered images are taken for; None for all-to-all, `(y + 1) mod num_classes`.
        num_classes: `K`, needed for all-to-all.
        size: side of the square in pixels.
        count: pixels to replace, drawn from the square's; all of them by default.
        seed: of the square's place, the pixels and their colours.

    Returns:
        The attack; its `stamp` raises DataError for images smaller than the trigger.

    Raises:
        OptionError: an option is out of range.
        DataError: `target` is no class, or `num_classes` is missing, or the square has fewer pixels than `count`.

    Example:
        >>> stamped = random_pixels(size=3, count=4).stamp(np.zeros((1, 8, 8, 3), np.float32))
        >>> int((stamped > 0).any(axis=-1).sum())
        4

    Reference:
        The random patch of BackdoorBench's and CLP's BadNets (Zheng et al., ECCV 2022), at any place.
    """
    count = size**2 if count is None else count
    if count > size**2:
        raise DataError(
            f"expected count <= {size**2}, the pixels of the square, got {count} in random_pixels(); lower it"
        )
    draw = np.random.default_rng([seed, 1])
    mask = (draw.permutation(size**2) < count).reshape(size, size, 1)

    def stamp(images: jax.Array) -> jax.Array:
        colours = np.random.default_rng([seed, 2]).uniform(size=(size, size, images.shape[-1]))
        return place(images, colours.astype(np.float32), mask, seed, "random_pixels")

    return Attack("random-pixels", stamp, relabelling(target, num_classes, "random_pixels"), target)
