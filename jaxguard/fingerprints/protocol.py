"""The fingerprint interface: probes, a signature of a model's outputs on them, a distance between two signatures.

    probes     = fingerprint.make(owner, key)                        arrays; what a certificate keeps
    signature  = fingerprint.signature_fn(probes, outputs)           of any model's outputs on probes.images
    distances  = fingerprint.distance_fn(probes, owners, suspects)   the paper's number, in the paper's orientation
    scores     = fingerprint.scores(distances)                       higher always means more likely stolen

Only outputs of a suspect are used, so checkpoints and APIs are judged in the same way. Models known to be independent
decide what a score means: see `jaxguard.fingerprints.verification`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxguard.errors import FingerprintError
from jaxguard.methods import Method
from jaxguard.training import Progress
from jaxguard.types import Batch, Network

Space = Literal["logits", "probs", "clr"]
"""Of a model's outputs: raw logits, their softmax, or centred logits, which probabilities determine too."""

Answers = Literal["scores", "labels"]
"""What a method needs from a suspect: one number per class, or only the class."""


class Probes(NamedTuple):
    """Inputs to query, and whatever else the method needs later.

    Attributes:
        images: `[N, H, W, C]` float32 in [0, 1], in query order.
        arrays: other inputs of `signature_fn` and `distance_fn`, such as expected labels.
        notes: caveats for the reader, in full sentences.
    """

    images: np.ndarray
    arrays: Mapping[str, np.ndarray] = {}
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Owner:
    """The network that may have been stolen, and its owner's data.

    Attributes:
        network: the network.
        data: the owner's labelled images; None for methods that need none.
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
        signature_fn: `(probes, outputs [S, N, K]) -> signatures [S, ...]`, for many models at once.
        distance_fn: `(probes, owner [...], suspects [S, ...]) -> distances [S]`, the number that the paper defines; K
            may differ between owner and suspects if `across_classes`.
        stolen: whether the number of a stolen model is `low` (a distance) or `high` (a similarity or match rate).
        answers: what the method needs from a suspect.
        across_classes: whether suspects may have another number of classes.
        of_classes: whether it reads outputs as scores of classes; other methods compare outputs of any kind.
        sees: thefts it detects, in words.
        blind: thefts it cannot detect, in words; printed with every verdict.
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
    of_classes: bool = True
    null_fn: Callable[[Probes, jax.Array], np.ndarray] | None = None
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self, owner: Owner, key: jax.Array, *, progress: Progress | None = None) -> Probes:
        """Probes for one owner; the same key gives the same probes.

        Raises:
            FingerprintError: the owner lacks what the method needs, or too few probes were found.
        """
        try:
            return self.make_fn(owner, key, progress)
        except (NotImplementedError, ValueError) as error:
            remarks = owner.network.graph.remarks
            if not remarks:
                raise
            raise FingerprintError(
                f"expected a model that {self.name} can differentiate, got {error} {' '.join(remarks)} "
                "Take a method that needs no gradients, such as sac"
            ) from error

    def scores(self, distances: jax.Array | np.ndarray) -> np.ndarray:
        """The paper's numbers in float64, oriented so that higher means more likely stolen."""
        found = np.asarray(distances, np.float64)
        return -found if self.stolen == "low" else found


Factory = Callable[..., Fingerprint]


def factory(function: Factory) -> Factory:
    """Decorates a method: checks its keyword-only options by their annotations and records them in the fingerprint.

    Options that JSON can hold are recorded, an architecture by its specification, so that a certificate determines the
    fingerprint. Arrays and networks are not recorded: only making probes depends on them.

    Returns:
        The method; it raises OptionError for an option that is unknown, of the wrong type or out of range.
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
