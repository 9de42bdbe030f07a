"""Bytes that a program compiled for a TPU moves to and from its main memory (HBM), read off the compiler's own text.

XLA's cost analysis counts what operations read and write wherever it lies. On a TPU much of it lies in the vector
memory beside the units, which the text marks `S(1)`: a kernel that is copied there once and used ten times is read from
HBM once. Arrays count with the padding of their tiles. Loops count as often as they run where the compiler knows it,
else once; of the branches of a condition the dearest counts. Slices count by what they cut out.
"""

import math
import re
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([\d,]*)\](?:\{([\d,]*)((?::[^}]*)?)\})?")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)(?=\s[\w\-]+\()|\S+) ([\w\-]+)\((.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id"}
_SLICES = {"dynamic-slice", "slice", "gather"}


class Line(NamedTuple):
    """One instruction: name, type, operation, names of its operands, and the whole text."""

    name: str
    type: str
    operation: str
    operands: tuple[str, ...]
    text: str
    is_root: bool


def hbm_bytes(text: str) -> float:
    """Of a compiled program.

    Args:
        text: its `as_text()`.

    Returns:
        Bytes read and written.
    """
    computations, entry = _parsed(text)
    return _of(computations[entry], computations)


def in_hbm(kind: str) -> float:
    """Bytes of a type that lie in HBM, with the padding of their tiles; 0 for those in vector memory."""
    total = 0.0
    for element, dims, order, rest in _ARRAY.findall(kind):
        if re.search(r"S\(\d\)", rest):
            continue
        sizes = [int(size) for size in dims.split(",") if size]
        tile = re.search(r"T\(([\d,]*)\)", rest)
        if tile and order:
            # The first numbers of a layout are the minor axes; the tile's numbers are given major first.
            minor = [int(axis) for axis in order.split(",")]
            for axis, edge in zip(minor, reversed([int(edge) for edge in tile[1].split(",")]), strict=False):
                sizes[axis] = -(-sizes[axis] // edge) * edge
        total += math.prod(sizes) * _BYTES.get(element, 4)
    return total


def _parsed(text: str) -> tuple[dict[str, list[Line]], str]:
    computations: dict[str, list[Line]] = {}
    entry = current = ""
    for row in text.splitlines():
        head = _HEAD.match(row)
        if head:
            current = head[2]
            entry = current if head[1] else entry
            computations[current] = []
            continue
        line = _LINE.match(row)
        if line and current:
            operands = tuple(re.findall(r"%([\w.\-]+)", _arguments(line[5])))
            computations[current].append(Line(line[2], line[3], line[4], operands, row, bool(line[1])))
    return computations, entry


def _arguments(text: str) -> str:
    """What stands before the bracket that closes."""
    depth = 1
    for k, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return text[:k]
    return text


def _of(lines: list[Line], computations: dict[str, list[Line]]) -> float:
    types = {line.name: line.type for line in lines}
    return sum(_moved(line, types, computations) for line in lines)


def _moved(line: Line, types: dict[str, str], computations: dict[str, list[Line]]) -> float:
    operation = line.operation
    operands = [types.get(name, "") for name in line.operands]
    if operation in _FREE or operation.endswith("-done"):
        return 0.0
    if operation in ("while", "call", "conditional"):
        return _inside(line, computations)
    if operation == "fusion":
        return _fused(line, operands, computations[_called(line, "calls")[0]])
    if operation in ("slice-start", "copy-start"):
        return _copied(line)
    if operation in _SLICES or operation == "dynamic-update-slice":
        return _sliced(line, operands)
    return sum(map(in_hbm, operands)) + in_hbm(line.type)


def _sliced(line: Line, operands: list[str]) -> float:
    """Of a slice that is cut out, or put in place: what it is cut from or put into counts by the slice."""
    if line.operation in _SLICES:
        return _logical(line.type) * (in_hbm(operands[0]) > 0) + in_hbm(line.type)
    return in_hbm(operands[1]) + _logical(operands[1]) * (in_hbm(line.type) > 0)


def _copied(line: Line) -> float:
    """Of a copy between memories that runs beside other operations."""
    if line.operation == "copy-start":  # its type: copy, whole, flag
        return in_hbm(line.type)
    part = line.type.rsplit("), ", 1)[-1].rsplit(", s32[]", 1)[0]  # of: (whole), part, flag
    return _logical(part) + in_hbm(part)


def _inside(line: Line, computations: dict[str, list[Line]]) -> float:
    """Of what a loop, a condition or a call runs."""
    if line.operation == "while":
        return (_turns(line, computations) or 1) * _of(computations[_called(line, "body")[0]], computations)
    names = _called(line, "to_apply") if line.operation == "call" else _branches(line)
    return max(_of(computations[name], computations) for name in names)


def _turns(loop: Line, computations: dict[str, list[Line]]) -> int:
    """Of a loop that counts from 0 up to a constant, as `scan` and `fori_loop` make them; 0 where it is not known."""
    condition = computations[_called(loop, "condition")[0]]
    root = next(line for line in condition if line.is_root)
    if root.operation != "compare" or "direction=LT" not in root.text:
        return 0
    for line in condition:
        number = re.search(r"constant\((\d+)\)", line.text)
        if line.name == root.operands[1] and number:
            return int(number[1])
    return 0


def unknown_loops(text: str) -> int:
    """Loops whose length is known only when they run."""
    computations, _ = _parsed(text)
    loops = [line for lines in computations.values() for line in lines if line.operation == "while"]
    return sum(not _turns(loop, computations) for loop in loops)


def _fused(line: Line, operands: list[str], inside: list[Line]) -> float:
    """Operands that are only sliced, and results that are updated in place, count by the slice."""
    types = {one.name: one.type for one in inside}
    total = 0.0
    for one in inside:
        if one.operation != "parameter":
            continue
        number = int(re.search(r"parameter\((\d+)\)", one.text)[1])  # type: ignore[index]
        if not in_hbm(operands[number]):
            continue
        users = [other for other in inside if one.name in other.operands]
        if users and all(user.operation in _SLICES and user.operands[0] == one.name for user in users):
            total += sum(_logical(user.type) for user in users)
        elif not (users and all(_updates(user, one.name) for user in users)):
            total += in_hbm(operands[number])
    root = next(one for one in inside if one.is_root)
    if root.operation == "dynamic-update-slice" and in_hbm(line.type):
        return total + _logical(types[root.operands[1]])
    return total + in_hbm(line.type)


def _updates(user: Line, name: str) -> bool:
    return user.operation == "dynamic-update-slice" and user.operands[0] == name


def _logical(kind: str) -> float:
    """Bytes of a type wherever it lies."""
    return in_hbm(re.sub(r"S\(\d\)", "", kind))


def _called(line: Line, how: str) -> list[str]:
    return re.findall(rf"{how}=%?([\w.\-]+)", line.text)


def _branches(line: Line) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", line.text)
    if listed:
        return re.findall(r"%?([\w.\-]+)", listed[1])
    return _called(line, "true_computation") + _called(line, "false_computation")
