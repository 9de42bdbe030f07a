"""The safetensors format: 8 bytes of header length, a JSON header, then the leaves back to back.

The header is checked before it is used, and leaves are read on demand by a memory map. See
https://github.com/huggingface/safetensors for the format.
"""

import contextlib
import functools
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxguard.checkpoints import header, limits, refusals
from jaxguard.checkpoints.checkpoint import DTYPES, Checkpoint, LeafSpec
from jaxguard.errors import CheckpointError

_LENGTH_BYTES = 8
_ALIGNMENT = 8
_KEPT_HEADERS, _KEPT_BYTES = 64, 2**20  # headers that are remembered, and the largest of them
_METADATA = "__metadata__"
_PACKED_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I4": 4, "U4": 4, "C128": 128}
"""Bits of an element, for types that no leaf may have."""


def recognises(path: pathlib.Path) -> bool:
    """Whether the ninth byte of a file opens a JSON object."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(_LENGTH_BYTES + 1)[_LENGTH_BYTES:] == b"{"


def open_checkpoint(path: pathlib.Path, given: str) -> Checkpoint:
    """Checks the header of a safetensors file and maps its leaves.

    Args:
        path: a regular file; it must not be shortened in place while the arrays are in use.
        given: the path as the user wrote it.

    Returns:
        A checkpoint whose `read` returns read-only views of the file's pages.

    Raises:
        DamagedError: the header does not describe exactly the bytes behind it.
        HostileError: leaves on top of each other, or a key twice.
        UnsupportedError: no leaf.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > min(header.MAX_HEADER_BYTES, size - _LENGTH_BYTES):
            expected = f"a header length within the {size} bytes of the file (and {header.MAX_HEADER_BYTES})"
            raise refusals.damaged(given, expected, str(length))
        text = file.read(length)
        content = np.memmap(file, dtype=np.uint8, mode="r")
    leaves, first_bytes, metadata, left_out = _checked_again(text, size, given)

    def read_fn(names: Sequence[str]) -> dict[str, np.ndarray]:
        return {
            name: np.ndarray(leaves[name].shape, leaves[name].dtype, content.data, offset=first_bytes[name])
            for name in names
        }

    return Checkpoint(given, "safetensors", leaves, metadata, path, read_fn, first_bytes=first_bytes, left_out=left_out)


