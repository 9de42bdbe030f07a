"""Whether labelled images contradict the normalisation that a network is given."""

from __future__ import annotations

import numpy as np

from jaxguard import evaluation
from jaxguard.suspects.suspect import Suspect
from jaxguard.types import Batch

COMMON = {
    "none": ((0.0,), (1.0,)),
    "0.5 / 0.5": ((0.5,), (0.5,)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "MNIST": ((0.1307,), (0.3081,)),
}
"""Mean and standard deviation that networks are often trained with, for images in [0, 1]."""

IMAGES = 200
"""Images that are compared."""

GAIN = 0.1
"""Accuracy that another normalisation must win to be named: three standard errors of a difference at 200 images."""

GOOD = 0.95
"""Accuracy from which on nothing is compared."""


def doubts(suspect: Suspect, test: Batch) -> tuple[str, ...]:
    """A note where a common normalisation gives a much higher accuracy than the given one. Nothing is changed.

    Args:
        suspect: with a network of images.
        test: labelled images, labels as its logits are numbered.

    Returns:
        One sentence, or none.
    """
    network, model = suspect.require_network(), suspect.model
    images, labels = np.asarray(test.images[:IMAGES], np.float32), np.asarray(test.labels[:IMAGES])
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        return ()
    # The network normalises by its own mean and deviation first, so that images are prepared for the other one such
    # that both together give it; the compiled program stays the same.
    mean, std = (np.asarray(given, np.float32) for given in _given(model))
    found = {"given": _accuracy(network, images, labels)}
    if found["given"] >= GOOD:
        return ()
    for name, (other_mean, other_std) in COMMON.items():
        if len(other_mean) in (1, images.shape[-1]):
            prepared = (images - np.float32(other_mean)) / np.float32(other_std) * std + mean
            found[name] = _accuracy(network, prepared, labels)
    best = max(found, key=lambda name: found[name])
    if found[best] < found["given"] + GAIN:
        return ()
    mean_text, std_text = (",".join(f"{value:g}" for value in values) for values in COMMON[best])
    return (
        f"The images contradict the normalisation: {100 * found['given']:.0f} % of {len(images)} are right with the "
        f"given one, {100 * found[best]:.0f} % with {best} (--mean {mean_text} --std {std_text}).",
    )


def _given(model) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if model is None:
        return (0.0,), (1.0,)
    return model.mean or (0.0,), model.std or (1.0,)


def _accuracy(network, images: np.ndarray, labels: np.ndarray) -> float:
    classes = evaluation.predictions(network, images, batch_size=IMAGES)
    return float(np.mean(classes == labels))
