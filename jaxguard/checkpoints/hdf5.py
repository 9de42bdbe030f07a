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

from jaxguard.checkpoints import hdf5_storage, header, limits, refusals
from jaxguard.checkpoints.checkpoint import DTYPES, LeafSpec
from jaxguard.errors import CheckpointError

MAGIC = b"\x89HDF\r\n\x1a\n"
# Budgets of the walk: links in circles, or objects that share one header, could keep a parser busy for ever. An honest
# file's structure is read about once.
MAX_READS = 1_000_000
MAX_SECONDS = 30.0
FREE_READ_BYTES = 2**24
_COMPACT, _CONTIGUOUS, _CHUNKED = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Hdf5:
    """An opened file.

    Attributes:
        given: the path as the user wrote it.
        root: attributes of the file.
        groups: attributes of every group, `{path: {name: value}}`; paths such as `layers/dense`.
        arrays: `{path: LeafSpec}` of every array of numbers, in the order of the file.
        left_out: `{path: what it is}` of arrays whose elements no leaf may have.
    """

    given: str
    root: Mapping[str, Any]
    groups: Mapping[str, Mapping[str, Any]]
    arrays: Mapping[str, LeafSpec]
    left_out: Mapping[str, str]
    _content: np.ndarray = field(repr=False)
    _datasets: Mapping[str, Any] = field(repr=False)

    def read(self, path: str) -> np.ndarray:
        """One array: mapped and read-only if it is contiguous, else a copy.

        Raises:
            DamagedError: it lies outside of the file, or its chunks are damaged.
            UnsupportedError: a filter that is not read.
        """
        spec, dataset = self.arrays[path], self._datasets[path]
        with _damage_reported(self.given, path):
            stored = _stored_dtype(dataset)
            kind = dataset.id.layout_class
            if not math.prod(spec.shape):
                return np.zeros(spec.shape, spec.dtype)
            # A view of the mapped file: nothing is read until the array is.
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
        DamagedError: not HDF5 as pyfive reads it.
        HostileError: links in circles, or names or arrays that no checkpoint has.
        UnsupportedError: a user block.
    """
    import pyfive

    groups: dict[str, dict[str, Any]] = {}
    datasets: dict[str, Any] = {}
    with _damage_reported(given, "the file"):
        file = pyfive.File(cast(BinaryIO, _CountedFile(content, given)))
        if file.userblock_size:
            raise refusals.unsupported(given, "HDF5 from the first byte on", "a user block", "save it without one")
        root = dict(file.attrs)
        for path, found in _walk(file, given):
            if isinstance(found, pyfive.Dataset):
                datasets[path] = found
            elif isinstance(found, pyfive.Group):
                groups[path] = dict(found.attrs)
    arrays: dict[str, LeafSpec] = {}
    left_out: dict[str, str] = {}
    announced = 0
    for path, dataset in datasets.items():
        with _damage_reported(given, path):
            if problem := _problem(dataset):
                left_out[path] = problem
                continue
            # Sizes are added up before anything is read: deflated chunks may announce far more than the file holds.
            arrays[path], most = _checked_array(dataset, content.size)
            announced += most
    limits.check_announced(announced, content.size, given)
    return Hdf5(given, root, groups, arrays, left_out, content, datasets)


def root_attributes(content: np.ndarray, given: str) -> dict[str, Any]:
    """Attributes of the file itself; no group is walked and no array looked at.

    Raises:
        CheckpointError: not HDF5 as pyfive reads it.
    """
    import pyfive

    with _damage_reported(given, "the file"):
        return dict(pyfive.File(cast(BinaryIO, _CountedFile(content, given))).attrs)


class _CountedFile(io.RawIOBase):
    """A file in memory that can be read a limited number of times, a limited number of bytes, for a limited time."""

    def __init__(self, content: np.ndarray, given: str) -> None:
        super().__init__()
        self._content = content.data
        self._given = given
        self._position = 0
        self._reads_left = MAX_READS
        # Twice the file, and some more so that tiny files with many reads of one block pass.
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
            limit = f"more than {MAX_READS} reads, twice its bytes, or {MAX_SECONDS:.0f} s to walk"
            expected = f"the structure of HDF5 in {self._content.nbytes} bytes"
            raise refusals.hostile(self._given, expected, f"one that takes {limit}")
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
        is_ours = type(error) is ValueError or isinstance(error, refusals.Unsupported | refusals.Trick)
        found = str(error) if is_ours else f"{type(error).__name__} {header.shown(str(error))}"
        raise refusals.because(error, f"{given}: {header.shown(name)}", "readable HDF5", found) from error


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
                expected = (
                    f"at most {limits.MAX_LEAVES} groups and arrays, {limits.MAX_DEPTH} levels deep, with names of "
                    f"{limits.MAX_NAME_LENGTH} characters"
                )
                raise refusals.hostile(f"{given}: {header.shown(joined)}", expected, "more, perhaps links in circles")
            if name in ("", ".", "..") or "/" in name:
                found = f"{header.shown(name)}, a path out of it"
                raise refusals.hostile(given, "names inside their group", found)
            found = group[name]
            yield joined, found
            if isinstance(found, Mapping):
                below.append((child, found))
        # A stack, filled in reverse: the first child is popped next, and so the walk is depth first in order.
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


def _problem(dataset: Any) -> str:
    """Why an array is no leaf, such as for text, references and records; empty where it is one."""
    try:
        dtype = _stored_dtype(dataset).newbyteorder("=")
    except (TypeError, NotImplementedError):  # pyfive has a tuple for what numpy has no type for
        return f"an array of element type {header.shown(dataset.dtype)}{refusals.NOT_SUPPORTED}"
    return "" if dtype in DTYPES.values() else f"an array of element type {dtype}{refusals.NOT_SUPPORTED}"


def _checked_array(dataset: Any, size: int) -> tuple[LeafSpec, int]:
    """The spec of an array, and the bytes that reading it may take."""
    shape, dtype = tuple(int(axis) for axis in dataset.shape), _stored_dtype(dataset).newbyteorder("=")
    spec = LeafSpec(limits.checked_shape(shape), dtype)
    if dataset.id.layout_class != _CHUNKED:
        if spec.nbytes > size:
            raise ValueError(f"an array of {spec.nbytes} bytes in a file of {size}")
        return spec, spec.nbytes
    chunk = tuple(int(axis) for axis in dataset.id.chunks)
    if len(chunk) != len(shape) or not all(chunk) or not limits.fits_memory(chunk):
        raise ValueError(f"chunks of {header.shown(chunk)} for an array of {len(shape)} axes")
    return spec, max(spec.nbytes, LeafSpec(chunk, dtype).nbytes)