def write_checkpoint(path: pathlib.Path, leaves: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file; equal leaves and metadata give equal bytes, hence equal content hashes.

    The safetensors library is not used for it: it writes metadata in random order, and strided arrays wrongly.

    Args:
        path: file to create.
        leaves: `{leaf name: array}`, dtypes of the DTYPES table.
        metadata: stored under the format's `__metadata__`.

    Raises:
        CheckpointError: a leaf carries the name that the format keeps for itself.
    """
    if _METADATA in leaves:
        raise CheckpointError(
            f"{path}: expected names that safetensors does not reserve, got {_METADATA!r}; rename the leaf"
        )
    codes = {dtype: code for code, dtype in DTYPES.items()}
    fields: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    fields |= dict.fromkeys(sorted(leaves))
    by_width = sorted(leaves, key=lambda name: (-leaves[name].dtype.itemsize, name))  # so that every leaf is aligned
    position = 0
    for name in by_width:
        leaf = leaves[name]
        offsets = [position, position + leaf.nbytes]
        fields[name] = {
            "dtype": codes[leaf.dtype.newbyteorder("=")],
            "shape": leaf.shape,
            "data_offsets": offsets,
        }
        position = offsets[1]
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little"))
        file.write(text)
        for name in by_width:
            leaf = leaves[name]
            little_endian = leaf.astype(leaf.dtype.newbyteorder("<"), order="C", copy=False)
            file.write(little_endian.reshape(-1).view(np.uint8).data)


class _Header(NamedTuple):
    """What a header says, believed; read-only, since checkpoints with the same header share it."""

    leaves: Mapping[str, LeafSpec]
    first_bytes: Mapping[str, int]
    metadata: Mapping[str, str]
    left_out: Mapping[str, str]


def _checked(text: bytes, size: int, given: str = "") -> _Header:
    """Of a file of `size` bytes whose header is `text`."""
    fields = header.parse(text, given)
    metadata = _checked_metadata(fields.pop(_METADATA, {}), given)
    if not fields:
        raise refusals.unsupported(given, "at least one leaf", "a file without any", "save the model's weights")
    start = _LENGTH_BYTES + len(text)
    leaves: dict[str, LeafSpec] = {}
    left_out: dict[str, str] = {}
    spans: dict[str, tuple[int, int]] = {}
    for name, entry in fields.items():
        found, spans[name] = _checked_entry(name, entry, given)
        if isinstance(found, str):
            left_out[name] = found
        else:
            leaves[name] = found
    _check_cover(spans, size - start, given)
    first_bytes = {name: start + first for name, (first, _) in spans.items() if name in leaves}
    return _Header(
        MappingProxyType(leaves),
        MappingProxyType(first_bytes),
        MappingProxyType(metadata),
        MappingProxyType(left_out),
    )


_remembered = functools.lru_cache(maxsize=_KEPT_HEADERS)(_checked)


def _checked_again(text: bytes, size: int, given: str) -> _Header:
    """`_checked`, done once for all files of a store that have the same header."""
    if len(text) <= _KEPT_BYTES:
        with contextlib.suppress(CheckpointError):  # whose message must name this file
            return _remembered(text, size)
    return _checked(text, size, given)


def _checked_metadata(found: Any, given: str) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise refusals.damaged(given, f"text values in {_METADATA}", header.shown(found))
    return found


def _checked_entry(name: str, entry: Any, given: str) -> tuple[LeafSpec | str, tuple[int, int]]:
    """One leaf of the header, believed: its spec, or why it has none, and its first and past-the-last byte."""

    def refuse(expected: str, found: Any) -> CheckpointError:
        return refusals.damaged(f"{given}: leaf {header.shown(name)}", expected, header.shown(found))

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refuse("dtype, shape and data_offsets", entry)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise refuse("a dtype that is text", dtype)
    if not limits.are_sizes(shape) or len(shape) > limits.MAX_AXES:
        raise refuse(f"a shape of at most {limits.MAX_AXES} sizes", shape)
    if not limits.fits_memory(shape):
        raise refuse("a shape that fits an address space", shape)
    if not limits.are_sizes(offsets) or len(offsets) != 2:
        raise refuse("data_offsets [first byte, past the last byte]", offsets)
    first, end = offsets
    if dtype not in DTYPES:
        bits = _PACKED_BITS.get(dtype)
        expected = end - first if bits is None else -(-math.prod(shape) * bits // 8)
        if end - first != expected or end < first:
            raise refuse(f"data_offsets that span the {expected} bytes of {dtype} {header.shown(shape)}", offsets)
        return f"an array of element type {header.shown(dtype)}{refusals.NOT_SUPPORTED}", (first, end)
    spec = LeafSpec(tuple(shape), DTYPES[dtype])
    if end - first != spec.nbytes:
        raise refuse(f"data_offsets that span the {spec.nbytes} bytes of {dtype} {header.shown(shape)}", offsets)
    return spec, (first, end)


def _check_cover(spans: Mapping[str, tuple[int, int]], size: int, given: str) -> None:
    """The leaves, in the order of their bytes, must touch and fill the file: no overlap, no gap, no tail."""
    position = 0
    for name, (first, end) in sorted(spans.items(), key=lambda item: item[1]):
        where = f"{given}: leaf {header.shown(name)}"
        if end > size:
            expected = f"data_offsets inside the {size} bytes behind the header"
            raise refusals.damaged(where, expected, f"[{first}, {header.shown(end)}]")
        if first < position:
            raise refusals.hostile(where, f"to start at byte {position}", f"{first}, on top of the leaf before it")
        if first > position:
            expected = f"to start at byte {position}"
            raise refusals.damaged(where, expected, f"{first}, behind bytes that belong to no leaf")
        position = end
    if position != size:
        expected = f"the leaves to fill the {size} bytes behind the header"
        raise refusals.damaged(given, expected, f"{size - position} bytes that belong to no leaf")
