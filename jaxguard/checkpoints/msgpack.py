"""Flax msgpack: `flax.serialization.to_bytes`, and the `checkpoint_N` files of `flax.training.checkpoints`.

A file is one nested map; arrays are extensions that hold (shape, dtype name, bytes), and arrays above a gigabyte are
maps of chunks. Arrays are leaves; numbers and text are metadata. Metadata that has no place in Flax's own files is
written under the top-level key `__metadata__`, which `flax.serialization.from_bytes` passes over where its target is a
dictionary.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxguard.checkpoints import header, limits, mapping, msgpack_arrays, refusals, trees
from jaxguard.checkpoints.checkpoint import Checkpoint
from jaxguard.checkpoints.msgpack_stream import Kind, Stream, Token
from jaxguard.errors import CheckpointError

_CHUNKED = "__msgpack_chunked_array__"
_CHUNK_BYTES = 2**30
_METADATA = "__metadata__"
_MAX_TEXT = 2**20
_STEP_NAME = re.compile(r"checkpoint_(\d{1,18})")


def recognises(path: pathlib.Path) -> bool:
    """True for a file that opens a map with a text key, and for a folder with such `checkpoint_N` files."""
    if path.is_dir():
        return bool(_steps(path))
    with path.open("rb") as file:
        start = file.read(6)
    if not start:
        return False
    header_bytes = {0xDE: 3, 0xDF: 5}.get(start[0], 1 if 0x81 <= start[0] <= 0x8F else 0)
    key = start[header_bytes : header_bytes + 1]
    return bool(header_bytes and key) and (0xA0 <= key[0] <= 0xBF or 0xD9 <= key[0] <= 0xDB)


def step_file(run: pathlib.Path, step: int) -> pathlib.Path | None:
    """The file `checkpoint_N` of one step; None where it is not there."""
    return _steps(run).get(step) if run.is_dir() else None


def open_checkpoint(path: pathlib.Path, given: str) -> Checkpoint:
    """Walks the headers of a msgpack file and maps its arrays, without reading them.

    Args:
        path: a file, or a folder of `checkpoint_N` files (then the latest); it must not be shortened in place.
        given: the path as the user wrote it.

    Returns:
        A checkpoint whose `read` returns read-only views of the file's pages, or a copy where an array is chunked.

    Raises:
        DamagedError: not MessagePack, or an array that is not what it announces.
        HostileError: nested too deeply, or a name twice.
        UnsupportedError: no array, or an extension that is not Flax's.
    """
    if path.is_dir():
        steps = _steps(path)
        path = steps[max(steps)]
    content = mapping.mapped(path)
    stream = Stream(content.data, given)
    tokens: dict[str, Token] = {}
    _collect(stream, tokens, (), frozenset({Kind.MAP}))
    stream.require_end()
    stored, metadata, left_out = _sorted_out(stream, tokens)
    if not stored and not left_out:
        raise refusals.unsupported(given, "at least one array", "a file without any", "save the model's variables")
    leaves = {name: array.spec for name, array in stored.items()}

    def read_fn(names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: msgpack_arrays.read(content, stored[name]) for name in names}

    return Checkpoint(given, "msgpack", leaves, metadata, path, read_fn, left_out=left_out)


def write_checkpoint(path: pathlib.Path, leaves: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes what `flax.serialization.msgpack_serialize` would write for the nested leaves.

    Args:
        path: file to create.
        leaves: `{leaf name: array}`; nested at `/`.
        metadata: text, under the key `__metadata__`; without any, the key is not there.

    Raises:
        CheckpointError: a name is a leaf and a group, or carries the key that is kept for metadata.
    """
    import msgpack

    tree = trees.unflatten(leaves)
    if _METADATA in tree:
        raise CheckpointError(f"{path}: expected names other than {_METADATA!r}, got it; rename the leaf")
    if metadata:
        tree[_METADATA] = dict(sorted(metadata.items()))
    packer = msgpack.Packer()

    def packed_array(array: np.ndarray) -> bytes:
        payload = packer.pack((array.shape, array.dtype.name, array.tobytes()))
        return packer.pack(msgpack.ExtType(msgpack_arrays.ARRAY, payload))

    with path.open("wb") as file:

        def write(node: Any) -> None:
            if isinstance(node, dict):
                file.write(packer.pack_map_header(len(node)))
                for key, child in node.items():
                    file.write(packer.pack(key))
                    write(child)
            elif isinstance(node, np.ndarray):
                array = node.astype(node.dtype.newbyteorder("="), copy=False)
                if array.nbytes <= _CHUNK_BYTES:
                    file.write(packed_array(array))
                else:
                    write(_chunked(array))
            else:
                file.write(packer.pack(node))

        write(tree)


