"""Independent networks, which a fingerprint must not accuse: other seeds, other architectures, another split."""

from __future__ import annotations

import jax
import numpy as np

from jaxguard.data import splits
from jaxguard.theft import protocol
from jaxguard.theft.protocol import Blueprint, Network, TheftError, TheftReport
from jaxguard.theft.recipe import Recipe, Schedule
from jaxguard.training import Augment, CrossEntropyGradient, Progress
from jaxguard.types import Batch


def halves(data: Batch, key: jax.Array, *, share: float = 0.5) -> tuple[Batch, Batch]:
    """Splits a training set between the owner and a thief, or whoever trains independently, class by class.

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
    data = protocol.require_data(data, "halves")
    if not 0 <= share <= 1:
        raise TheftError(f"expected share in [0, 1], came {share} in halves(); half is usual")
    images, labels = np.asarray(data.images), np.asarray(data.labels)
    counts = np.round(share * np.bincount(labels)).astype(int)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    first = splits.draw(labels, counts, rng)
    return Batch(images[first], labels[first]), Batch(images[~first], labels[~first])


def independent(
    model: Blueprint,
    data: Batch | None,
    key: jax.Array,
    *,
    epochs: int = 200,
    batch_size: int = 512,
    learning_rate: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Schedule = "cosine",
    augment: Augment | None = None,
    progress: Progress | None = None,
) -> tuple[Network, TheftReport]:
    """Trains a network from scratch on true labels: an owner, or one that has nothing to do with the owner's.

    The recipe is that of `label_extraction`, so that copies and independents differ in whose labels they learn alone.

    Args:
        model: its architecture.
        data: images and labels.
        key: draws weights, batches and augmentation; another key is another seed.
        epochs: passes over the images.
        batch_size: images per step.
        learning_rate: of SGD, in the first epoch.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD.
        schedule: how the rate falls.
        augment: `(key, images) -> images`.
        progress: told how far the training is.

    Returns:
        The network and a report with the curve `loss`, `[steps]`.

    Raises:
        TheftError: a setting is out of range, or the loss diverged.
        DataError: no images, or labels the model has no class for.
    """
    data = protocol.require_data(data, "independent")
    recipe = Recipe(
        "independent", epochs, batch_size, learning_rate, momentum, weight_decay, schedule, augment
    )  # fmt: skip
    key_init, key_learn = jax.random.split(key)
    start = model.init(key_init)
    protocol.require_labels(data, protocol.num_classes(model.apply_fn, start, data.images), "independent")
    trained, losses = recipe.learn(CrossEntropyGradient(model.train_fn), start, data, key_learn, progress=progress)
    options = {"model": getattr(model, "spec", repr(model)), **recipe.options()}
    return Network.of(model, trained), TheftReport("independent", options, curves={"loss": losses})
