"""Messages of protocol buffers told apart by the fields at their top level; contents are passed over."""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from jaxguard.checkpoints import mapping

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_FIELDS = 256
_MAX_VARINT = 10
_MAX_PREVIEW = 512

_ONNX = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
_GRAPH, _LAYERS, _NEURAL_NETWORK = 7, {2, 100}, 200


class Field(NamedTuple):
    """One field: its number, its wire type, and the start of its content."""

    number: int
    wire: int
    content: bytes


def kind_of(path: pathlib.Path) -> str:
    """`onnx`, `coreml`, `saved_model`, `graph_def`, `caffe` or `mindspore`; empty where a file is none of them.

    Args:
        path: a regular file.
    """
    content = mapping.mapped(path).data
    if len(content) < 2 or content[0] not in (0x08, 0x0A):
        return ""
    try:
        found = list(fields(content))
    except ValueError:
        return ""
    numbers = {field.number for field in found}
    if found[0].wire == _VARINT:
        if {1, _GRAPH} <= numbers <= _ONNX:
            return "onnx"
        if max(numbers) >= _NEURAL_NETWORK:
            return "coreml"
        return "saved_model" if numbers == {1, 2} and _is_text_free(found) else ""
    return _of_named(found, numbers)


def _of_named(found: list[Field], numbers: set[int]) -> str:
    """Messages whose first field is text, or a message that begins with its name."""
    first = found[0].content
    if _is_text(first) and numbers & _LAYERS and numbers != {1}:
        return "caffe"
    try:
        inner = list(fields(memoryview(first), is_whole=False))
    except ValueError:
        return ""
    if len(inner) < 2 or inner[0].number != 1 or inner[0].wire != _BYTES or not _is_text(inner[0].content):
        return ""
    second = inner[1]
    if second.number != 2 or second.wire != _BYTES:
        return ""
    if _is_text(second.content):
        return "graph_def"
    return "mindspore" if any(kind in second.content for kind in (b"Float", b"Int", b"BFloat", b"Bool")) else ""


def fields(content: memoryview, *, is_whole: bool = True) -> Iterator[Field]:
    """The first fields of a message.

    Args:
        content: of the message.
        is_whole: whether a field must end inside of it.

    Raises:
        ValueError: it is no message, or ends early.
    """
    position = 0
    for _ in range(_MAX_FIELDS):
        if position >= len(content):
            return
        tag, position = _varint(content, position)
        number, wire = tag >> 3, tag & 7
        if number == 0 or wire not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
            raise ValueError("no field")
        start = position
        if wire == _VARINT:
            _, position = _varint(content, position)
        elif wire == _BYTES:
            length, start = _varint(content, position)
            position = start + length
        else:
            position += 8 if wire == _FIXED64 else 4
        if position > len(content) and is_whole:
            raise ValueError("a field beyond the end")
        yield Field(number, wire, bytes(content[start : min(position, start + _MAX_PREVIEW)]))


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(_MAX_VARINT):
        if position >= len(content):
            break
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, position
    raise ValueError("no number")


def _is_text(content: bytes) -> bool:
    return bool(content) and content.isascii() and content.decode().isprintable()


def _is_text_free(found: list[Field]) -> bool:
    """Whether the second field of a SavedModel is a message, as that of an ONNX model cut short is not."""
    return not any(_is_text(field.content) for field in found if field.number == 2)
