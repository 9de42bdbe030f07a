"""Pickles read as what they are, programs of a small stack machine, and never run as such.

The opcodes and the readers of their arguments are those of the standard library's `pickletools`, which executes
nothing; arguments that are lines of text are read as `pickle` does, which takes more of them. The machine rebuilds
plain containers and whatever an allow-list of builders knows; every other global becomes a `Record`, inert data that
remembers its name. Nothing is imported, looked up or called by a name from the file.
"""

import codecs
import mmap
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxguard.checkpoints import pickle_machine, refusals
from jaxguard.checkpoints.pickle_machine import Machine, PersistentFn
from jaxguard.checkpoints.pickle_objects import Builders

MAX_PICKLE_BYTES = 2**28
_VARIABLE, _STOP = -1, -2  # in place of the width of an argument

_EXHAUSTED = "a pickle exhausted before its STOP"
_BROKEN = (
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, EOFError, Warning),
    struct.error,
)
"""The readers of pickletools let the errors of codecs through; builders raise what a wrong argument raises."""


@dataclass(frozen=True, eq=False)
class Program:
    """What a pickle describes.

    Attributes:
        result: the object on top of the stack; sets come back as lists, so that nothing is hashed.
        foreign: names outside of the allow-list, in order of appearance.
        end: position behind the STOP.
    """

    result: Any
    foreign: tuple[str, ...]
    end: int


def read(
    content: bytes | mmap.mmap,
    given: str,
    builders: Builders,
    persistent_fn: PersistentFn | None = None,
    *,
    start: int = 0,
) -> Program:
    r"""Rebuilds the object that one pickle describes, up to its STOP.

    Args:
        content: bytes in memory or a memory map; it has to be bounded by the caller.
        given: file the bytes came from, for messages.
        builders: the allow-list; a value with a method `build` gets the state the pickle sets on it.
        persistent_fn: what persistent ids mean; by default they are refused.
        start: position of the pickle.

    Raises:
        DamagedError: no pickle, or one that breaks the stack machine's rules.
        HostileError: one that exceeds its limits.
        UnsupportedError: an opcode or a storage that is not read.

    >>> read(b"(dp0\nVlr\np1\nF0.5\ns.", "demo", {}).result
    {'lr': 0.5}
    """
    machine = Machine(content, given, builders, persistent_fn)
    end = run(machine, start)
    return Program(machine.result, tuple(machine.foreign), end)


def run(machine: Machine, start: int) -> int:
    """Lets a machine act on one opcode after the other, up to the STOP, and returns the position behind that.

    Raises:
        CheckpointError: of one of the kinds that `read` raises.
    """
    steps, content, given = _STEPS, machine.content, machine.given
    size = len(content)
    at = position = start
    try:
        for _ in range(machine.max_opcodes):
            at = machine.at = position
            width, act = steps[content[at]]
            position = at + 1 + width
            if width == 0:
                act(machine)
            elif width == 1:
                act(machine, content[at + 1])
            elif width > 0:
                if position > size:
                    raise EOFError(_EXHAUSTED)
                act(machine, int.from_bytes(content[at + 1 : position], "little"))
            elif width == _VARIABLE:
                position = act(machine, at + 1)
            else:
                machine.result = machine.pop()
                return at + 1
        raise refusals.Trick(f"more than {machine.max_opcodes} opcodes")
    except _BROKEN as error:
        found = str(error) or type(error).__name__
        if isinstance(error, KeyError):
            found = f"the unknown memo {error}"
        elif isinstance(error, IndexError) and position >= size:
            found = _EXHAUSTED
        expected = "a pickle of tensors and containers"
        raise refusals.because(error, given, expected, f"{found[:200]} at byte {at}") from error


