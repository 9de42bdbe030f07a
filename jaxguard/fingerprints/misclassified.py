"""The owner's mistakes: images that its model puts into the wrong class.

An independent model is likely to make others; a copy makes these. SAC-w asks for images that models trained on the
owner's answers get wrong as well.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from jaxguard import evaluation
from jaxguard.errors import FingerprintError
from jaxguard.fingerprints.protocol import Owner

LEAST = 10
"""Mistakes without which nothing is made: a share of fewer says little."""


class Mistakes(NamedTuple):
    """Images that the owner's model gets wrong.

    Attributes:
        images: `[N, H, W, C]`.
        answers: int32 `[N]`, the wrong class of each.
        found: how many there are among all images, of which `N` were drawn.
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
    """Draws among the owner's mistakes without replacement.

    Args:
        owner: its labelled data are needed, images that it was not trained on.
        number: images wanted; fewer are drawn where there are fewer.
        key: the same key draws the same images.
        method: for the message.
        least: images without which it fails, >= 1.
        surrogates: `[M, N]` classes that models trained on the owner's answers give all `N` images of the owner's data;
            only images that all of them get wrong count.

    Returns:
        The mistakes.

    Raises:
        FingerprintError: the owner has no labelled data, surrogates' classes do not fit them, or too few mistakes
            were found.

    Example:
        >>> from jaxguard.types import Batch
        >>> brightest = lambda variables, images: images.reshape(len(images), -1)
        >>> owner = Owner({}, brightest, data=Batch(np.eye(3).reshape(3, 3, 1, 1), np.array([0, 2, 2])))
        >>> misclassified(owner, 10, jax.random.key(0), method="doctest", least=1).answers.tolist()
        [1]
    """
    if owner.data is None or len(owner.data.images) == 0 or np.shape(owner.data.labels) != (len(owner.data.images),):
        came = (
            "none" if owner.data is None else f"{len(owner.data.images)} images, labels {np.shape(owner.data.labels)}"
        )
        raise FingerprintError(
            f"expected labelled images of the owner's, came {came} in {method}(); pass Owner(..., data=Batch(images, "
            "labels)) of images it was not trained on"
        )
    images, labels = np.asarray(owner.data.images), np.asarray(owner.data.labels)
    classes = evaluation.predictions(owner.apply_fn, owner.variables, images)
    wrong = (classes != labels) & (classes >= 0)
    if surrogates is not None:
        surrogates = np.asarray(surrogates)
        if surrogates.ndim != 2 or surrogates.shape[1] != len(images) or len(surrogates) == 0:
            raise FingerprintError(
                f"expected surrogates' classes [M, {len(images)}], one for each of the owner's images, came shape "
                f"{surrogates.shape} in {method}(surrogates=...); predict all of Owner.data with each surrogate"
            )
        wrong &= (surrogates != labels).all(axis=0)
    places = np.flatnonzero(wrong)
    if len(places) < least:
        who = "the owner gets" if surrogates is None else f"the owner and all of {len(surrogates)} surrogates get"
        raise FingerprintError(
            f"expected at least {least} images that {who} wrong, found {len(places)} among {len(images)} in "
            f"{method}(); give the owner more data it was not trained on, or lower least="
        )
    chosen = places[np.asarray(jax.random.permutation(key, len(places))[:number])]
    return Mistakes(images[chosen].astype(np.float32), classes[chosen], len(places))


def notes(mistakes: Mistakes, number: int) -> tuple[str, ...]:
    """What a certificate says of how many mistakes there were.

    Args:
        mistakes: as drawn.
        number: as many were wanted.

    Returns:
        A sentence where there were fewer, else nothing.
    """
    if mistakes.found >= number:
        return ()
    return (f"The owner gets {mistakes.found} images wrong, fewer than the {number} wanted; all of them are probes.",)
