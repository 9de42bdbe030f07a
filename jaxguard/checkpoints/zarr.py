"""Zarr arrays as Orbax stores them: chunks, each compressed on its own, inflated in threads where they belong.

What is out of the ordinary (other codecs, Fortran order, chunks that are missing because they hold zeros) is not read
here but left to TensorStore, which also says what is wrong with an array that is damaged.
"""

import itertools
import math
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from jaxguard.checkpoints import allocation, zarr_metadata, zstd
from jaxguard.checkpoints.checkpoint import LeafSpec
from jaxguard.checkpoints.crc32c import crc32c
from jaxguard.checkpoints.zarr_metadata import Layout

ValueFn = Callable[[str], memoryview]
"""Key -> what is stored under it; raises KeyError, ValueError or OSError."""

_INDEX_ENTRY, _CHECKSUM_BYTES = 16, 4
_NUM_THREADS = min(32, 2 * (os.cpu_count() or 1))  # one of two is busy while the other waits for pages
_SMALL = 2**18


@dataclass(frozen=True, eq=False)
class Array:
    """An array whose metadata have been checked, and whose chunks are still stored.

    Attributes:
        layout: how it is cut into chunks.
    """

    layout: Layout
    _key: str
    _value_fn: ValueFn

    @property
    def spec(self) -> LeafSpec:
        """Shape and element type."""
        return self.layout.spec

    @property
    def nbytes(self) -> int:
        """Bytes that reading takes."""
        return self.layout.nbytes

    def indices(self) -> Iterator[tuple[int, ...]]:
        """Indices of all chunks, or of all shards where chunks are packed into those."""
        return itertools.product(*map(range, zarr_metadata.grid(self.spec.shape, self.layout.stored_shape)))

    def inflate(self, index: tuple[int, ...], out: np.ndarray) -> None:
        """Brings one chunk or shard to its place in `out`, which has the shape of the array.

        Raises:
            KeyError, ValueError, OSError: it is missing or damaged.
        """
        layout = self.layout
        content = self._value_fn(f"{self._key}/{layout.chunk_key(index)}")
        start = [place * size for place, size in zip(index, layout.stored_shape, strict=True)]
        if not layout.is_sharded:
            self._inflate_chunk(content, start, out)
            return
        grid = zarr_metadata.grid(layout.stored_shape, layout.chunk_shape)
        places = _shard_index(content, math.prod(grid))
        for inner, (offset, size) in zip(itertools.product(*map(range, grid)), places, strict=True):
            begin = [a + b * size for a, b, size in zip(start, inner, layout.chunk_shape, strict=True)]
            if any(a >= size for a, size in zip(begin, out.shape, strict=True)):
                continue  # beyond the edge of the array
            if offset + size > len(content):
                raise ValueError("a chunk that is missing or lies outside of its shard")
            self._inflate_chunk(content[offset : offset + size], begin, out)

    def _inflate_chunk(self, content: memoryview, start: list[int], out: np.ndarray) -> None:
        shape = self.layout.chunk_shape
        place = out[(*(slice(a, a + size) for a, size in zip(start, shape, strict=True)), ...)]
        is_whole = place.shape == shape and place.flags.c_contiguous
        chunk = place if is_whole else np.empty(shape, out.dtype)
        flat = chunk.reshape(-1).view(np.uint8)
        if self.layout.is_compressed:
            zstd.inflate_into(content, flat)
        elif len(content) == flat.size:
            flat[:] = content
        else:
            raise ValueError(f"a chunk of {len(content)} bytes in place of {flat.size}")
        if not is_whole:
            place[...] = chunk[tuple(map(slice, place.shape))]


def opened(value_fn: ValueFn, key: str, *, is_v3: bool) -> Array | None:
    """Reads the metadata of the array under a key.

    Args:
        value_fn: brings stored values.
        key: what the keys of its metadata and chunks begin with.
        is_v3: version of the format: metadata in `zarr.json` or in `.zarray`.

    Returns:
        The array; None where there is none, or one out of the ordinary.
    """
    try:
        content = value_fn(f"{key}/{zarr_metadata.key(is_v3=is_v3)}")
        return Array(zarr_metadata.layout(bytes(content[: zarr_metadata.MAX_BYTES + 1]), is_v3=is_v3), key, value_fn)
    except (KeyError, ValueError, OSError):
        return None


def read(arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """Reads whole arrays, on all cores.

    Args:
        arrays: `{name: array}`; their sizes are believed.

    Returns:
        `{name: content}` of those that could be read; the others miss chunks or are damaged.
    """
    found = allocation.allocated({name: array.spec for name, array in arrays.items()})
    failed: set[str] = set()
    small = [name for name, array in arrays.items() if array.nbytes < _SMALL]
    large = sorted(arrays.keys() - small, key=lambda name: -arrays[name].nbytes)  # no core waits for a last large one
    # All small ones are the work of one thread: several would wait for the interpreter lock, and for each other.
    tasks = itertools.chain([_chunks(arrays, small, failed)], ([chunk] for chunk in _chunks(arrays, large, failed)))
    lock = threading.Lock()

    def next_task() -> Iterable[tuple[str, tuple[int, ...]]] | None:
        with lock:
            return next(tasks, None)

    def inflate(_: int) -> None:
        while (task := next_task()) is not None:
            for name, index in task:
                try:
                    arrays[name].inflate(index, found[name])
                except (KeyError, ValueError, OSError):
                    failed.add(name)

    num_threads = min(_NUM_THREADS, 1 + len(large))
    if num_threads == 1:
        inflate(0)
    else:
        with ThreadPoolExecutor(num_threads) as pool:
            for _ in pool.map(inflate, range(num_threads)):
                pass  # reraises what a thread raised
    return {name: array for name, array in found.items() if name not in failed}


def _chunks(
    arrays: Mapping[str, Array], names: Iterable[str], failed: Collection[str]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and indices of chunks; a name that fails is left at once, however many it announces."""
    for name in names:
        for index in arrays[name].indices():
            if name in failed:
                break
            yield name, index


def _shard_index(content: memoryview, count: int) -> list[list[int]]:
    """Offset and size of each chunk in a shard, unchecked; the index is at the shard's end."""
    end = len(content) - count * _INDEX_ENTRY - _CHECKSUM_BYTES
    if end < 0:
        raise ValueError("a shard that is smaller than its index")
    index, checksum = bytes(content[end:-_CHECKSUM_BYTES]), content[-_CHECKSUM_BYTES:]
    if crc32c(index) != int.from_bytes(checksum, "little"):
        raise ValueError("a shard whose index has another checksum")
    return np.frombuffer(index, "<u8").reshape(count, 2).tolist()
