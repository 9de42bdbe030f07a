"""Certificates: a fingerprint's probes, the owner's signature, and the scores of independent models.

A certificate is a safetensors file. Its digest covers every array and every setting: once the digest is published or
time-stamped, any later change shows. A certificate alone does not prove authorship.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxguard import checkpoints
from jaxguard.errors import FingerprintError
from jaxguard.fingerprints.protocol import Probes
from jaxguard.programs import Numerics

NAME = "jaxguard fingerprint certificate"

KIND = f"{NAME}, 1"
"""The file's type and version, in its metadata."""


class Reference(NamedTuple):
    """A model known to be independent of the owner's.

    Attributes:
        name: of its checkpoint.
        sha256: content hash of its checkpoint; empty if there was none.
        score: higher means more likely stolen.
    """

    name: str
    sha256: str
    score: float


@dataclass(frozen=True, eq=False)
class Certificate:
    """Everything needed to judge a suspect.

    Attributes:
        method: row of FINGERPRINTS.
        options: of the method.
        probes: the inputs to query.
        signature: of the owner's outputs, `[...]`.
        num_classes: the owner's `K`.
        owner: name of the owner's checkpoint.
        owner_sha256: its content hash.
        references: independent models and their scores.
        numerics: what these were computed by; None in older certificates, which do not say.
        witness: score of a fixed network by the same, see `jaxguard.fingerprints.witness`; NaN where it has none.
    """

    method: str
    options: Mapping[str, Any]
    probes: Probes
    signature: np.ndarray
    num_classes: int
    owner: str
    owner_sha256: str
    references: tuple[Reference, ...] = ()
    numerics: Numerics | None = None
    witness: float = math.nan

    @property
    def leaves(self) -> dict[str, np.ndarray]:
        """Every array by its name in the file."""
        extra = {f"probes/{name}": np.asarray(array) for name, array in self.probes.arrays.items()}
        return {"images": self.probes.images, "signature": np.asarray(self.signature), **extra}

    @property
    def settings(self) -> dict[str, str]:
        """Everything but the arrays, as text."""
        described = {
            "method": self.method,
            "options": dict(self.options),
            "num_classes": self.num_classes,
            "owner": self.owner,
            "owner_sha256": self.owner_sha256,
            "notes": list(self.probes.notes),
            "references": [list(reference) for reference in self.references],
        }
        # What older certificates do not have is left out, so that their digest stays.
        if self.numerics is not None:
            described |= {
                "numerics": list(self.numerics),
                "witness": None if math.isnan(self.witness) else self.witness,
            }
        return {"kind": KIND, **{name: json.dumps(value, sort_keys=True) for name, value in described.items()}}

    @property
    def digest(self) -> str:
        """SHA-256 of settings and arrays, in hexadecimal."""
        return _digest(self.settings, self.leaves)


def _digest(settings: Mapping[str, str], leaves: Mapping[str, np.ndarray]) -> str:
    whole = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode())
    for name in sorted(leaves):
        array = np.ascontiguousarray(leaves[name])
        whole.update(f"{name} {array.dtype.str} {array.shape}".encode())
        whole.update(array.data)
    return whole.hexdigest()


def save(certificate: Certificate, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Writes a certificate atomically.

    Args:
        certificate: the certificate.
        path: ends in `.safetensors`.
        overwrite: whether to replace an existing file.

    Raises:
        FingerprintError: the path has another suffix.
        CheckpointError: the file exists, or cannot be written.
    """
    if not os.fspath(path).endswith(".safetensors"):
        raise FingerprintError(
            f"{os.fspath(path)}: expected a path that ends in .safetensors for a certificate; add the suffix"
        )
    metadata = certificate.settings | {"digest": certificate.digest}
    checkpoints.save(path, certificate.leaves, format="safetensors", metadata=metadata, overwrite=overwrite)


def load(path: str | os.PathLike[str]) -> Certificate:
    """Reads a certificate and verifies its digest.

    Raises:
        CheckpointError: no such file, or a damaged one.
        FingerprintError: the file is not a certificate, or was changed after it was made.
    """
    given, file = os.fspath(path), checkpoints.load(path)
    settings = dict(file.metadata)
    written = settings.pop("digest", None)
    if settings.get("kind") != KIND or written is None:
        raise FingerprintError(
            f"{given}: expected a {NAME}, got {settings.get('kind', 'none')!r} in its metadata; "
            "make one with `jaxguard fingerprint make`"
        )
    leaves = {name: np.array(array) for name, array in file.read_all().items()}
    found = _digest(settings, leaves)
    if found != written:
        raise FingerprintError(
            f"{given}: expected contents of digest {written}, got {found}; the certificate was changed after it was "
            "made, take the original"
        )
    try:
        values = {name: json.loads(text) for name, text in settings.items() if name != "kind"}
        images, signature = leaves.pop("images"), leaves.pop("signature")
        arrays = {name.removeprefix("probes/"): array for name, array in leaves.items()}
        references = tuple(Reference(str(name), str(sha), float(score)) for name, sha, score in values["references"])
        return Certificate(
            method=str(values["method"]),
            options=dict(values["options"]),
            probes=Probes(images, arrays, tuple(values["notes"])),
            signature=signature,
            num_classes=int(values["num_classes"]),
            owner=str(values["owner"]),
            owner_sha256=str(values["owner_sha256"]),
            references=references,
            numerics=Numerics(*map(str, values["numerics"])) if "numerics" in values else None,
            witness=math.nan if values.get("witness") is None else float(values["witness"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FingerprintError(
            f"{given}: expected the settings of a certificate, got them incomplete ({error}); take the original"
        ) from error
