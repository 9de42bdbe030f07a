"""Arrays of an Orbax directory, opened and read by TensorStore once their metadata has passed our checks."""

import contextlib
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxguard.checkpoints import header, limits, refusals, zarr_metadata
from jaxguard.checkpoints.checkpoint import LeafSpec
from jaxguard.checkpoints.orbax_index import Index
from jaxguard.errors import CheckpointError

_CONTEXT = {
    "file_io_mode": {"mode": "memmap"},  # no copy between the page cache and the decompressor
    "data_copy_concurrency": {"limit": 16},  # decompresses on all cores, also while some threads wait for pages
}

ValueFn = Callable[[str], bytes]
"""Key -> the first bytes stored under it; raises KeyError, ValueError or OSError."""


@dataclass(frozen=True, eq=False)
class Array:
    """An opened array.

    Attributes:
        spec: shape and element type.
        nbytes: bytes that reading takes; a chunk is decoded whole, even if the array covers only part of it.
        num_chunks: chunks in its grid, those inside shards included.
        store: the TensorStore.
    """

    spec: LeafSpec
    nbytes: int
    num_chunks: int
    store: Any


def opened(
    directory: pathlib.Path, index: Index, value_fn: ValueFn, given: str, *, is_ocdbt: bool
) -> tuple[dict[str, Array], dict[str, str]]:
    """Opens all arrays concurrently; only their metadata is read.

    Args:
        directory: holds the index; every file below it is a regular one.
        index: the arrays in the directory.
        value_fn: reads stored metadata for the checks.
        given: the path as the user wrote it.
        is_ocdbt: arrays are stored in a database, which has been checked, rather than in folders.

    Returns:
        `{leaf name: array}`, and `{leaf name: what it is}` of those whose elements no leaf may have.

    Raises:
        DamagedError: an array that cannot be opened.
        HostileError: metadata that is a trick.
        UnsupportedError: a codec that is not read.
    """
    import tensorstore

    driver: dict[str, Any] = {"driver": "zarr3" if index.is_zarr3 else "zarr"}
    if index.are_all_chunks_stored:
        driver["fill_missing_data_reads"] = False
    base = f"{directory.absolute()}/"
    file_name = zarr_metadata.file_name(is_zarr3=index.is_zarr3)
    context = tensorstore.Context(_CONTEXT)
    batch = tensorstore.Batch()  # few files hold the metadata of all arrays
    pending, left_out = {}, {}
    for name, key in index.keys.items():
        if is_ocdbt:
            kvstore = {"driver": "ocdbt", "base": {"driver": "file", "path": base}, "path": f"{key}/"}
        else:
            kvstore = {"driver": "file", "path": f"{base}{key}/"}
        with _damage_reported(given, name):
            try:
                zarr_metadata.check(value_fn(f"{key}/{file_name}"), is_zarr3=index.is_zarr3)
            except zarr_metadata.ElementType as error:
                left_out[name] = f"{error}{refusals.NOT_SUPPORTED}"
                continue
            spec = {**driver, "kvstore": kvstore}
            pending[name] = tensorstore.open(spec, read=True, open=True, context=context, batch=batch)
    batch.submit()
    arrays = {}
    for name, future in pending.items():
        with _damage_reported(given, name):
            arrays[name] = _array(future.result())
    return arrays, left_out


def read(arrays: Mapping[str, Array], names: Sequence[str], given: str) -> dict[str, np.ndarray]:
    """Reads whole arrays concurrently.

    Args:
        arrays: by leaf name.
        names: those to read.
        given: the path as the user wrote it.

    Raises:
        DamagedError: one of them is damaged.
    """
    largest_first = sorted(names, key=lambda name: -arrays[name].nbytes)  # so that no core ends with a large one alone
    pending = {name: arrays[name].store.read() for name in largest_first}
    found = {}
    for name in names:
        with _damage_reported(given, name):
            found[name] = np.asarray(pending[name].result())
    return found


def _array(store: Any) -> Array:
    spec = LeafSpec(limits.checked_shape(store.shape), store.dtype.numpy_dtype)
    # What is stored under one key is a chunk, or a shard that holds a grid of chunks and an index of them.
    stored, chunk = store.chunk_layout.write_chunk.shape or (), store.chunk_layout.read_chunk.shape or ()
    num_chunks = math.prod(_grid(spec.shape, stored)) * math.prod(_grid(stored, chunk))
    return Array(spec, max(spec.nbytes, LeafSpec(chunk, spec.dtype).nbytes), num_chunks, store)


def _grid(shape: tuple[int, ...], part: tuple[int, ...]) -> Iterator[int]:
    """How many parts cover a shape, along each axis."""
    return (-(-size // length) for size, length in zip(shape, part, strict=True))


@contextlib.contextmanager
def _damage_reported(given: str, name: str) -> Iterator[None]:
    """Turns any error of the leaf `name` into a CheckpointError."""
    try:
        yield
    except (CheckpointError, KeyError, ValueError, OSError, RuntimeError, NotImplementedError, OverflowError) as error:
        reason = str(error).split(" [tensorstore_spec", maxsplit=1)[0][:200]
        raise refusals.because(
            error, f"{given}: leaf {header.shown(name)}", "a readable array", repr(reason)
        ) from error
