"""The stack machine that pickles are programs of, without its power: it imports nothing, and calls only builders."""

import io
import mmap
from collections.abc import Callable
from typing import Any

from jaxguard.checkpoints import header, refusals
from jaxguard.checkpoints.pickle_objects import Builders, Global, Record, entry_key

_MAX_INT_BITS = 1024
_MAX_MEMO_INDEX = 2**32
_MAX_GLOBALS, _MAX_NAME = 10_000, 1_000
_MAX_HANDED_OVER = 2**21
_CONTAINERS = (list, dict)
MAX_OPCODES = 2**21

PersistentFn = Callable[[Any], Any]
"""Persistent id -> object; raises ValueError."""


class Machine:
    """Stack, memo and what opcodes do with them; all raise ValueError where the program breaks a rule.

    Attributes:
        content: the program, and the bytes around it.
        source: the same as a file.
        stack: what was pushed.
        marks: sizes of the stack when it was marked; the first one stays.
        memo: what the program remembers, by number.
        foreign: names outside of the allow-list, in order of appearance.
        at: position of the opcode that is acted on.
        max_opcodes: programs of more are refused.
        result: what was on top of the stack at the STOP.
    """

    max_opcodes = MAX_OPCODES

    def __init__(self, content: bytes | mmap.mmap, given: str, builders: Builders, persistent_fn: PersistentFn | None):
        self.content, self.given, self.builders, self.persistent_fn = content, given, builders, persistent_fn
        self.source: Any = io.BytesIO(content) if isinstance(content, bytes) else content
        self.stack: list[Any] = []
        self.marks = [0]
        self.memo: dict[int, Any] = {}
        self.globals: dict[tuple[str, str], Global] = {}
        self.foreign: dict[str, None] = {}
        self.handed_over = 0
        self.at = 0
        self.result: Any = None

    def last(self, count: int) -> list[Any]:
        """Takes the topmost values off the stack; never reaches below a mark."""
        stack = self.stack
        if len(stack) - self.marks[-1] < count:
            raise ValueError("an opcode that takes more than is on the stack")
        taken = stack[-count:]
        del stack[-count:]
        return taken

    def pop(self) -> Any:
        """Takes the topmost value off the stack."""
        if len(self.stack) == self.marks[-1]:
            raise ValueError("an opcode that takes more than is on the stack")
        return self.stack.pop()

    def top(self) -> Any:
        """The topmost value, which stays."""
        if len(self.stack) == self.marks[-1]:
            raise ValueError("an opcode that looks at an empty stack")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        """Takes everything off the stack that was pushed since the last mark, and the mark."""
        if len(self.marks) == 1:
            raise ValueError("an opcode that needs a mark, without one")
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def discard(self) -> None:
        """Drops the topmost value, or the mark that is on top."""
        if len(self.marks) > 1 and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def refuse(self, argument: Any = None) -> None:
        """What only programs with other programs around them need."""
        raise refusals.Unsupported(f"an opcode for data outside of the file (argument {header.shown(argument)})")

    def unread(self, error: ValueError) -> Any:
        """What stands for a line of text that cannot be read."""
        raise error

    def buffer(self) -> None:
        """Pushes bytes that the loader is given beside the pickle."""
        self.refuse()

    def read_only(self) -> None:
        """Makes such bytes read-only."""
        self.refuse()

    def persistent_text(self, identity: str) -> None:
        """Pushes what the container keeps under an id of text."""
        self.refuse(identity)

    def text(self, position: int) -> int:
        """Pushes text behind its length in 32 bits."""
        start = position + 4
        end = start + int.from_bytes(self.content[position:start], "little")
        if end > len(self.content):
            raise ValueError(f"expected {end - start} bytes of text, got {len(self.content) - start}")
        self.stack.append(str(self.content[start:end], "utf-8", "surrogatepass"))
        return end

    def long_bytes(self, position: int, width: int) -> int:
        """Pushes bytes behind their length in `width` bytes."""
        start = position + width
        end = start + int.from_bytes(self.content[position:start], "little")
        if end > len(self.content):
            raise ValueError(f"expected {end - start} bytes of content, got {len(self.content) - start}")
        self.content_bytes(start, end)
        return end

    def byte_array(self, position: int) -> int:
        """Pushes bytes that can be written to."""
        end = self.long_bytes(position, 8)
        if isinstance(self.stack[-1], bytes):  # a machine that follows calls keeps a value of its own
            self.stack.append(bytearray(self.stack.pop()))
        return end

    def content_bytes(self, start: int, end: int) -> None:
        """Pushes bytes of the program."""
        self.stack.append(bytes(self.content[start:end]))

    def extension(self, code: int) -> Global:
        """A number of the extension registry, whose names are not in the file."""
        return self.found_global("copyreg", f"extension_{code}")

    def integer(self, value: int) -> None:
        """Pushes an integer, unless it is so large that computing with it would be an attack."""
        if value.bit_length() > _MAX_INT_BITS:
            raise refusals.Trick(f"an integer of {value.bit_length()} bits")
        self.stack.append(value)

    def memoise(self, index: int) -> None:
        """Remembers the topmost value."""
        if len(self.stack) == self.marks[-1]:
            raise ValueError("an opcode that looks at an empty stack")
        self.memo[index] = self.stack[-1]

    def memoise_anywhere(self, index: int) -> None:
        """Remembers the topmost value under a number that is written in digits."""
        if not 0 <= index < _MAX_MEMO_INDEX:
            raise refusals.Trick("a memo index out of range")
        self.memoise(index)

    def extend(self, items: list[Any]) -> None:
        """Adds items to the list, or to the unknown object, on top of the stack."""
        target = self.top()
        if isinstance(target, Record):
            target.elements = target.elements if target.elements is not None else []
            target = target.elements
        if not isinstance(target, list):
            raise ValueError(f"items added to a {type(target).__name__}")
        target.extend(items)

    def update(self, flat: list[Any]) -> None:
        """Sets entries, keys and values in turn, in what is on top of the stack."""
        target = self.top()
        if isinstance(target, Record):
            target.entries = target.entries if target.entries is not None else {}
            target = target.entries
        if not isinstance(target, dict):
            raise ValueError(f"entries set in a {type(target).__name__}")
        target.update(entries(flat))

    def found_global(self, module: Any, name: Any) -> Global:
        """A name as data."""
        if not isinstance(module, str) or not isinstance(name, str) or max(len(module), len(name)) > _MAX_NAME:
            raise ValueError(f"a global whose name is no text of at most {_MAX_NAME} characters")
        if (known := self.globals.get((module, name))) is not None:
            return known
        if len(self.globals) >= _MAX_GLOBALS:
            raise refusals.Trick(f"more than {_MAX_GLOBALS} names of classes and functions")
        full = f"{module}.{name}"
        if full not in self.builders:
            self.foreign[full] = None
        found = self.globals[module, name] = Global(full)
        return found

    def called(self, function: Any, args: Any) -> Any:
        """What a builder of the allow-list makes of the arguments, else a record of them."""
        if not isinstance(function, Global | Record):
            raise ValueError(f"a call of a {type(function).__name__} in place of a named class or function")
        if not isinstance(args, tuple):
            raise ValueError(f"arguments that are a {type(args).__name__}")
        if isinstance(function, Record):
            return Record(f"{function.name}()", args)
        builder = self.builders.get(function.name)
        if builder is None:
            return Record(function.name, args)
        # A builder may copy a container; one container must not be copied again and again.
        for item in args:
            if isinstance(item, _CONTAINERS):
                self.handed_over += len(item)
        if self.handed_over > _MAX_HANDED_OVER:
            raise refusals.Trick(f"functions called on more than {_MAX_HANDED_OVER} items")
        return builder(*args)

    def reduce(self) -> None:
        """Puts what a call makes in the place of the function and its arguments."""
        stack = self.stack
        if len(stack) - self.marks[-1] < 2:
            raise ValueError("an opcode that takes more than is on the stack")
        args = stack.pop()
        stack[-1] = self.called(stack[-1], args)

    def new_object(self) -> None:
        """As `reduce`, of a class: its `__new__` is called, not its `__init__`."""
        self.reduce()

    def called_with_names(self, function: Any, args: Any, named: Any) -> Any:
        """As `called`, with arguments by name, which no builder takes."""
        if not isinstance(function, Global) or not isinstance(args, tuple) or not isinstance(named, dict):
            raise ValueError("an object made from other things than a class, a tuple and a dict")
        return Record(function.name, (*args, named)) if named else self.called(function, args)

    def called_at_mark(self, function: Any = None, *args: Any) -> Any:
        """As `called`, for what was pushed since a mark."""
        return self.called(function, args)

    def build(self, state: Any) -> None:
        """Hands a state over to the object on top of the stack."""
        target = self.top()
        if isinstance(target, Record):
            target.state = state
        elif build := getattr(target, "build", None):
            build(state)

    def persistent(self, identity: Any) -> Any:
        """What the container around the program keeps under an id."""
        if self.persistent_fn is None:
            raise refusals.Unsupported("a reference to data outside of the pickle")
        return self.persistent_fn(identity)


def entries(flat: list[Any]) -> dict[Any, Any]:
    """A dictionary of keys and values in turn.

    >>> entries(["lr", 0.5, "epochs", 3])
    {'lr': 0.5, 'epochs': 3}
    """
    if len(flat) % 2:
        raise ValueError("a key without a value")
    return {entry_key(key): value for key, value in zip(flat[::2], flat[1::2], strict=True)}
