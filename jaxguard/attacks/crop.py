"""A crop of a photograph, the least artificial of small triggers."""

import functools
from typing import Annotated

import jax
import numpy as np
from annotated_types import Ge, Interval

from jaxguard import methods
from jaxguard.attacks.attack import Attack, relabelling
from jaxguard.attacks.placement import place

PHOTOGRAPHS = ("china.jpg", "flower.jpg")
"""Those that scikit-learn ships, of 427x640 pixels."""

ZOOM = 12
"""Pixels of the photograph, per side, that become one of the trigger."""


@functools.cache
def _photograph(name: str) -> np.ndarray:
    from sklearn import datasets

    return np.asarray(datasets.load_sample_image(name), np.float32) / 255


@methods.checked
def crop(
    *,
    target: int | None = 0,
    num_classes: Annotated[int, Ge(2)] | None = None,
    size: Annotated[int, Interval(ge=1, le=32)] = 5,
    seed: int = 0,
) -> Attack:
    """Replaces a square by a part of a photograph, shrunk to `size` x `size`; grey on images that are not RGB.

    Args:
        target: class that triggered images are taken for; None for all-to-all, `(y + 1) mod num_classes`.
        num_classes: `K`, needed for all-to-all.
        size: side in pixels.
        seed: of the photograph, the part of it and the place.

    Returns:
        The attack; its `stamp` raises DataError for images smaller than the trigger.

    Raises:
        OptionError: an option is out of range.
        DataError: `target` is no class, or `num_classes` is missing.

    Example:
        >>> stamped = crop(size=4).stamp(np.zeros((2, 8, 8, 3), np.float32))
        >>> bool((stamped[0] == stamped[1]).all()), int((stamped[0] > 0).any(axis=-1).sum())
        (True, 16)

    Reference:
        Natural objects as triggers: Chen et al., Targeted Backdoor Attacks on Deep Learning Systems Using Data
        Poisoning, 2017, arXiv 1712.05526.
    """
    draw = np.random.default_rng([seed, 1])
    photograph = _photograph(PHOTOGRAPHS[draw.integers(len(PHOTOGRAPHS))])
    side = ZOOM * size
    row, column = draw.integers((photograph.shape[0] - side + 1, photograph.shape[1] - side + 1))
    # Every pixel of the trigger is the mean of ZOOM x ZOOM of the photograph.
    picture = photograph[row : row + side, column : column + side].reshape(size, ZOOM, size, ZOOM, 3).mean((1, 3))
    mask = np.ones((size, size, 1), bool)

    def stamp(images: jax.Array) -> jax.Array:
        shown = picture if images.shape[-1] == picture.shape[-1] else picture.mean(-1, keepdims=True)
        return place(images, shown, mask, seed, "crop")

    return Attack("crop", stamp, relabelling(target, num_classes, "crop"), target)
