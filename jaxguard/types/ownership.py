"""What is said of models that may be copies of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxguard.types.findings import Verdict

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Verification:
    """What a certificate says of one suspect.

    Attributes:
        suspect: path of its checkpoint, or the address of an endpoint.
        sha256: content hash of its checkpoint; empty for an endpoint.
        distance: the method's own number, in its paper's orientation.
        score: the same, higher is more stolen.
        p_value: how often an independent model would score as high, by the references.
        null_p_value: the same by the method's own null distribution; None for methods without.
        verdict: `SUSPECTED` of being a copy, `NO_EVIDENCE`, or `INCONCLUSIVE` where there are too few references.
    """

    suspect: str
    sha256: str
    distance: float
    score: float
    p_value: float
    null_p_value: float | None
    verdict: Verdict


@dataclass(frozen=True)
class OwnershipReport:
    """Suspects judged by one certificate.

    Attributes:
        owner: name of the owner's checkpoint.
        owner_sha256: its content hash.
        certificate: digest of the certificate, hexadecimal.
        method: row of the FINGERPRINTS table.
        options: of the method.
        num_probes: images that each suspect answered.
        alpha: accepted rate of accusing an independent model.
        references: `[R]` scores of models known to be independent.
        reference_names: `[R]` their names.
        verifications: one per suspect.
        sees: thefts the method is made for, in words.
        blind: thefts it cannot see, in words.
        notes: caveats for the reader, in full sentences.
        seconds: wall-clock time, queries included.
    """

    owner: str
    owner_sha256: str
    certificate: str
    method: str
    options: Mapping[str, Any]
    num_probes: int
    alpha: float
    references: np.ndarray
    reference_names: tuple[str, ...]
    verifications: tuple[Verification, ...]
    sees: str = ""
    blind: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class FingerprintMatrix:
    """Every owner against every suspect.

    Attributes:
        method: row of the FINGERPRINTS table.
        options: of the method.
        owners: names, A of them.
        suspects: names, B of them.
        distances: `[A, B]` the method's own numbers.
        scores: `[A, B]` the same, higher is more stolen.
        seconds: wall-clock time.
    """

    method: str
    options: Mapping[str, Any]
    owners: tuple[str, ...]
    suspects: tuple[str, ...]
    distances: np.ndarray
    scores: np.ndarray
    seconds: float = 0.0
