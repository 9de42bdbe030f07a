"""Independent networks, which a fingerprint must not accuse: other seeds, other architectures, another split."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxguard.data import splits
from jaxguard.errors import TheftError
from jaxguard.theft import protocol
from jaxguard.theft.protocol import Blueprint, TheftReport
from jaxguard.theft.sgd import SGD
from jaxguard.training import CrossEntropyGradient, Progress
from jaxguard.types import Batch, Network

FROM_SCRATCH = SGD(epochs=200, learning_rate=0.05, schedule="cosine")
"""How SAC's code trains for CIFAR-10; students are trained so as well, and differ in whose labels they learn alone."""


def halves(data: Batch, key: jax.Array, *, share: float = 0.5) -> tuple[Batch, Batch]:
    """Splits a training set between the owner and a thief, or an independent party, class by class.

    Args:
        data: images and labels.
        key: draws who gets what.
        share: of each class that is the owner's, in [0, 1], rounded.

    Returns:
        The owner's part and the other, disjoint, both in the order of `data`.

    Raises:
        TheftError: `share` is out of range.
        DataError: no images.

    Example:
        >>> data = Batch(np.arange(8.0).reshape(8, 1, 1, 1), np.arange(8) % 2)
        >>> owner, thief = halves(data, jax.random.key(0))
        >>> sorted(owner.labels.tolist()), sorted(thief.labels.tolist())
        ([0, 0, 1, 1], [0, 0, 1, 1])
    """
    protocol.require_data(data)
    if not 0 <= share <= 1:
        raise TheftError(f"expected share in [0, 1], got {share}; half is usual")
    images, labels = np.asarray(data.images), np.asarray(data.labels)
    counts = np.round(share * np.bincount(labels)).astype(int)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    first = splits.draw(labels, counts, rng)
    return Batch(images[first], labels[first]), Batch(images[~first], labels[~first])


def independent(
    model: Blueprint, data: Batch | None, key: jax.Array, *, progress: Progress | None = None, **settings: Any
) -> tuple[Network, TheftReport]:
    """Trains a network from scratch on true labels: an owner, or one that has nothing to do with the owner's.

    Args:
        model: its architecture.
        data: images and labels.
        key: draws weights, batches and augmentation; another key is another seed.
        progress: called as the work proceeds.
        settings: fields of `SGD` that differ from `FROM_SCRATCH`, such as `epochs=20`.

    Returns:
        The network and a report with the curve `loss`, `[steps]`.

    Raises:
        TheftError: a setting is out of range, or the loss diverged.
        DataError: no images, or labels the model has no class for.
    """
    data, sgd = protocol.require_data(data), replace(FROM_SCRATCH, **settings)
    key_init, key_learn = jax.random.split(key)
    start = model.network(model.init(key_init))
    protocol.require_labels(data, start.num_classes)
    gradient_fn = CrossEntropyGradient(protocol.require_training(start))
    trained, losses = sgd.learn(gradient_fn, start.variables, data, key_learn, progress=progress)
    options = protocol.described({"model": model, **vars(sgd)})
    return start.with_variables(trained), TheftReport("independent", options, curves={"loss": losses})
