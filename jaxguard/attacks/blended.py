"""Blended: a faint picture over the whole image."""

from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Ge

from jaxguard import methods
from jaxguard.attacks.attack import Attack, relabelling


@methods.checked
def blended(
    *,
    target: int | None = 0,
    num_classes: Annotated[int, Ge(2)] | None = None,
    alpha: methods.Share = 0.2,
    seed: int = 0,
) -> Attack:
    """Blends uniform noise over the image, `(1 - alpha) x + alpha pattern`, in training and test alike.

    The pattern is the paper's second kind, random noise: it has the images' shape, is drawn from `seed` and the
    same for all images.

    Args:
        target: class that triggered images are taken for; None for all-to-all, `(y + 1) mod num_classes`.
        num_classes: `K`, needed for all-to-all.
        alpha: opacity.
        seed: of the pattern.

    Returns:
        The attack.

    Raises:
        OptionError: an option is out of range.
        DataError: `target` is no class, or `num_classes` is missing.

    Example:
        >>> stamped = blended(alpha=0.2).stamp(jnp.zeros((2, 8, 8, 3)))
        >>> bool((stamped[0] == stamped[1]).all()), bool(stamped.max() <= 0.2)
        (True, True)

    Reference:
        Chen, Liu, Li, Lu, Song: Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning, 2017,
        arXiv 1712.05526.
    """

    def stamp(images: jax.Array) -> jax.Array:
        images = jnp.asarray(images)
        shape = (1,) * (images.ndim - 3) + images.shape[-3:]
        pattern = jax.random.uniform(jax.random.key(seed), shape, images.dtype)
        return (1 - alpha) * images + alpha * pattern

    return Attack("blended", stamp, relabelling(target, num_classes, "blended"), target)
