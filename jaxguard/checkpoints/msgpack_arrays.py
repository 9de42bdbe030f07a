"""Flax's arrays in MessagePack: (shape, dtype name, bytes) in an extension, or a map of such chunks."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxguard.checkpoints import header, limits, refusals
from jaxguard.checkpoints.checkpoint import DTYPES, LeafSpec
from jaxguard.checkpoints.msgpack_stream import Kind, Span, Stream, Token
from jaxguard.errors import DamagedError

ARRAY, COMPLEX, SCALAR = 1, 2, 3
"""Types of Flax's extensions; a scalar is an array of no axes."""

_DTYPES = {dtype.name: dtype for dtype in DTYPES.values()}


class Stored(NamedTuple):
    """An array of the file: its spec, and the bytes of each of its chunks."""

    spec: LeafSpec
    chunks: tuple[Span, ...]


def parsed(stream: Stream, token: Token, name: str) -> Stored | str:
    """The header in the payload of an array extension, believed only where it describes the bytes behind it.

    Returns:
        The array, or what it is where its elements are of a type that is not supported.
    """
    payload = stream.inside(token)
    parts = payload.next()
    axes = payload.next()
    if parts != (Kind.ARRAY, 3) or axes.kind is not Kind.ARRAY or axes.value > limits.MAX_AXES:
        raise damage(stream, name, "a shape, a dtype and bytes", "something else")
    sizes = [payload.next() for _ in range(axes.value)]
    shape = tuple(size.value if size.kind is Kind.PLAIN else -1 for size in sizes)
    dtype = payload.text(payload.next())
    data = payload.next()
    payload.require_end()
    if dtype not in _DTYPES:
        return f"an array of element type {header.shown(dtype)}{refusals.NOT_SUPPORTED}"
    if not limits.are_sizes(shape) or not limits.fits_memory(shape):
        raise damage(stream, name, f"a shape of at most {limits.MAX_AXES} sizes", header.shown(shape))
    spec = LeafSpec(shape, _DTYPES[dtype])
    if data.kind not in (Kind.BYTES, Kind.TEXT) or data.value.end - data.value.start != spec.nbytes:
        raise damage(stream, name, f"the {spec.nbytes} bytes of {dtype} {header.shown(shape)}", "another number")
    return Stored(spec, (data.value,))


def joined(stream: Stream, parts: Mapping[str, Token], name: str) -> Stored | str:
    """A chunked array: `shape/0`, `shape/1`, ... and `chunks/0`, `chunks/1`, ..."""
    axes = {key: token.value for key, token in parts.items() if key.startswith("shape/")}
    chunks = {key: token for key, token in parts.items() if key.startswith("chunks/")}
    shape = tuple(axes.get(f"shape/{axis}", -1) for axis in range(len(axes)))
    tokens = [chunks.get(f"chunks/{index}") for index in range(len(chunks))]
    parsed_chunks = [
        parsed(stream, token, name)
        for token in tokens
        if token is not None and token.kind is Kind.EXTENSION and token.value.code == ARRAY
    ]
    if problem := next((chunk for chunk in parsed_chunks if isinstance(chunk, str)), ""):
        return problem
    arrays = [chunk for chunk in parsed_chunks if isinstance(chunk, Stored)]
    if len(parts) != 1 + len(axes) + len(chunks) or len(arrays) != len(chunks) or not arrays:
        raise damage(stream, name, "a chunked array's shape and numbered chunks", "other entries")
    if not limits.are_sizes(shape) or not limits.fits_memory(shape):
        raise damage(stream, name, f"a shape of at most {limits.MAX_AXES} sizes", header.shown(shape))
    spec = LeafSpec(shape, arrays[0].spec.dtype)
    if len({array.spec.dtype for array in arrays}) > 1 or sum(array.spec.nbytes for array in arrays) != spec.nbytes:
        raise damage(stream, name, f"chunks of one dtype that fill {header.shown(shape)}", "others")
    return Stored(spec, tuple(span for array in arrays for span in array.chunks))


def scalar_text(stream: Stream, token: Token, name: str) -> str:
    """The number in a scalar extension, as text.

    Raises:
        DamagedError: it is no scalar.
    """
    stored = parsed(stream, token, name)
    if isinstance(stored, str):
        return stored
    if stored.spec.shape:
        raise damage(stream, name, "a scalar", f"shape {stored.spec.shape}")
    return str(np.frombuffer(stream.bytes(stored.chunks[0]), stored.spec.dtype)[0])


def complex_text(stream: Stream, token: Token, name: str) -> str:
    """The number in a complex extension, as text.

    Raises:
        DamagedError: it is no pair of real numbers.
    """
    payload = stream.inside(token)
    count, real, imaginary = payload.next(), payload.next(), payload.next()
    payload.require_end()
    if count != (Kind.ARRAY, 2) or not isinstance(real.value, float) or not isinstance(imaginary.value, float):
        raise damage(stream, name, "two real numbers", "something else")
    return str(complex(real.value, imaginary.value))


def read(content: np.ndarray, stored: Stored) -> np.ndarray:
    """The array: a view of `content`, or a copy where it is chunked."""
    shape, dtype = stored.spec.shape, stored.spec.dtype
    # Views of the mapped file; only an array in several chunks has to be copied together.
    views = [content[start:end].view(np.ndarray).view(dtype) for start, end, _ in stored.chunks]
    return (views[0] if len(views) == 1 else np.concatenate(views)).reshape(shape)


def damage(stream: Stream, name: str, expected: str, found: str) -> DamagedError:
    """The error to raise about one leaf."""
    return refusals.damaged(f"{stream.given}: leaf {header.shown(name)}", expected, found)
