"""A file's bytes read once: into memory of the caller's, and through the hash, block by block while in the cache."""

import os
import pathlib

import numpy as np

from jaxguard.checkpoints import hashing
from jaxguard.errors import CheckpointError

_BLOCK = 2**20  # bytes


def read_into(
    path: pathlib.Path,
    start: int,
    content: np.ndarray,
    *,
    size: int,
    modified: int,
    given: str,
    algorithm: hashing.Algorithm = "sha256",
) -> str:
    """Read a file from `start` to its end, and hash all of it.

    Args:
        path: a regular file.
        start: first byte to keep.
        content: `[size - start]` uint8, contiguous, written to.
        size: bytes of the file when it was opened.
        modified: its time of change then, in nanoseconds.
        given: the path as the user wrote it.
        algorithm: what its content is named by.

    Returns:
        The name of the whole file's content, see `jaxguard.checkpoints.hashing`.

    Raises:
        CheckpointError: the file is not the one that was opened.
        OSError: it cannot be read.
    """
    digest, view = hashing.started(algorithm), memoryview(content.data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        digest.update(os.pread(descriptor, start, 0))
        position = 0
        while position < len(view):
            block = view[position : position + _BLOCK]
            count = os.preadv(descriptor, [block], start + position)
            if count == 0:
                break
            digest.update(block[:count])
            position += count
        state = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if position < len(view) or (state.st_size, state.st_mtime_ns) != (size, modified):
        raise CheckpointError(
            f"{given}: expected the {size} bytes that were opened, got others, it has changed since; "
            "scan it again when it is complete"
        )
    return hashing.named(algorithm, digest.hexdigest())