def _collect(
    stream: Stream, tokens: dict[str, Token], path: tuple[str, ...], kinds: frozenset[Kind] = frozenset(Kind)
) -> None:
    """Adds what comes next to `tokens`, under its name; maps and arrays entry by entry."""
    token = stream.next()
    if token.kind not in kinds:
        raise stream.damage("a map", token.kind.value)
    if token.kind not in (Kind.MAP, Kind.ARRAY):
        name = trees.SEPARATOR.join(path)
        if name in tokens:
            raise stream.trick(f"one entry of the name {header.shown(name)}", "two, of which readers take either")
        if len(tokens) >= limits.MAX_LEAVES or len(name) > limits.MAX_NAME_LENGTH:
            raise stream.trick(
                f"at most {limits.MAX_LEAVES} entries, with names of {limits.MAX_NAME_LENGTH} characters", "more"
            )
        tokens[name] = token
        return
    if len(path) >= limits.MAX_DEPTH:
        raise stream.trick(f"at most {limits.MAX_DEPTH} levels", "more")
    for index in range(token.value):
        key = _key(stream, stream.next()) if token.kind is Kind.MAP else str(index)
        _collect(stream, tokens, (*path, key))


def _key(stream: Stream, token: Token) -> str:
    if token.kind is Kind.PLAIN and type(token.value) is int:  # the lists of an NNX state
        return str(token.value)
    return stream.text(token)


def _sorted_out(
    stream: Stream, tokens: Mapping[str, Token]
) -> tuple[dict[str, msgpack_arrays.Stored], dict[str, str], dict[str, str]]:
    """Arrays by name, chunked ones put together; everything else as text; and arrays that are not supported."""
    stored: dict[str, msgpack_arrays.Stored] = {}
    metadata: dict[str, str] = {}
    left_out: dict[str, str] = {}
    chunked: dict[str, dict[str, Token]] = {
        name.removesuffix(_CHUNKED): {} for name in tokens if name.split(trees.SEPARATOR)[-1] == _CHUNKED
    }
    for name, token in tokens.items():
        owner = next((prefix for prefix in _prefixes(name) if prefix in chunked), None) if chunked else None
        if owner is not None:
            chunked[owner][name.removeprefix(owner)] = token
        elif token.kind is Kind.EXTENSION and token.value.code == msgpack_arrays.ARRAY:
            array = msgpack_arrays.parsed(stream, token, name)
            if isinstance(array, str):
                left_out[name] = array
            else:
                stored[name] = array
        elif name.startswith(f"{_METADATA}{trees.SEPARATOR}"):
            metadata[name.removeprefix(f"{_METADATA}{trees.SEPARATOR}")] = _text(stream, token, name)
        elif token.value is not None:
            metadata[name] = _text(stream, token, name)
    for prefix, parts in chunked.items():
        name = prefix.removesuffix(trees.SEPARATOR)
        if name in stored:
            raise stream.trick(f"one entry of the name {header.shown(name)}", "two, of which readers take either")
        array = msgpack_arrays.joined(stream, parts, name)
        if isinstance(array, str):
            left_out[name] = array
        else:
            stored[name] = array
    return stored, metadata, left_out


def _prefixes(name: str) -> list[str]:
    parts = name.split(trees.SEPARATOR)
    return ["".join(f"{part}{trees.SEPARATOR}" for part in parts[:depth]) for depth in range(len(parts))]


def _text(stream: Stream, token: Token, name: str) -> str:
    if token.kind is Kind.TEXT:
        return stream.text(token, _MAX_TEXT)
    if token.kind is Kind.BYTES:
        return f"{token.value.end - token.value.start} bytes"
    if token.kind is Kind.PLAIN:
        return str(token.value)
    if token.value.code == msgpack_arrays.SCALAR:
        return msgpack_arrays.scalar_text(stream, token, name)
    if token.value.code == msgpack_arrays.COMPLEX:
        return msgpack_arrays.complex_text(stream, token, name)
    where, known = f"{stream.given}: leaf {header.shown(name)}", "an array, a scalar or a complex number"
    raise refusals.unsupported(where, known, f"the MessagePack extension {token.value.code}")


def _chunked(array: np.ndarray) -> dict[str, Any]:
    flat = array.reshape(-1)
    length = _CHUNK_BYTES // array.itemsize
    return {
        _CHUNKED: True,
        "shape": {str(axis): size for axis, size in enumerate(array.shape)},
        "chunks": {str(n): flat[first : first + length] for n, first in enumerate(range(0, flat.size, length))},
    }


def _steps(run: pathlib.Path) -> dict[int, pathlib.Path]:
    named = {child: _STEP_NAME.fullmatch(child.name) for child in run.iterdir() if child.is_file()}
    return {int(match[1]): child for child, match in named.items() if match and recognises(child)}
