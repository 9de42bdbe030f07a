"""What an owner keeps, and shows: probes, the owner's signature, and what independent models scored.

A certificate is a safetensors file. Its digest covers every array and every setting, so that whoever knows the digest
(printed, published, time-stamped) knows that nothing was changed since. It proves no authorship by itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxguard import checkpoints
from jaxguard.errors import FingerprintError
from jaxguard.fingerprints.protocol import Probes

NAME = "jaxguard fingerprint certificate"

KIND = f"{NAME}, 1"
"""What the file says it is."""


class Reference(NamedTuple):
    """A model known to be independent of the owner's.

    Attributes:
        name: of its checkpoint.
        sha256: content hash of its checkpoint, empty where there was none.
        score: what it scored; higher is more stolen.
    """

    name: str
    sha256: str
    score: float


@dataclass(frozen=True, eq=False)
class Certificate:
    """All that a suspect is judged by.

    Attributes:
        method: row of FINGERPRINTS.
        options: of the method.
        probes: what is asked.
        signature: of the owner's outputs, `[...]`.
        num_classes: the owner's `K`.
        owner: name of the owner's checkpoint.
        owner_sha256: its content hash.
        references: independent models, and what they scored.
    """

    method: str
    options: Mapping[str, Any]
    probes: Probes
    signature: np.ndarray
    num_classes: int
    owner: str
    owner_sha256: str
    references: tuple[Reference, ...] = ()

    @property
    def leaves(self) -> dict[str, np.ndarray]:
        """Every array by its name in the file."""
        extra = {f"probes/{name}": np.asarray(array) for name, array in self.probes.arrays.items()}
        return {"images": self.probes.images, "signature": np.asarray(self.signature), **extra}

    @property
    def settings(self) -> dict[str, str]:
        """Everything that is no array, as text."""
        described = {
            "method": self.method,
            "options": dict(self.options),
            "num_classes": self.num_classes,
            "owner": self.owner,
            "owner_sha256": self.owner_sha256,
            "notes": list(self.probes.notes),
            "references": [list(reference) for reference in self.references],
        }
        return {"kind": KIND, **{name: json.dumps(value, sort_keys=True) for name, value in described.items()}}

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, in hexadecimal."""
        return _digest(self.settings, self.leaves)


def _digest(settings: Mapping[str, str], leaves: Mapping[str, np.ndarray]) -> str:
    whole = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode())
    for name in sorted(leaves):
        array = np.ascontiguousarray(leaves[name])
        whole.update(f"{name} {array.dtype.str} {array.shape}".encode())
        whole.update(array.data)
    return whole.hexdigest()


def save(certificate: Certificate, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Writes a certificate, under its name only once it is whole.

    Args:
        certificate: what to write.
        path: ends in `.safetensors`.
        overwrite: whether a file of that name may be replaced.

    Raises:
        FingerprintError: the path has another suffix.
        CheckpointError: the path is taken, or the disk refuses.
    """
    if not os.fspath(path).endswith(".safetensors"):
        raise FingerprintError(
            f"{os.fspath(path)}: expected a path that ends in .safetensors for a certificate; add the suffix"
        )
    metadata = certificate.settings | {"digest": certificate.digest}
    checkpoints.save(path, certificate.leaves, format="safetensors", metadata=metadata, overwrite=overwrite)


def load(path: str | os.PathLike[str]) -> Certificate:
    """Reads a certificate and checks that it is as it was written.

    Args:
        path: of a file that `save` wrote.

    Returns:
        The certificate.

    Raises:
        CheckpointError: no such file, or a damaged one.
        FingerprintError: the file is no certificate, or it was changed since.
    """
    given, file = os.fspath(path), checkpoints.load(path)
    settings = dict(file.metadata)
    written = settings.pop("digest", None)
    if settings.get("kind") != KIND or written is None:
        raise FingerprintError(
            f"{given}: expected a {NAME}, found {settings.get('kind', 'none')!r} in its metadata; "
            "`jaxguard fingerprint make` writes one"
        )
    leaves = {name: np.array(array) for name, array in file.read_all().items()}
    found = _digest(settings, leaves)
    if found != written:
        raise FingerprintError(
            f"{given}: expected contents of digest {written}, found {found}; the certificate was changed after it was "
            "made, take the original"
        )
    try:
        told = {name: json.loads(text) for name, text in settings.items() if name != "kind"}
        images, signature = leaves.pop("images"), leaves.pop("signature")
        arrays = {name.removeprefix("probes/"): array for name, array in leaves.items()}
        references = tuple(Reference(str(name), str(sha), float(score)) for name, sha, score in told["references"])
        return Certificate(
            method=str(told["method"]),
            options=dict(told["options"]),
            probes=Probes(images, arrays, tuple(told["notes"])),
            signature=signature,
            num_classes=int(told["num_classes"]),
            owner=str(told["owner"]),
            owner_sha256=str(told["owner_sha256"]),
            references=references,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FingerprintError(
            f"{given}: expected the settings of a certificate, found them incomplete ({error}); take the original"
        ) from error
