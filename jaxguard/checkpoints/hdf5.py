"""HDF5 files written by strangers: groups, attributes and arrays, with every read counted.

The structures of HDF5 point anywhere, in circles too. pyfive parses them: it is pure Python, so that hostile bytes meet
no C code (of 4,500 mutated files, one crashed the process under h5py 3.16; of 7,500, none did here), and it reads
through a file object, here one that refuses to go on for ever. Of pyfive's answers only addresses and sizes are used;
the arrays are mapped, or inflated chunk by chunk to no more than was announced.
"""

import contextlib
import io
import itertools
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import ml_dtypes
import numpy as np

from jaxguard.checkpoints import hdf5_storage, header, limits
from jaxguard.checkpoints.checkpoint import DTYPES, LeafSpec
from jaxguard.errors import CheckpointError

MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_READS = 1_000_000
MAX_SECONDS = 30.0
FREE_READ_BYTES = 2**24
_COMPACT, _CONTIGUOUS, _CHUNKED = 0, 1, 2
_REMEDY = "the download was cut short, or the file is damaged or hostile; get it again from its author"


@dataclass(frozen=True, eq=False)
class Hdf5:
    """An opened file.

    Attributes:
        given: the path as the user wrote it.
        root: attributes of the file.
        groups: attributes of every group, `{path: {name: value}}`; paths such as `layers/dense`.
        arrays: `{path: LeafSpec}` of every array, in the order of the file.
    """

    given: str
    root: Mapping[str, Any]
    groups: Mapping[str, Mapping[str, Any]]
    arrays: Mapping[str, LeafSpec]
    _content: np.ndarray = field(repr=False)
    _datasets: Mapping[str, Any] = field(repr=False)

    def read(self, path: str) -> np.ndarray:
        """One array: mapped and read-only if it is contiguous, else a copy.

        Raises:
            CheckpointError: it lies outside of the file, in a filter that is not supported, or its chunks are damaged.
        """
        spec, dataset = self.arrays[path], self._datasets[path]
        with _damage_reported(self.given, path):
            stored = _stored_dtype(dataset)
            kind = dataset.id.layout_class
            if not math.prod(spec.shape):
                return np.zeros(spec.shape, spec.dtype)
            if kind == _CONTIGUOUS:
                array = (
                    hdf5_storage.piece(self._content, dataset.id.data_offset, spec.nbytes)
                    .view(stored)
                    .reshape(spec.shape)
                )
            elif kind == _CHUNKED:
                array = hdf5_storage.from_chunks(self._content, dataset.id, stored)
            else:
                array = np.asarray(dataset[()]).view(stored).reshape(spec.shape)
            return array.astype(spec.dtype, copy=False)


def open_hdf5(content: np.ndarray, given: str) -> Hdf5:
    """Walks all groups and arrays of a file, without reading an array.

    Args:
        content: the bytes of the file, such as a memory map.
        given: the path as the user wrote it.

    Raises:
        CheckpointError: not HDF5 as pyfive reads it, links in circles, names or arrays that no checkpoint has.
    """
    import pyfive

    groups: dict[str, dict[str, Any]] = {}
    datasets: dict[str, Any] = {}
    with _damage_reported(given, "the file"):
        file = pyfive.File(cast(BinaryIO, _CountedFile(content, given)))
        if file.userblock_size:
            raise CheckpointError(f"{given}: expected HDF5 from the first byte on, found a user block; {_REMEDY}")
        root = dict(file.attrs)
        for path, found in _walk(file, given):
            if isinstance(found, pyfive.Dataset):
                datasets[path] = found
            elif isinstance(found, pyfive.Group):
                groups[path] = dict(found.attrs)
    arrays: dict[str, LeafSpec] = {}
    announced = 0
    for path, dataset in datasets.items():
        with _damage_reported(given, path):
            arrays[path], most = _checked_array(dataset, path, content.size, given)
            announced += most
    limits.check_announced(announced, content.size, given)
    return Hdf5(given, root, groups, arrays, content, datasets)


