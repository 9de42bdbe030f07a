"""The owner's images that probes are made from: drawn at random, or those that its model misclassifies.

An independent model is likely to make other mistakes; a copy makes the same ones. SAC-w uses images that models trained
on the owner's outputs misclassify too.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from jaxguard import evaluation
from jaxguard.errors import FingerprintError
from jaxguard.fingerprints.protocol import Owner

LEAST = 10
"""Fewest mistakes to make probes from: a share of fewer says little."""


def draw(owner: Owner, number: int, key: jax.Array, *, method: str) -> np.ndarray:
    """Draws images of the owner without replacement.

    Args:
        owner: needs data.
        number: images to draw.
        key: the same key draws the same images.
        method: name for the message.

    Returns:
        float32 `[number, H, W, C]` in [0, 1].

    Raises:
        FingerprintError: the owner has too few images, or images outside [0, 1].

    Example:
        >>> from jaxguard.types import Batch, Network
        >>> network = Network({}, lambda variables, images: images, (1, 3, 1))
        >>> owner = Owner(network, Batch(np.eye(3).reshape(3, 1, 3, 1), np.arange(3)))
        >>> draw(owner, 2, jax.random.key(0), method="doctest").shape
        (2, 1, 3, 1)
    """
    shape = () if owner.data is None else np.shape(owner.data.images)
    if owner.data is None or len(shape) != 4 or shape[0] < number:
        got = "none" if owner.data is None else f"an array of shape {shape}"
        raise FingerprintError(
            f"expected at least {number} images [N, H, W, C] of the owner, got {got} in {method}; pass "
            "Owner(network, Batch(images, labels)), or ask for fewer"
        )
    chosen = np.asarray(jax.random.permutation(key, shape[0])[:number])
    images = np.asarray(owner.data.images)[chosen].astype(np.float32)
    if images.size and not (images.min() >= 0 and images.max() <= 1):
        raise FingerprintError(
            f"expected images in [0, 1], got {images.min():.3g} to {images.max():.3g} from the owner in {method}; "
            "divide bytes by 255, and leave mean and standard deviation to the model"
        )
    return images


class Mistakes(NamedTuple):
    """Images that the owner's model misclassifies.

    Attributes:
        images: `[N, H, W, C]`.
        answers: int32 `[N]`, the wrong class of each.
        found: number of such images, of which `N` were drawn.
    """

    images: np.ndarray
    answers: np.ndarray
    found: int


def misclassified(
    owner: Owner,
    number: int,
    key: jax.Array,
    *,
    method: str,
    least: int = LEAST,
    surrogates: np.ndarray | None = None,
) -> Mistakes:
    """Draws from the owner's mistakes without replacement.

    Args:
        owner: needs labelled images that it was not trained on.
        number: images to draw, or all if there are fewer.
        key: the same key draws the same images.
        method: name for the message.
        least: fewest mistakes to accept, >= 1.
        surrogates: `[M, N]` classes that models trained on the owner's outputs give all `N` images of the owner;
            only images that all of them misclassify count.

    Returns:
        The mistakes.

    Raises:
        FingerprintError: the owner has no labelled data, the surrogates' classes do not fit them, or there are too few
            mistakes.

    Example:
        >>> from jaxguard.types import Batch, Network
        >>> brightest = lambda variables, images: images.reshape(len(images), -1)
        >>> owner = Owner(Network({}, brightest, (3, 1, 1)), Batch(np.eye(3).reshape(3, 3, 1, 1), np.array([0, 2, 2])))
        >>> misclassified(owner, 10, jax.random.key(0), method="doctest", least=1).answers.tolist()
        [1]
    """
    if owner.data is None or len(owner.data.images) == 0 or np.shape(owner.data.labels) != (len(owner.data.images),):
        got = "none" if owner.data is None else f"{len(owner.data.images)} images, labels {np.shape(owner.data.labels)}"
        raise FingerprintError(
            f"expected labelled images of the owner, got {got} in {method}; pass Owner(network, Batch(images, "
            "labels)) with images it was not trained on"
        )
    images, labels = np.asarray(owner.data.images), np.asarray(owner.data.labels)
    classes = evaluation.predictions(owner.network, images)
    wrong = (classes != labels) & (classes >= 0)
    if surrogates is not None:
        surrogates = np.asarray(surrogates)
        if surrogates.ndim != 2 or surrogates.shape[1] != len(images) or len(surrogates) == 0:
            raise FingerprintError(
                f"expected surrogates' classes [M, {len(images)}], one for each of the owner's images, got shape "
                f"{surrogates.shape} in surrogates of {method}; predict all of Owner.data with each surrogate"
            )
        wrong &= (surrogates != labels).all(axis=0)
    places = np.flatnonzero(wrong)
    if len(places) < least:
        who = "the owner gets" if surrogates is None else f"the owner and all of {len(surrogates)} surrogates get"
        raise FingerprintError(
            f"expected at least {least} images that {who} wrong, got {len(places)} among {len(images)} in "
            f"{method}(); give the owner more data it was not trained on, or lower least="
        )
    chosen = places[np.asarray(jax.random.permutation(key, len(places))[:number])]
    return Mistakes(images[chosen].astype(np.float32), classes[chosen], len(places))


def notes(mistakes: Mistakes, number: int) -> tuple[str, ...]:
    """A note if there are fewer than `number` mistakes."""
    if mistakes.found >= number:
        return ()
    return (f"The owner misclassifies {mistakes.found} images, fewer than {number}; all of them are probes.",)
