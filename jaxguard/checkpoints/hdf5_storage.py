"""Where HDF5 keeps an array: in one piece, or in chunks that may be shuffled and deflated."""

import math
import zlib
from typing import Any

import numpy as np

from jaxguard.checkpoints import refusals

_DEFLATE, _SHUFFLE = 1, 2
_UNDEFINED = 2**64 - 1


def piece(content: np.ndarray, start: int, size: int) -> np.ndarray:
    """A view of `size` bytes.

    Raises:
        ValueError: they were never written, or lie outside of the file.
    """
    if start == _UNDEFINED:
        raise ValueError("an array that was never written")
    if start + size > content.size:
        raise ValueError(f"bytes {start} to {start + size} of {content.size}")
    return content[start : start + size].view(np.ndarray)


def from_chunks(content: np.ndarray, stored: Any, dtype: np.dtype) -> np.ndarray:
    """Puts a chunked array together.

    Args:
        content: the bytes of the file.
        stored: pyfive's `DatasetID`, with the index of the chunks.
        dtype: of the elements as they are stored.

    Raises:
        ValueError: a chunk that is missing, misplaced, or not of the announced size.
        Trick: a chunk that inflates to more than was announced.
        Unsupported: a filter that is not read.
        zlib.error: a chunk that does not inflate.
    """
    shape, chunk = stored.shape, stored.chunks
    filters = [entry["filter_id"] for entry in stored.filter_pipeline or ()]
    if unknown := set(filters) - {_DEFLATE, _SHUFFLE}:
        raise refusals.Unsupported(f"the filters {sorted(unknown)} in place of deflate and shuffle")
    array = np.empty(shape, dtype)
    index = stored.index
    # Every chunk must be there once: a missing one would leave whatever the memory held before.
    expected = math.prod(-(-axis // step) for axis, step in zip(shape, chunk, strict=True))
    if len(index) != expected:
        raise ValueError(f"{len(index)} chunks where {expected} fill the array")
    for first, info in index.items():
        if any(start % step or start >= axis for start, step, axis in zip(first, chunk, shape, strict=True)):
            raise ValueError(f"a chunk at {first}")
        part = _unfiltered(piece(content, info.byte_offset, info.size), filters, info.filter_mask, chunk, dtype)
        # Chunks at the far edges reach beyond the array; what does not fit is padding.
        place = tuple(
            slice(start, min(start + step, axis)) for start, step, axis in zip(first, chunk, shape, strict=True)
        )
        array[place] = part[tuple(slice(0, one.stop - one.start) for one in place)]
    return array


def _unfiltered(
    stored: np.ndarray, filters: list[int], skipped: int, chunk: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    size = math.prod(chunk) * dtype.itemsize
    # Filters were applied in order when writing, and are undone from the last to the first.
    for position in reversed(range(len(filters))):
        if skipped >> position & 1:
            continue
        if filters[position] == _DEFLATE:
            # One byte more than announced tells a bomb from a chunk, without inflating either further.
            stored = np.frombuffer(zlib.decompressobj().decompress(stored.data, size + 1), np.uint8)
            if stored.size > size:
                raise refusals.Trick(f"a chunk that inflates to more than the {size} bytes announced")
        elif stored.size == size:
            # Shuffled: first all first bytes, then all second bytes, ...; a transpose puts each number's bytes
            # together.
            stored = np.ascontiguousarray(stored.reshape(dtype.itemsize, -1).T).reshape(-1)
    if stored.size != size:
        raise ValueError(f"a chunk of {stored.size} bytes where {size} are announced")
    return stored.view(dtype).reshape(chunk)