class _CountedFile(io.RawIOBase):
    """A file in memory that can be read a limited number of times, a limited number of bytes, for a limited time."""

    def __init__(self, content: np.ndarray, given: str) -> None:
        super().__init__()
        self._content = content.data
        self._given = given
        self._position = 0
        self._reads_left = MAX_READS
        self._bytes_left = FREE_READ_BYTES + 2 * content.nbytes
        self._deadline = time.monotonic() + MAX_SECONDS

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._content.nbytes}[whence]
        if not 0 <= start + offset <= self._content.nbytes:
            raise ValueError(f"an address outside of the file: {start + offset}")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        left = self._content.nbytes - self._position
        size = left if size is None or size < 0 else min(size, left)
        self._reads_left -= 1
        self._bytes_left -= size
        if self._reads_left < 0 or self._bytes_left < 0 or time.monotonic() > self._deadline:
            raise CheckpointError(
                f"{self._given}: expected the structure of HDF5 in {self._content.nbytes} bytes, found one that takes "
                f"more than {MAX_READS} reads, twice its bytes, or {MAX_SECONDS:.0f} s to walk; {_REMEDY}"
            )
        self._position += size
        return self._content[self._position - size : self._position].tobytes()


@contextlib.contextmanager
def _damage_reported(given: str, name: str) -> Iterator[None]:
    """Pyfive raises arbitrary exceptions for damaged files: all become one error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{given}: {header.shown(name)}: expected readable HDF5, found {type(error).__name__} "
            f"{header.shown(str(error))}; {_REMEDY}"
        ) from error


def _walk(file: Any, given: str) -> Iterator[tuple[str, Any]]:
    """Every group and array below the root with its path, depth first, names with numbers in the order of these."""
    pending = [((), file)]
    num_found = 0
    while pending:
        path, group = pending.pop()
        below = []
        for name in sorted(group, key=_natural):
            num_found += 1
            child = (*path, name)
            joined = "/".join(child)
            if num_found > limits.MAX_LEAVES or len(child) > limits.MAX_DEPTH or len(joined) > limits.MAX_NAME_LENGTH:
                raise CheckpointError(
                    f"{given}: {header.shown(joined)}: expected at most {limits.MAX_LEAVES} groups and arrays, "
                    f"{limits.MAX_DEPTH} levels deep, with names of {limits.MAX_NAME_LENGTH} characters, found more; "
                    f"they may be linked in circles; {_REMEDY}"
                )
            if name in ("", ".", "..") or "/" in name:
                raise CheckpointError(
                    f"{given}: expected names inside their group, found {header.shown(name)}; {_REMEDY}"
                )
            found = group[name]
            yield joined, found
            if isinstance(found, Mapping):
                below.append((child, found))
        pending.extend(reversed(below))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts `dense_2` before `dense_10`."""
    parts = ("".join(part) for _, part in itertools.groupby(name, str.isdecimal))
    return [(0, int(part), part) if part.isdecimal() and len(part) < 20 else (1, 0, part) for part in parts]


def _stored_dtype(dataset: Any) -> np.dtype:
    dtype = np.dtype(dataset.dtype)
    if dtype == np.dtype("V2") and dataset.attrs.get("dtype") in (b"bfloat16", "bfloat16"):
        return np.dtype(ml_dtypes.bfloat16)
    return dtype


def _checked_array(dataset: Any, path: str, size: int, given: str) -> tuple[LeafSpec, int]:
    """The spec of an array, and the bytes that reading it may take."""

    def refuse(expected: str, found: Any) -> CheckpointError:
        return CheckpointError(
            f"{given}: leaf {header.shown(path)}: expected {expected}, found {header.shown(found)}; {_REMEDY}"
        )

    shape, dtype = tuple(int(axis) for axis in dataset.shape), _stored_dtype(dataset).newbyteorder("=")
    if dtype not in DTYPES.values():
        raise refuse(f"a dtype of {', '.join(dtype.name for dtype in DTYPES.values())}", dtype)
    if not limits.fits_memory(shape):
        raise refuse("a shape that fits an address space", shape)
    spec = LeafSpec(shape, dtype)
    if dataset.id.layout_class != _CHUNKED:
        if spec.nbytes > size:
            raise refuse(f"an array within the {size} bytes of the file", shape)
        return spec, spec.nbytes
    chunk = tuple(int(axis) for axis in dataset.id.chunks)
    if len(chunk) != len(shape) or not all(chunk) or not limits.fits_memory(chunk):
        raise refuse(f"chunks of {len(shape)} axes", chunk)
    return spec, max(spec.nbytes, LeafSpec(chunk, dtype).nbytes)
