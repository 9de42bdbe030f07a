"""Independent networks, which a fingerprint must not accuse: other seeds, other architectures, another split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxguard.data import splits
from jaxguard.methods import NonNegative, Share, Steps, checked, options_of
from jaxguard.theft import protocol
from jaxguard.theft.protocol import Blueprint, TheftReport
from jaxguard.theft.sgd import SGD, Schedule
from jaxguard.training import Progress
from jaxguard.types import Batch, Network


@checked
def halves(data: Batch, key: jax.Array, *, share: Share = 0.5) -> tuple[Batch, Batch]:
    """Splits a training set between the owner and a thief, or an independent party, class by class.

    Args:
        data: images and labels.
        key: draws who gets what.
        share: of each class that is the owner's, rounded.

    Returns:
        The owner's part and the other, disjoint, both in the order of `data`.

    Raises:
        DataError: no images.

    Example:
        >>> data = Batch(np.arange(8.0).reshape(8, 1, 1, 1), np.arange(8) % 2)
        >>> owner, thief = halves(data, jax.random.key(0))
        >>> sorted(owner.labels.tolist()), sorted(thief.labels.tolist())
        ([0, 0, 1, 1], [0, 0, 1, 1])
    """
    images, labels = np.asarray(data.images), np.asarray(data.labels)
    first = owners_share(data, key, share=share)
    return Batch(images[first], labels[first]), Batch(images[~first], labels[~first])


def owners_share(data: Batch, key: jax.Array, *, share: float = 0.5) -> np.ndarray:
    """Which images are the owner's, bool `[N]`; see `halves`."""
    protocol.require_data(data)
    labels = np.asarray(data.labels)
    counts = np.round(share * np.bincount(labels)).astype(int)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    return splits.draw(labels, counts, rng)


@checked
@options_of(SGD)
def independent(
    model: Blueprint,
    data: Batch | None,
    key: jax.Array,
    *,
    epochs: Steps = 200,
    learning_rate: NonNegative = 0.05,
    schedule: Schedule = "cosine",
    progress: Progress | None = None,
    **sgd: Any,
) -> tuple[Network, TheftReport]:
    """Trains a network from scratch on true labels: an owner, or one that has nothing to do with the owner's.

    Args:
        model: its architecture.
        data: images and labels.
        key: draws weights, batches and augmentation; another key is another seed.
        epochs: see `SGD`, as for the next two; the defaults are how SAC's code trains for CIFAR-10.
        learning_rate: of the first step.
        schedule: how it falls.
        progress: called as the work proceeds.
        sgd: other fields of `SGD`.

    Returns:
        The network and a report with the curve `loss`, `[steps]`.

    Raises:
        TheftError: the loss diverged.
        DataError: no images, or labels the model has no class for.
    """
    sgd = {"epochs": epochs, "learning_rate": learning_rate, "schedule": schedule, **sgd}
    return independents(model, data, [key], progress=progress, **sgd)[0]


@checked
@options_of(SGD)
def independents(
    model: Blueprint,
    data: Batch | None,
    keys: Sequence[jax.Array],
    *,
    rows: Sequence[np.ndarray] | None = None,
    epochs: Steps = 200,
    learning_rate: NonNegative = 0.05,
    schedule: Schedule = "cosine",
    progress: Progress | None = None,
    **sgd: Any,
) -> list[tuple[Network, TheftReport]]:
    """Trains several such networks, side by side on accelerators; each is what `independent` makes of its key.

    Args:
        model: the architecture of all.
        data: images and labels.
        keys: of each network, at least one.
        rows: int `[N]`, which images each is trained on, equally many; all by default.
        epochs: see `independent`, as for the next two.
        learning_rate: of the first step.
        schedule: how it falls.
        progress: called with the steps of all networks together.
        sgd: other fields of `SGD`.

    Returns:
        Network and report of each.

    Raises:
        TheftError: a loss diverged.
        DataError: no images, or labels the model has no class for.
    """
    data, how = protocol.require_data(data), SGD(epochs, learning_rate, schedule=schedule, **sgd)
    drawn = [jax.random.split(key) for key in keys]
    starts = [model.network(model.init(key_init)) for key_init, _ in drawn]
    protocol.require_labels(data, starts[0].num_classes)
    trained = how.learn_all(
        protocol.require_training(starts[0]),
        [start.variables for start in starts],
        data,
        [np.arange(len(data.images))] * len(keys) if rows is None else rows,
        [key_learn for _, key_learn in drawn],
        progress=progress,
    )
    return [
        (start.with_variables(variables), TheftReport({"loss": losses}))
        for start, (variables, losses) in zip(starts, trained, strict=True)
    ]