_VALUES = (
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
)
_ACTS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_VALUES, lambda m, value: m.stack.append(value)),
    **dict.fromkeys(("INT", "LONG", "LONG1", "LONG4"), lambda m, value: m.integer(value)),
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, number: None),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), Machine.memoise),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, index: m.stack.append(m.memo[index])),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), lambda m, code: m.stack.append(m.extension(code))),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda m: m.stack.append([])),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda m: m.stack.append(m.since_mark())),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m: m.extend(m.since_mark())),
    "REDUCE": Machine.reduce,
    "NEWOBJ": lambda m: m.new_object(),
    "BININT": lambda m, value: m.stack.append(value - 2**32 if value >= 2**31 else value),
    "BINUNICODE": lambda m, position: m.text(position),
    "BINBYTES": lambda m, position: m.long_bytes(position, 4),
    "BINBYTES8": lambda m, position: m.long_bytes(position, 8),
    "BYTEARRAY8": Machine.byte_array,
    "NONE": lambda m: m.stack.append(None),
    "NEWTRUE": lambda m: m.stack.append(True),
    "NEWFALSE": lambda m: m.stack.append(False),
    "EMPTY_DICT": lambda m: m.stack.append({}),
    "EMPTY_TUPLE": lambda m: m.stack.append(()),
    "MARK": lambda m: m.marks.append(len(m.stack)),
    "POP": Machine.discard,
    "POP_MARK": Machine.since_mark,
    "DUP": lambda m: m.stack.append(m.top()),
    "TUPLE1": lambda m: m.stack.append((m.pop(),)),
    "TUPLE2": lambda m: m.stack.append(tuple(m.last(2))),
    "TUPLE3": lambda m: m.stack.append(tuple(m.last(3))),
    "TUPLE": lambda m: m.stack.append(tuple(m.since_mark())),
    "DICT": lambda m: m.stack.append(pickle_machine.entries(m.since_mark())),
    "APPEND": lambda m: m.extend(m.last(1)),
    "SETITEM": lambda m: m.update(m.last(2)),
    "SETITEMS": lambda m: m.update(m.since_mark()),
    "PUT": Machine.memoise_anywhere,
    "MEMOIZE": lambda m: m.memoise(len(m.memo)),
    "GLOBAL": lambda m, names: m.stack.append(m.found_global(*names)),
    "STACK_GLOBAL": lambda m: m.stack.append(m.found_global(*m.last(2))),
    "NEWOBJ_EX": lambda m: m.stack.append(m.called_with_names(*m.last(3))),
    "OBJ": lambda m: m.stack.append(m.called_at_mark(*m.since_mark())),
    "INST": lambda m, names: m.stack.append(m.called(m.found_global(*names), tuple(m.since_mark()))),
    "BUILD": lambda m: m.build(m.pop()),
    "BINPERSID": lambda m: m.stack.append(m.persistent(m.pop())),
    "NEXT_BUFFER": lambda m: m.buffer(),
    "READONLY_BUFFER": lambda m: m.read_only(),
    "PERSID": lambda m, identity: m.persistent_text(identity),
    "STOP": Machine.pop,
}


def _line(machine: Machine, position: int) -> tuple[bytes, int]:
    """The text up to the end of a line, and the position behind that."""
    end = machine.content.find(b"\n", position)
    if end < 0:
        raise EOFError(_EXHAUSTED)
    return bytes(machine.content[position:end]), end + 1


def _whole_number(line: bytes) -> int | bool:
    if line in (b"00", b"01"):  # protocol 1 has no other way to write them
        return line == b"01"
    return int(line.removesuffix(b"L"), 0)


def _quoted(line: bytes) -> str:
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
        raise ValueError("text without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")  # type: ignore[attr-defined]  # as pickletools


_LINES: dict[str, Callable[[bytes], Any]] = {
    **dict.fromkeys(("INT", "LONG"), _whole_number),
    **dict.fromkeys(("GET", "PUT"), int),
    "FLOAT": float,
    "STRING": _quoted,
    "UNICODE": lambda line: line.decode("raw-unicode-escape"),
    "PERSID": lambda line: line.decode("ascii"),
}
"""What is made of an argument that is a line of text; raises ValueError."""


def _step(opcode: pickletools.OpcodeInfo) -> tuple[int, Callable[..., Any]]:
    """Width of an opcode's argument, and what to do with it.

    Where the width varies, that is given the argument's position, and returns its end.
    """
    act, argument = _ACTS[opcode.name], opcode.arg
    if opcode.name == "STOP":
        return _STOP, act
    if argument is None:
        return 0, act
    if opcode.name in ("BINUNICODE", "BINBYTES", "BINBYTES8", "BYTEARRAY8"):
        return _VARIABLE, act
    if argument.n > 0 and argument.name != "float8":
        return argument.n, act

    if opcode.name in ("GLOBAL", "INST", *_LINES):
        return _VARIABLE, _step_of_lines(opcode.name, act)

    def act_at(machine: Machine, position: int) -> int:
        machine.source.seek(position)
        act(machine, argument.reader(machine.source))
        return machine.source.tell()

    return _VARIABLE, act_at


def _step_of_lines(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
    """What to do with an opcode whose argument is one or two lines of text."""

    def act_on_names(machine: Machine, position: int) -> int:
        module, position = _line(machine, position)
        name, position = _line(machine, position)
        act(machine, (module.decode("utf-8"), name.decode("utf-8")))
        return position

    def act_on_line(machine: Machine, position: int) -> int:
        line, position = _line(machine, position)
        try:
            value = _LINES[name](line)
        except ValueError as error:
            value = machine.unread(error)
        act(machine, value)
        return position

    return act_on_line if name in _LINES else act_on_names


def _unknown(machine: Machine) -> None:
    del machine
    raise ValueError("an unknown opcode")


_KNOWN = {ord(opcode.code): _step(opcode) for opcode in pickletools.opcodes}
_STEPS = [_KNOWN.get(code, (0, _unknown)) for code in range(256)]
