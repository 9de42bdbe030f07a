"""Images of the owner's that probes are made of."""

from __future__ import annotations

import jax
import numpy as np

from jaxguard.errors import FingerprintError
from jaxguard.fingerprints.protocol import Owner


def draw(owner: Owner, number: int, key: jax.Array, *, method: str) -> np.ndarray:
    """Draws images of the owner's without replacement.

    Args:
        owner: its data are needed.
        number: images wanted.
        key: the same key draws the same images.
        method: for the message.

    Returns:
        float32 `[number, H, W, C]` in [0, 1].

    Raises:
        FingerprintError: the owner has no images, too few, or none in [0, 1].

    Example:
        >>> from jaxguard.types import Batch
        >>> owner = Owner({}, lambda variables, images: images, data=Batch(np.eye(3).reshape(3, 1, 3, 1), np.arange(3)))
        >>> draw(owner, 2, jax.random.key(0), method="doctest").shape
        (2, 1, 3, 1)
    """
    shape = () if owner.data is None else np.shape(owner.data.images)
    if owner.data is None or len(shape) != 4 or shape[0] < number:
        came = "none" if owner.data is None else f"an array of shape {shape}"
        raise FingerprintError(
            f"expected at least {number} images [N, H, W, C] of the owner's, came {came} in {method}(); pass "
            "Owner(..., data=Batch(images, labels)), or ask for fewer"
        )
    chosen = np.asarray(jax.random.permutation(key, shape[0])[:number])
    images = np.asarray(owner.data.images)[chosen].astype(np.float32)
    if images.size and not (images.min() >= 0 and images.max() <= 1):
        raise FingerprintError(
            f"expected images in [0, 1], came {images.min():.3g} to {images.max():.3g} of the owner's in {method}(); "
            "divide bytes by 255, and leave mean and standard deviation to the model"
        )
    return images
