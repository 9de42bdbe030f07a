"""Content hashes of files: SHA-256, which is published everywhere, and BLAKE3, which costs a quarter of the time.

A content is named by its SHA-256 alone, or by `blake3:` and its BLAKE3; both are cryptographic, and hexadecimal.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterable
from typing import Any, Literal

import blake3

Algorithm = Literal["sha256", "blake3"]
"""What contents are named by."""

BLAKE3 = "blake3:"
"""Before a BLAKE3 hash."""

_BLOCK = 2**20  # bytes


def started(algorithm: Algorithm) -> Any:
    """An empty hash with `update`, `digest` and `hexdigest`."""
    return blake3.blake3() if algorithm == "blake3" else hashlib.sha256()


def named(algorithm: Algorithm, digest: str) -> str:
    """The name of a content.

    >>> named("sha256", "ab"), named("blake3", "ab")
    ('ab', 'blake3:ab')
    """
    return BLAKE3 + digest if algorithm == "blake3" else digest


def algorithm_of(content: str) -> Algorithm:
    """What a content is named by.

    >>> algorithm_of("blake3:ab"), algorithm_of("ab")
    ('blake3', 'sha256')
    """
    return "blake3" if content.startswith(BLAKE3) else "sha256"


def of_file(path: pathlib.Path, algorithm: Algorithm) -> str:
    """The name of a file's content.

    Raises:
        OSError: it cannot be read.
    """
    return named(algorithm, _file(path, algorithm).hex())


def of_files(folder: pathlib.Path, paths: Iterable[pathlib.Path], algorithm: Algorithm) -> str:
    """The name of the contents and relative names of several files, in sorted order.

    Raises:
        OSError: one cannot be read.
    """
    digest = started(algorithm)
    files = {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}
    for name in sorted(files):
        encoded = name.encode("utf-8", "surrogateescape")
        digest.update(len(encoded).to_bytes(8, "little") + encoded + _file(files[name], algorithm))
    return named(algorithm, digest.hexdigest())


def _file(path: pathlib.Path, algorithm: Algorithm) -> bytes:
    digest = started(algorithm)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.digest()
