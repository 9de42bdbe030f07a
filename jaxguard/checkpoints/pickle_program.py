"""Pickles read as what they are, programs of a small stack machine, and never run as such.

The standard library's `pickletools` splits the bytes into opcodes without executing anything; the machine here
rebuilds plain containers and whatever an allow-list of builders knows. Every other global becomes a `Record`:
inert data that remembers its name. Nothing is imported, looked up or called by a name from the file.
"""

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from jaxguard.checkpoints import header
from jaxguard.checkpoints.pickle_danger import runs_code
from jaxguard.checkpoints.pickle_objects import Builders, Global, Record, entry_key
from jaxguard.errors import CheckpointError

MAX_PICKLE_BYTES = 2**28
MAX_OPCODES = 2**21
_MAX_INT_BITS = 1024
_MAX_MEMO_INDEX = 2**32
_MAX_GLOBALS, _MAX_NAME = 10_000, 1_000
_REMEDY = "the file is damaged or hostile, get it again from its author, as safetensors where possible"


@dataclass(frozen=True, eq=False)
class Program:
    """What a pickle describes.

    Attributes:
        result: the object on top of the stack; sets come back as lists, so that nothing is hashed.
        foreign: names outside of the allow-list, in order of appearance.
    """

    result: Any
    foreign: tuple[str, ...]


PersistentFn = Callable[[Any], Any]
"""Persistent id -> object; raises ValueError."""


def read(source: BinaryIO, given: str, builders: Builders, persistent_fn: PersistentFn | None = None) -> Program:
    r"""Rebuilds the object that one pickle describes, up to its STOP.

    Args:
        source: bytes in memory or a memory map, positioned at the pickle; it has to be bounded by the caller.
        given: file the bytes came from, for messages.
        builders: the allow-list; a value with a method `build` gets the state the pickle sets on it.
        persistent_fn: what persistent ids mean; by default they are refused.

    Raises:
        CheckpointError: no pickle, one that breaks the stack machine's rules or exceeds its limits, or one that
            refers to a function that runs code.

    >>> import io
    >>> read(io.BytesIO(b"(dp0\nVlr\np1\nF0.5\ns."), "demo", {}).result
    {'lr': 0.5}
    """
    machine = _Machine(given, builders, persistent_fn)
    position = 0
    try:
        for count, (opcode, argument, at) in enumerate(pickletools.genops(source)):
            position = at
            if count >= MAX_OPCODES:
                raise ValueError(f"more than {MAX_OPCODES} opcodes")
            machine.handlers[opcode.name](argument)
        result = machine.pop()
    except _BROKEN as error:
        found = f"the unknown memo {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise CheckpointError(
            f"{given}: expected a pickle of tensors and containers, found {found[:200]} at byte {position}; {_REMEDY}"
        ) from error
    return Program(result, tuple(machine.foreign))


_BROKEN = (
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, EOFError, Warning),
    struct.error,
)
"""genops lets the errors of struct and codecs through, and asserts; builders raise what a wrong argument raises."""


