"""Limits that no honest checkpoint exceeds, shared by all formats, so that hostile files end in one error."""

import math
from typing import Any

from jaxguard.checkpoints import refusals

MAX_LEAVES = 100_000
MAX_NAME_LENGTH = 1024
MAX_DEPTH = 64
MAX_AXES = 32
MAX_LEAF_BYTES = 2**62
MIN_ALLOWANCE_BYTES = 2**30
MAX_INFLATION = 64
MIN_CHUNKS = 2**16
MIN_CHUNK_BYTES = 2**8


def are_sizes(found: Any) -> bool:
    """Whether `found` is a list or tuple of integers from zero on; `True` is no size."""
    return isinstance(found, (list, tuple)) and all(type(item) is int and item >= 0 for item in found)


def fits_memory(shape: list[int] | tuple[int, ...]) -> bool:
    """Whether numpy can describe an array of this shape; sizes of zero count as one, for its strides overflow as well.

    >>> fits_memory((3, 0)), fits_memory((2**61, 2)), fits_memory((2**62, 0)), fits_memory([1] * 33)
    (True, False, False, False)
    """
    if len(shape) > MAX_AXES or any(axis >= MAX_LEAF_BYTES for axis in shape):
        return False
    return math.prod(max(axis, 1) for axis in shape) < MAX_LEAF_BYTES


def check_announced(announced: int, size: int, given: str) -> None:
    """Refuses leaves of more than 1 GiB that are also more than 64 times their file: weights hardly compress.

    Args:
        announced: bytes of all leaves in memory.
        size: bytes on disk.
        given: the path as the user wrote it.

    Raises:
        HostileError: too much is announced.
    """
    allowance = max(MIN_ALLOWANCE_BYTES, MAX_INFLATION * size)
    if announced > allowance:
        expected = f"at most {allowance} bytes of arrays in {size} bytes on disk"
        raise refusals.hostile(given, expected, f"{announced} announced (a decompression bomb)")


def check_chunks(num_chunks: int, size: int, given: str) -> None:
    """Refuses more than 65,536 chunks that also come to less than 256 bytes each: a lookup of each takes 15 us.

    Args:
        num_chunks: chunks of all leaves, whether they are stored or not.
        size: bytes on disk.
        given: the path as the user wrote it.

    Raises:
        HostileError: too many.
    """
    allowance = max(MIN_CHUNKS, size // MIN_CHUNK_BYTES)
    if num_chunks > allowance:
        expected = f"at most {allowance} chunks in {size} bytes on disk"
        raise refusals.hostile(given, expected, f"{num_chunks} announced (a bomb of lookups)")


def checked_shape(found: Any) -> tuple[int, ...]:
    """The shape that a file announces, checked.

    Raises:
        ValueError: it is no tuple or list of sizes, or numpy cannot describe an array of it.

    >>> checked_shape([3, 0])
    (3, 0)
    """
    count = MAX_LEAF_BYTES
    if isinstance(found, (list, tuple)) and len(found) <= MAX_AXES:
        count = 1
        for size in found:
            count *= (size or 1) if type(size) is int and size >= 0 else MAX_LEAF_BYTES
    if count >= MAX_LEAF_BYTES:
        raise ValueError("a shape that is not at most 32 sizes that fit an address space")
    return tuple(found)
