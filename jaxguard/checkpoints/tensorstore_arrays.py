"""Arrays of an Orbax directory as TensorStore reads them: the slower way, for whatever is out of the ordinary."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxguard.checkpoints import header, ocdbt
from jaxguard.checkpoints.checkpoint import DTYPES, LeafSpec
from jaxguard.checkpoints.orbax_index import Index
from jaxguard.errors import CheckpointError

_CONTEXT = {
    "file_io_mode": {"mode": "memmap"},  # no copy between the page cache and the decompressor
    "data_copy_concurrency": {"limit": 16},  # decompresses on all cores, also while some threads wait for pages
}
_REMEDY = "the checkpoint is damaged or hostile, save it again or get it again from its author"


@dataclass(frozen=True, eq=False)
class Array:
    """An opened array.

    Attributes:
        spec: shape and element type.
        nbytes: bytes that reading takes: a chunk is decoded whole, however small the array that lies in it.
        store: how TensorStore reads it.
    """

    spec: LeafSpec
    nbytes: int
    store: Any


def opened(directory: pathlib.Path, index: Index, names: Sequence[str], given: str) -> dict[str, Array]:
    """Opens arrays, concurrently; only their own metadata are read.

    Args:
        directory: holds the index; every file below it is a regular one.
        index: what is in the directory.
        names: leaves to open.
        given: the path as the user wrote it.

    Returns:
        `{leaf name: array}`.

    Raises:
        CheckpointError: an array that cannot be opened, or one that is not of numbers.
    """
    if not names:
        return {}
    import tensorstore

    driver: dict[str, Any] = {"driver": "zarr3" if index.is_zarr3 else "zarr"}
    if index.are_all_chunks_stored:
        driver["fill_missing_data_reads"] = False
    base = f"{directory.absolute()}/"
    is_ocdbt = (directory / ocdbt.MANIFEST).is_file()
    context = tensorstore.Context(_CONTEXT)
    batch = tensorstore.Batch()  # their metadata lies together in few files, and is read together
    pending = {}
    for name in names:
        folder = f"{index.keys[name]}/"
        if is_ocdbt:
            store = {"driver": "ocdbt", "base": {"driver": "file", "path": base}, "path": folder}
        else:
            store = {"driver": "file", "path": base + folder}
        with _damage_reported(given, name):
            spec = {**driver, "kvstore": store}
            pending[name] = tensorstore.open(spec, read=True, open=True, context=context, batch=batch)
    batch.submit()
    arrays = {}
    for name, future in pending.items():
        with _damage_reported(given, name):
            store = future.result()
        spec = LeafSpec(tuple(store.shape), store.dtype.numpy_dtype)
        if spec.dtype not in DTYPES.values():
            raise CheckpointError(
                f"{given}: leaf {header.shown(name)}: expected numbers, found dtype {spec.dtype}; "
                "save the checkpoint without that leaf"
            )
        chunk = LeafSpec(tuple(store.chunk_layout.read_chunk.shape or ()), spec.dtype)
        arrays[name] = Array(spec, max(spec.nbytes, chunk.nbytes), store)
    return arrays


def read(arrays: Mapping[str, Array], given: str) -> dict[str, np.ndarray]:
    """Reads whole arrays, concurrently.

    Raises:
        CheckpointError: one of them is damaged.
    """
    largest_first = sorted(arrays, key=lambda name: -arrays[name].nbytes)  # so that no core waits for a last large one
    pending = {name: arrays[name].store.read() for name in largest_first}
    found = {}
    for name in arrays:
        with _damage_reported(given, name):
            found[name] = np.asarray(pending[name].result())
    return found


@contextlib.contextmanager
def _damage_reported(given: str, name: str) -> Iterator[None]:
    """Turns what TensorStore raises about the leaf `name` into a CheckpointError."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, NotImplementedError, OverflowError) as error:
        reason = str(error).split(" [", maxsplit=1)[0][:200]
        raise CheckpointError(
            f"{given}: leaf {header.shown(name)}: expected a readable array, found {reason!r}; {_REMEDY}"
        ) from error
