"""Metadata of Zarr arrays, versions 2 and 3: shape, element type and chunks, believed once they are checked.

https://zarr-specs.readthedocs.io. Only what Orbax writes is taken; everything else is a ValueError, no verdict.
"""

import functools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxguard.checkpoints import header, limits
from jaxguard.checkpoints.checkpoint import DTYPES, LeafSpec
from jaxguard.errors import CheckpointError

_V2_DTYPES = {dtype.str if dtype.isbuiltin == 1 else dtype.name: dtype for dtype in DTYPES.values()}
_V3_DTYPES = {dtype.name: dtype for dtype in DTYPES.values()}
_V3_MEMBERS = frozenset(
    {
        *("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs"),
        *("fill_value", "attributes", "dimension_names"),
    }
)
_BYTES = {"name": "bytes", "configuration": {"endian": sys.byteorder}}
_SHARD_INDEX = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
MAX_BYTES = 2**16
_MAX_CHUNKS = 2**20


@dataclass(frozen=True)
class Layout:
    """How an array lies in chunks.

    Attributes:
        spec: shape and element type.
        stored_shape: of what is stored under one key, a chunk or a shard; the last ones reach beyond the array's edge.
        chunk_shape: of what is compressed as one; smaller than `stored_shape` where that is a shard.
        is_sharded: whether what is stored under a key ends with an index of the chunks in it.
        is_compressed: whether chunks are zstd frames, else plain content.
        key_start: what keys of chunks begin with, if anything.
        separator: what the parts of keys are joined with.
    """

    spec: LeafSpec
    stored_shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    is_sharded: bool
    is_compressed: bool
    key_start: tuple[str, ...]
    separator: str

    @functools.cached_property
    def nbytes(self) -> int:
        """Bytes that reading takes: a chunk is inflated whole, however small the array that lies in it."""
        return max(self.spec.nbytes, LeafSpec(self.chunk_shape, self.spec.dtype).nbytes)

    def chunk_key(self, index: Sequence[int]) -> str:
        """The key of what is stored at an index of the grid, relative to that of the array."""
        return self.separator.join((*self.key_start, *map(str, index))) or "0"


def key(*, is_v3: bool) -> str:
    """The key of an array's metadata, relative to that of the array."""
    return "zarr.json" if is_v3 else ".zarray"


@functools.lru_cache(maxsize=256)  # most arrays of a network are like others of it
def layout(content: bytes, *, is_v3: bool) -> Layout:
    """Checks the metadata of an array.

    Args:
        content: JSON.
        is_v3: version of the format.

    Raises:
        ValueError: they are damaged, or describe an array out of the ordinary.

    >>> found = layout(b'{"zarr_format":2,"shape":[6],"chunks":[4],"dtype":"<f4","compressor":null,"order":"C"}',
    ...     is_v3=False)
    >>> found.spec, found.chunk_shape, found.chunk_key([1])
    (LeafSpec(shape=(6,), dtype=dtype('float32')), (4,), '1')
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"metadata of {len(content)} bytes")
    try:
        found = header.parse(content, "")
    except CheckpointError as error:
        raise ValueError(str(error)) from error
    checked = _v3(found) if is_v3 else _v2(found)
    shape, stored, chunk = checked.spec.shape, checked.stored_shape, checked.chunk_shape
    if not len(shape) == len(stored) == len(chunk) or any(0 in sizes for sizes in (shape, stored, chunk)):
        raise ValueError("an array without elements, or with chunks of other dimensions")
    if any(outer % inner for outer, inner in zip(stored, chunk, strict=True)):
        raise ValueError("shards that are no multiples of their chunks")
    if max(math.prod(grid(shape, stored)), math.prod(grid(stored, chunk))) > _MAX_CHUNKS:
        raise ValueError(f"more than {_MAX_CHUNKS} chunks")
    return checked


def grid(shape: tuple[int, ...], part_shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many parts it takes along each axis to cover a shape.

    >>> grid((6, 4), (4, 4))
    (2, 1)
    """
    return tuple(-(-size // part) for size, part in zip(shape, part_shape, strict=True))


def _v2(found: dict[str, Any]) -> Layout:
    match found:
        case {"zarr_format": 2, "order": "C", "shape": shape, "chunks": chunks, "dtype": str(kind)} if (
            not found.get("filters") and kind in _V2_DTYPES
        ):
            chunk_shape = limits.checked_shape(chunks)
            separator = _separator(found.get("dimension_separator", "."))
            codec = found.get("compressor")
            is_compressed = _is_compressed([] if codec is None else [codec], "id")
            spec = LeafSpec(limits.checked_shape(shape), _V2_DTYPES[kind])
            return Layout(spec, chunk_shape, chunk_shape, False, is_compressed, (), separator)
    raise ValueError("other metadata than of a plain array")


def _v3(found: dict[str, Any]) -> Layout:
    match found:
        case {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": str(kind),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": stored}},
            "chunk_key_encoding": {"name": "default" | "v2" as encoding, **options},
            "codecs": [*codecs],
        } if (
            kind in _V3_DTYPES
            and found.keys() <= _V3_MEMBERS
            and isinstance(configuration := options.get("configuration", {}), dict)
        ):
            spec = LeafSpec(limits.checked_shape(shape), _V3_DTYPES[kind])
            stored_shape = chunk_shape = limits.checked_shape(stored)
            inner = _sharding(codecs)
            if inner is not None:
                chunk_shape, codecs = limits.checked_shape(inner[0]), inner[1]
            is_compressed = _is_compressed(_after_bytes(codecs, spec.dtype), "name")
            start, usual = (("c",), "/") if encoding == "default" else ((), ".")
            separator = _separator(configuration.get("separator", usual))
            return Layout(spec, stored_shape, chunk_shape, inner is not None, is_compressed, start, separator)
    raise ValueError("other metadata than of a plain array")


def _sharding(codecs: list[Any]) -> tuple[Any, list[Any]] | None:
    """Shape and codecs of the chunks in a shard, where arrays are stored in shards."""
    match codecs:
        case [{"name": "sharding_indexed", "configuration": {"chunk_shape": shape, "codecs": [*inner], **rest}}] if (
            rest.get("index_location", "end") == "end" and rest.get("index_codecs") == _SHARD_INDEX
        ):
            return shape, inner
    return None


def _after_bytes(codecs: list[Any], dtype: np.dtype) -> list[Any]:
    """The codecs behind the one that turns an array into bytes, as this machine has them in memory."""
    match codecs:
        case [first, *rest] if first == _BYTES or (first == {"name": "bytes"} and dtype.itemsize == 1):
            return rest
    raise ValueError("elements stored in another way than in memory")


def _is_compressed(codecs: list[Any], member: str) -> bool:
    match codecs:
        case []:
            return False
        case [dict(codec)] if codec.get(member) == "zstd":
            return True
    raise ValueError("compression other than zstd")


def _separator(found: Any) -> str:
    if found not in (".", "/"):
        raise ValueError("keys of chunks that are joined in another way")
    return found
