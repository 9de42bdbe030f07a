"""Networks that learned probes are trained with: copies of the owner's network, and independent ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import models, theft
from jaxguard.errors import FingerprintError
from jaxguard.fingerprints.protocol import Owner
from jaxguard.fingerprints.queries import bucket
from jaxguard.methods import Count
from jaxguard.theft import Blueprint
from jaxguard.training import Progress
from jaxguard.types import Network

COPIES = ("fine-tune-all", "fine-pruning", "distillation")
"""Thefts that make a pool of copies."""


class Pools(NamedTuple):
    """The two classes of networks.

    Attributes:
        positives: copies of the owner's network.
        negatives: networks independent of it, or at least of its weights.
    """

    positives: tuple[Network, ...]
    negatives: tuple[Network, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """Pools as given, or made from the owner's network and data.

    Args:
        method: fingerprint that needs them, for messages.
        positives: copies of the owner's network; by default `copies` each by fine-tuning, fine-pruning and
            distillation, with the owner's data.
        negatives: independent networks, never those that verdicts are calibrated with; by default `independents`
            trained from scratch, each on a random half of the owner's data.
        model: architecture of distilled copies and independents, or its name, such as `resnet20`.
        copies: see `positives`.
        independents: see `negatives`.
        epochs: passes over the owner's images per trained network; 30 suit some thousand images.
        batch_size: images per step of that training.

    Raises:
        FingerprintError: a given pool is empty.
    """

    method: str = field(kw_only=False)
    positives: Sequence[Network] | None = None
    negatives: Sequence[Network] | None = None
    model: Blueprint | str | None = None
    copies: Count = 1
    independents: Count = 6
    epochs: Count = 30
    batch_size: Count = 128

    def __post_init__(self):
        given = {"positives": self.positives, "negatives": self.negatives}
        if empty := [name for name, pool in given.items() if pool is not None and not len(pool)]:
            raise FingerprintError(
                f"expected pools of one network or more, got none in {' and '.join(empty)} of {self.method}; leave "
                "them out to make them"
            )

    def blueprint(self, owner: Owner) -> Blueprint | None:
        """The architecture; a name is built for the owner's images and outputs."""
        if not isinstance(self.model, str):
            return self.model
        if owner.data is None:
            return None
        shape = np.shape(owner.data.images)[1:]
        return models.build(self.model, num_classes=owner.network.num_classes, input_shape=shape)

    def pools(self, owner: Owner, key: jax.Array, progress: Progress | None) -> Pools:
        """The pools for one owner; the same key makes the same networks.

        Raises:
            FingerprintError: a pool must be made, and the owner lacks data or training mode.
        """
        key_copies, key_independents = jax.random.split(key)
        positives, negatives, model = self.positives, self.negatives, self.blueprint(owner)
        if positives is None or negatives is None:
            lacking = [] if owner.data is not None else ["data"]
            lacking += [] if owner.network.train_fn is not None else ["train_fn"]
            if lacking or owner.data is None or model is None:
                raise FingerprintError(
                    "expected an architecture, and an owner with data and a training mode, to make networks, got "
                    f"model={self.model!r} and an owner that lacks {', '.join(lacking) or 'nothing'} in {self.method}; "
                    "pass model='resnet20' or another and complete the owner, or pass both positives= and negatives="
                )
            settings: dict[str, Any] = {"epochs": self.epochs, "batch_size": self.batch_size, "progress": progress}
            if positives is None:
                positives = []
                for i in range(self.copies * len(COPIES)):
                    name, key_copy = COPIES[i % len(COPIES)], jax.random.fold_in(key_copies, i)
                    student: dict[str, Any] = {"student": model} if name == "distillation" else {}
                    copy, _ = theft.THEFTS[name](owner.network, owner.data, key_copy, **settings, **student)
                    positives.append(copy)
            if negatives is None:
                drawn = [jax.random.split(jax.random.fold_in(key_independents, i)) for i in range(self.independents)]
                rows = [np.flatnonzero(theft.owners_share(owner.data, half)) for half, _ in drawn]
                keys = [train for _, train in drawn]
                negatives = [one for one, _ in theft.independents(model, owner.data, keys, rows=rows, **settings)]
        return Pools(tuple(positives), tuple(negatives))


def stacks(networks: Sequence[Network]) -> tuple[Network, ...]:
    """Networks grouped by architecture and shapes: one network per group, with stacked leaves `[M, ...]`.

    Example:
        >>> model = lambda variables, images: images.reshape(len(images), -1) * variables
        >>> found = stacks([Network(np.float32(scale), model, (2, 2, 1)) for scale in (1, 2)])
        >>> [stack.variables.tolist() for stack in found]
        [[1.0, 2.0]]
    """
    found: dict[Any, list[Network]] = defaultdict(list)
    for network in networks:
        found[bucket(network)].append(network)
    return tuple(jax.tree.map(lambda *leaves: jnp.stack(leaves), *members) for members in found.values())
