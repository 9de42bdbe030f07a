"""What every fingerprint is: probes, a signature of what a model answers to them, a distance between two signatures.

    probes     = fingerprint.make(owner, key)                    arrays; all that a certificate has to keep
    signature  = fingerprint.signature(probes, outputs)          of any model's outputs on probes.images
    distances  = fingerprint.distance(probes, owners, suspects)  the paper's number, in the paper's orientation
    scores     = fingerprint.scores(distances)                   higher is more stolen, always

A suspect is only ever asked for its outputs, so that a checkpoint and an API are judged alike. What a score means is
decided by models known to be independent: see `jaxguard.fingerprints.verification`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxguard.methods import Method
from jaxguard.training import Progress
from jaxguard.types import Batch, Network

Space = Literal["logits", "probs", "clr"]
"""Of a model's outputs: raw logits, their softmax, or centred logits, which are had from probabilities too."""

Answers = Literal["scores", "labels"]
"""What a method must be told by a suspect: one number per class, or the class alone."""


class Probes(NamedTuple):
    """What is asked, and what a method must remember of how it was made.

    Attributes:
        images: `[N, H, W, C]` float32 in [0, 1], in the order in which answers are expected.
        arrays: whatever else `signature` and `distance` need, such as the labels that are expected.
        notes: what a reader must know, in whole sentences.
    """

    images: np.ndarray
    arrays: Mapping[str, np.ndarray] = {}
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Owner:
    """The network that may have been stolen, and its owner's data.

    Attributes:
        network: the network.
        data: labelled images of the owner; None for methods that need none.
    """

    network: Network
    data: Batch | None = None


MakeFn = Callable[[Owner, jax.Array, Progress | None], Probes]
SignatureFn = Callable[[Probes, jax.Array], jax.Array]
DistanceFn = Callable[[Probes, jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """A method with its settings; each method is a factory `(**options) -> Fingerprint`.

    Attributes:
        make_fn: see `make`.
        signature_fn: `(probes, outputs [S, N, K]) -> signatures [S, ...]`, of many models at once.
        distance_fn: `(probes, owner [...], suspects [S, ...]) -> distances [S]`, as the paper defines the number; K
            may differ between the two where `across_classes`.
        stolen: whether a stolen model's number is `low`, a distance, or `high`, a similarity or match rate.
        answers: what a suspect must give.
        across_classes: whether suspects may have another number of classes.
        sees: thefts it is made for, in words.
        blind: thefts it cannot see, in words; printed with every verdict.
        null_fn: `(probes, outputs [S, N, K]) -> p [S]`, a p-value that needs no other model; None for most methods.
        name: row of FINGERPRINTS, see `factory`.
        options: settings as a certificate records them, see `factory`.
    """

    make_fn: MakeFn
    signature_fn: SignatureFn
    distance_fn: DistanceFn
    stolen: Literal["low", "high"]
    sees: str
    blind: str
    answers: Answers = "scores"
    across_classes: bool = False
    null_fn: Callable[[Probes, jax.Array], np.ndarray] | None = None
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self, owner: Owner, key: jax.Array, *, progress: Progress | None = None) -> Probes:
        """Probes for one owner.

        Args:
            owner: the model that may have been stolen.
            key: the same key gives the same probes.
            progress: told how far long work is.

        Returns:
            The probes.

        Raises:
            FingerprintError: the owner lacks what the method needs, or too few probes were found.
        """
        return self.make_fn(owner, key, progress)

    def scores(self, distances: jax.Array | np.ndarray) -> np.ndarray:
        """The paper's numbers turned so that higher is more stolen.

        Args:
            distances: `[S]`, or of any shape.

        Returns:
            float64, of the same shape.
        """
        found = np.asarray(distances, np.float64)
        return -found if self.stolen == "low" else found


Factory = Callable[..., Fingerprint]


def factory(function: Factory) -> Factory:
    """Decorates a method: its options are checked by their annotations and recorded in the fingerprint.

    Recorded is what JSON can hold, so that the same fingerprint can be made of a certificate; an architecture by its
    specification. Arrays and networks, of which only the making of probes depends, are not.

    Args:
        function: with keyword-only options.

    Returns:
        The function; it raises OptionError for an option that is unknown, of the wrong type or out of range.
    """
    row = Method(function, "")

    @functools.wraps(function)
    def make(**given: Any) -> Fingerprint:
        used = row.options(given)
        plain = {name: getattr(value, "spec", value) for name, value in used.items()}
        options = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in plain.items()
            if isinstance(value, bool | int | float | str | None) or _is_list(value)
        }
        return replace(function(**used), name=row.name, options=options)

    return make


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, bool | int | float | str) for item in value)
