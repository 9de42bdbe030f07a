"""Random views of training images, drawn inside jit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import lax

from jaxguard.methods import Named

Augment = Callable[[jax.Array, jax.Array], jax.Array]
"""`(key, images [B, H, W, C]) -> images [B, H, W, C]`, traceable."""


@dataclass(frozen=True)
class CropFlip:
    """Random crop of the zero-padded image, then a horizontal flip with probability 1/2: the CIFAR-10 recipe.

    A value, not a closure: two equal ones share a compiled training step.

    Attributes:
        padding: pixels of zeros on each side before the crop, >= 0; 0 leaves positions alone.
        flip: whether to flip; wrong for digits, letters and traffic signs.

    Example:
        >>> images = jnp.ones((8, 32, 32, 3))
        >>> CropFlip(padding=4)(jax.random.key(0), images).shape
        (8, 32, 32, 3)
    """

    padding: int = 4
    flip: bool = True

    def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Augments every image of `[B, H, W, C]` independently."""
        key_crop, key_flip = jax.random.split(key)
        if self.padding:
            p = self.padding
            padded = jnp.pad(images, ((0, 0), (p, p), (p, p), (0, 0)))
            # A crop of the padded image at any corner shifts the image by up to `padding` either way.
            corners = jax.random.randint(key_crop, (len(images), 2), 0, 2 * p + 1)
            images = jax.vmap(lambda image, corner: lax.dynamic_slice(image, (*corner, 0), images.shape[1:]))(
                padded, corners
            )
        if self.flip:
            mirrored = jax.random.bernoulli(key_flip, shape=(len(images), 1, 1, 1))
            images = jnp.where(mirrored, images[:, :, ::-1], images)
        return images


AUGMENTATIONS: dict[str, Augment | None] = {
    "none": None,
    "crop": CropFlip(padding=2, flip=False),
    "crop-flip": CropFlip(),
}
"""Name on the command line -> augmentation: `crop` for digits and signs, `crop-flip` for photographs."""

Augmentation = Annotated[Augment | None, Named(AUGMENTATIONS)]
"""An augmentation as an option of a method: the function, its name, or none."""