class _Machine:
    """The stack, the memo and one handler per opcode."""

    def __init__(self, given: str, builders: Builders, persistent_fn: PersistentFn | None):
        self.given, self.builders, self.persistent_fn = given, builders, persistent_fn
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.globals: dict[tuple[str, str], Global] = {}
        self.foreign: dict[str, None] = {}
        self.handed_over = 0
        push = self.stack.append
        handlers: dict[str, Callable[[Any], Any]] = dict.fromkeys(_PUSHED, push)
        handlers |= dict.fromkeys(_INTEGERS, self.integer)
        handlers |= dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda _: None)
        handlers |= dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self.memoise)
        handlers |= dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda index: push(self.memo[index]))
        handlers |= dict.fromkeys(("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "PERSID"), self.refuse)
        handlers |= dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda _: push([]))
        handlers |= dict.fromkeys(("LIST", "FROZENSET"), lambda _: push(self.since_mark()))
        handlers |= dict.fromkeys(("APPENDS", "ADDITEMS"), lambda _: self.extend(self.since_mark()))
        handlers |= dict.fromkeys(("REDUCE", "NEWOBJ"), lambda _: push(self.called(*self.last(2))))
        handlers |= {
            "NONE": lambda _: push(None),
            "NEWTRUE": lambda _: push(True),
            "NEWFALSE": lambda _: push(False),
            "EMPTY_DICT": lambda _: push({}),
            "EMPTY_TUPLE": lambda _: push(()),
            "MARK": lambda _: self.marks.append(len(self.stack)),
            "POP": lambda _: self.discard(),
            "POP_MARK": lambda _: self.since_mark(),
            "DUP": lambda _: push(self.top()),
            "TUPLE1": lambda _: push(tuple(self.last(1))),
            "TUPLE2": lambda _: push(tuple(self.last(2))),
            "TUPLE3": lambda _: push(tuple(self.last(3))),
            "TUPLE": lambda _: push(tuple(self.since_mark())),
            "DICT": lambda _: push(_entries(self.since_mark())),
            "APPEND": lambda _: self.extend(self.last(1)),
            "SETITEM": lambda _: self.update(self.last(2)),
            "SETITEMS": lambda _: self.update(self.since_mark()),
            "MEMOIZE": lambda _: self.memoise(len(self.memo)),
            "GLOBAL": lambda names: push(self.found_global(*names.split(" ", 1))),
            "STACK_GLOBAL": lambda _: push(self.found_global(*self.last(2))),
            "NEWOBJ_EX": lambda _: push(self.called_with_names(*self.last(3))),
            "OBJ": lambda _: push(self.called_at_mark(*self.since_mark())),
            "INST": lambda names: push(self.called(self.found_global(*names.split(" ", 1)), tuple(self.since_mark()))),
            "BUILD": lambda _: self.build(self.pop()),
            "BINPERSID": lambda _: push(self.persistent(self.pop())),
        }
        self.handlers = handlers

    def last(self, count: int) -> list[Any]:
        """Takes the topmost values off the stack; never reaches below a mark."""
        floor = self.marks[-1] if self.marks else 0
        if len(self.stack) - floor < count:
            raise ValueError("an opcode that takes more than is on the stack")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def pop(self) -> Any:
        return self.last(1)[0]

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("an opcode that looks at an empty stack")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("an opcode that needs a mark, without one")
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def discard(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def refuse(self, argument: Any) -> None:
        raise ValueError(f"an opcode that no checkpoint needs (argument {header.shown(argument)})")

    def integer(self, value: int) -> None:
        if value.bit_length() > _MAX_INT_BITS:
            raise ValueError(f"an integer of {value.bit_length()} bits")
        self.stack.append(value)

    def memoise(self, index: int) -> None:
        if not 0 <= index < _MAX_MEMO_INDEX:
            raise ValueError("a memo index out of range")
        self.memo[index] = self.top()

    def extend(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Record):
            target.elements = target.elements if target.elements is not None else []
            target = target.elements
        if not isinstance(target, list):
            raise ValueError(f"items added to a {type(target).__name__}")
        target.extend(items)

    def update(self, flat: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Record):
            target.entries = target.entries if target.entries is not None else {}
            target = target.entries
        if not isinstance(target, dict):
            raise ValueError(f"entries set in a {type(target).__name__}")
        target.update(_entries(flat))

    def found_global(self, module: Any, name: Any) -> Global:
        if not isinstance(module, str) or not isinstance(name, str) or max(len(module), len(name)) > _MAX_NAME:
            raise ValueError(f"a global whose name is no text of at most {_MAX_NAME} characters")
        if (known := self.globals.get((module, name))) is not None:
            return known
        if len(self.globals) >= _MAX_GLOBALS:
            raise ValueError(f"more than {_MAX_GLOBALS} names of classes and functions")
        full = f"{module}.{name}"
        if full not in self.builders:
            if runs_code(module, name):
                raise CheckpointError(
                    f"{self.given}: expected a checkpoint, found a code-execution pickle: it refers to "
                    f"{header.shown(full)}, which no model needs; nothing was run, do not load it elsewhere"
                )
            self.foreign[full] = None
        found = self.globals[module, name] = Global(full)
        return found

    def called(self, function: Any, args: Any) -> Any:
        if not isinstance(function, Global):
            raise ValueError(f"a call of a {type(function).__name__} in place of a named class or function")
        if not isinstance(args, tuple):
            raise ValueError(f"arguments that are a {type(args).__name__}")
        builder = self.builders.get(function.name)
        if builder is None:
            return Record(function.name, args)
        # A builder may copy a container; one container must not be copied again and again.
        self.handed_over += sum(len(item) for item in args if isinstance(item, list | dict))
        if self.handed_over > MAX_OPCODES:
            raise ValueError(f"functions called on more than {MAX_OPCODES} items")
        return builder(*args)

    def called_with_names(self, function: Any, args: Any, named: Any) -> Any:
        if not isinstance(function, Global) or not isinstance(args, tuple) or not isinstance(named, dict):
            raise ValueError("an object made from other things than a class, a tuple and a dict")
        return Record(function.name, (*args, named)) if named else self.called(function, args)

    def called_at_mark(self, function: Any = None, *args: Any) -> Any:
        return self.called(function, args)

    def build(self, state: Any) -> None:
        target = self.top()
        if isinstance(target, Record):
            target.state = state
        elif build := getattr(target, "build", None):
            build(state)

    def persistent(self, identity: Any) -> Any:
        if self.persistent_fn is None:
            raise ValueError("a reference to data outside of the pickle")
        return self.persistent_fn(identity)


def _entries(flat: list[Any]) -> dict[Any, Any]:
    if len(flat) % 2:
        raise ValueError("a key without a value")
    return {entry_key(key): value for key, value in zip(flat[::2], flat[1::2], strict=True)}


_INTEGERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_PUSHED = (*_TEXTS, "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "FLOAT", "BINFLOAT")
