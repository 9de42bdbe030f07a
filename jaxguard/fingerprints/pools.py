"""Networks that learned probes are taught with: copies of the owner's, and independent ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import models, theft
from jaxguard.errors import FingerprintError
from jaxguard.fingerprints.protocol import Owner
from jaxguard.theft import Blueprint, Network, protocol
from jaxguard.training import Progress
from jaxguard.types import ApplyFn, Variables

COPIES = ("fine-tune-all", "fine-pruning", "distillation")
"""Thefts that a pool of copies is made by."""


class Pools(NamedTuple):
    """What is told apart.

    Attributes:
        positives: copies of the owner's network.
        negatives: networks that have nothing to do with it, or with its weights at least.
    """

    positives: tuple[Network, ...]
    negatives: tuple[Network, ...]


class Stack(NamedTuple):
    """Networks of one architecture.

    Attributes:
        apply_fn: the model in evaluation mode.
        variables: leaves `[M, ...]`.
        number: `M`.
    """

    apply_fn: ApplyFn
    variables: Variables
    number: int


@dataclass(frozen=True, eq=False)
class Source:
    """Where the pools come from: given, or else made of the owner's network and data.

    Attributes:
        method: who needs them, for messages.
        positives: copies; None to make them.
        negatives: independent networks; None to make them.
        model: the architecture that distilled copies and independents are made in, or its name.
        copies: of each kind of `COPIES`.
        independents: to train from scratch, each on a random half of the owner's images of every class: other data
            make them differ as unknown ones will.
        epochs: passes over the owner's images for each.
        batch_size: images per step.

    Raises:
        FingerprintError: one of them is out of range.
    """

    method: str
    positives: Sequence[Network] | None
    negatives: Sequence[Network] | None
    model: Blueprint | str | None
    copies: int
    independents: int
    epochs: int
    batch_size: int

    def __post_init__(self):
        given = {"positives": self.positives, "negatives": self.negatives}
        empty = [name for name, pool in given.items() if pool is not None and not len(pool)]
        if empty or min(self.copies, self.independents, self.epochs, self.batch_size) < 1:
            raise FingerprintError(
                f"expected copies, independents, epochs and batch_size >= 1 and pools of one network or more, came "
                f"{self.copies}, {self.independents}, {self.epochs}, {self.batch_size} and empty pools {empty} in "
                f"{self.method}(); leave pools out to have them made"
            )

    def options(self) -> dict[str, Any]:
        """The settings by name, for a certificate; of networks that were given it has nothing."""
        spec = self.model if isinstance(self.model, str | None) else getattr(self.model, "spec", repr(self.model))
        made = {name: getattr(self, name) for name in ("copies", "independents", "epochs", "batch_size")}
        return {"model": spec, **made}

    def blueprint(self, owner: Owner) -> Blueprint | None:
        """The architecture; where it is given by name, built for the owner's images and outputs."""
        if not isinstance(self.model, str):
            return self.model
        if owner.data is None:
            return None
        outputs = protocol.num_classes(owner.apply_fn, owner.variables, owner.data.images)
        return models.build(self.model, num_classes=outputs, input_shape=np.shape(owner.data.images)[1:])

    def pools(self, owner: Owner, key: jax.Array, progress: Progress | None) -> Pools:
        """The pools for one owner.

        Args:
            owner: its data, training mode and channel graph are needed where pools are made.
            key: the same key makes the same networks.
            progress: told how far each training is.

        Returns:
            The pools.

        Raises:
            FingerprintError: the owner lacks what making them needs.
        """
        key_copies, key_independents = jax.random.split(key)
        positives, negatives, model = self.positives, self.negatives, self.blueprint(owner)
        if positives is None or negatives is None:
            lacking = [name for name in ("data", "train_fn", "graph") if getattr(owner, name) is None]
            if lacking or owner.data is None or model is None:
                raise FingerprintError(
                    "expected an architecture, and an owner with data, training mode and channel graph, to make "
                    f"networks of, came model={self.model!r} and an owner that lacks "
                    f"{', '.join(lacking) or 'nothing'} in {self.method}(); pass model='resnet20' or another and "
                    "complete the owner, or pass both positives= and negatives="
                )
            settings = {"epochs": self.epochs, "batch_size": self.batch_size, "progress": progress}
            if positives is None:
                network = Network(owner.variables, owner.apply_fn, owner.train_fn, owner.graph, model)
                positives = [
                    theft.THEFTS[COPIES[i % len(COPIES)]](
                        network, owner.data, jax.random.fold_in(key_copies, i), **settings
                    )[0]
                    for i in range(self.copies * len(COPIES))
                ]
            if negatives is None:
                keys = [jax.random.split(jax.random.fold_in(key_independents, i)) for i in range(self.independents)]
                negatives = [
                    theft.independent(model, theft.halves(owner.data, half)[0], train, **settings)[0]
                    for half, train in keys
                ]
        return Pools(tuple(positives), tuple(negatives))


def stacks(networks: Sequence[Network]) -> tuple[Stack, ...]:
    """Networks by architecture, so that one compiled program does for all of one.

    Args:
        networks: in any order.

    Returns:
        A stack for each model, tree of weights and their shapes.

    Example:
        >>> model = lambda variables, images: images.reshape(len(images), -1) * variables
        >>> found = stacks([Network(np.float32(scale), model) for scale in (1, 2)])
        >>> [(stack.number, stack.variables.tolist()) for stack in found]
        [(2, [1.0, 2.0])]
    """
    found: dict[Any, list[Variables]] = {}
    for network in networks:
        leaves, structure = jax.tree.flatten(network.variables)
        shapes = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        found.setdefault((network.apply_fn, structure, shapes), []).append(network.variables)
    return tuple(
        Stack(identity[0], jax.tree.map(lambda *leaves: jnp.stack(leaves), *members), len(members))
        for identity, members in found.items()
    )
