"""What a pickle would call where Python loaded it: the stack machine, watched instead of served."""

import mmap
import re
from dataclasses import dataclass
from typing import Any

from jaxguard.checkpoints import header, pickle_program
from jaxguard.checkpoints.pickle_allowed import CALLED_ARGUMENTS, CONSTRUCTORS
from jaxguard.checkpoints.pickle_danger import runs_code
from jaxguard.checkpoints.pickle_machine import Machine
from jaxguard.checkpoints.pickle_objects import Global, Record
from jaxguard.errors import CheckpointError

START = re.compile(
    rb"\x80[\x00-\x05]|[(\]}N]{0,8}c[\w.]+\n[\w.]+\n|\((?:[dl]p\d|d\.|l\.)|[\]}](?:q.|[(.])|[^\n]{0,200}\n?i[\w.]+\n[\w.]+\n",
    re.DOTALL,
)
"""How pickles that hold containers or calls begin, by any protocol."""

_JOBLIB = "joblib.numpy_pickle.NumpyArrayWrapper"
_METHODS = frozenset(("append", "extend", "add"))
_MAX_CALLS, _MAX_PICKLES, _MAX_NESTED, _MAX_PREVIEW = 100, 1000, 4, 160


@dataclass(frozen=True)
class Call:
    """Code that a loader would run.

    Attributes:
        callable: dotted name of what would be called, such as `os.system`.
        arguments: the start of what it would be given, as text; never evaluated.
        member: member of the archive, empty where the file is no archive.
        offset: byte of the member, or of the file, at which the call stands.
    """

    callable: str
    arguments: str = ""
    member: str = ""
    offset: int = 0

    def __str__(self) -> str:
        place = f"{self.member}, byte {self.offset}" if self.member else f"byte {self.offset}"
        return f"{self.callable}{self.arguments} at {place}"


class Trace:
    """Calls of all the pickles of a file, the first of each function.

    Attributes:
        calls: by the name of the function.
        named: classes and functions that were only named.
        problem: why a pickle could not be followed to its end, empty where all were.
    """

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}
        self.named: dict[str, None] = {}
        self.problem = ""

    def add(self, call: Call, *, is_named: bool = False) -> None:
        """Keeps the first call of each function; a call replaces a mere name."""
        known = self.calls.get(call.callable)
        if (known is None and len(self.calls) < _MAX_CALLS) or (
            known is not None and not is_named and known.arguments == NAMED
        ):
            self.calls[call.callable] = call


NAMED = " (named, not called)"


class _Interleaved(Exception):  # no error: data stands between two opcodes
    def __init__(self, wrapper: dict[Any, Any]):
        self.wrapper = wrapper


class _Bytes:
    """Bytes of the file, not copied."""

    def __init__(self, content: Any, start: int, end: int):
        self.content, self.start, self.end = content, start, end

    def __len__(self) -> int:
        return self.end - self.start

    def __repr__(self) -> str:
        return header.shown(bytes(self.content[self.start : min(self.end, self.start + 60)]))


class _Tracer(Machine):
    def __init__(self, content: Any, given: str, member: str, trace: Trace, depth: int):
        super().__init__(content, given, {}, None)
        self.member, self.trace, self.depth = member, trace, depth

    def add(self, name: str, arguments: str = NAMED) -> None:
        call = Call(name[:400], arguments, self.member, self.at)
        self.trace.add(call, is_named=arguments is NAMED)

    def content_bytes(self, start: int, end: int) -> None:
        self.stack.append(_Bytes(self.content, start, end))

    def found_global(self, module: Any, name: Any) -> Global:
        found = super().found_global(module, name)
        if found.name not in CONSTRUCTORS:
            parts = name.split(".")
            if runs_code(module, name) or any(part.startswith("__") and part.endswith("__") for part in parts):
                self.add(found.name)
            elif len(self.trace.named) < _MAX_CALLS:
                self.trace.named[found.name] = None
        return found

    def extension(self, code: int) -> Global:
        self.add(f"copyreg.extension_{code}")
        return super().extension(code)

    def called(self, function: Any, args: Any) -> Any:
        name = _name(function)
        if name not in CONSTRUCTORS:
            self.add(name, _preview(args))
        elif isinstance(args, tuple):
            for position in CALLED_ARGUMENTS.get(name, ()):
                if position < len(args) and isinstance(args[position], Global | Record):
                    inner = _name(args[position])
                    if inner not in CONSTRUCTORS:
                        self.add(inner, f"(...), called by {name}")
        if isinstance(args, tuple):
            for item in args:
                self.nested(item)
        return Record(name, args if isinstance(args, tuple) else (args,))

    def called_with_names(self, function: Any, args: Any, named: Any) -> Any:
        return self.called(function, (*args, named) if isinstance(args, tuple) and named else args)

    def nested(self, item: Any) -> None:
        """Follows a pickle that is handed over as bytes."""
        if isinstance(item, _Bytes):
            item = bytes(item.content[item.start : item.end]) if START.match(item.content, item.start) else b""
        elif isinstance(item, str) and item[:1] in ("\x80", "c", "("):
            item = item.encode("latin-1", "replace")
        if isinstance(item, bytes | bytearray) and START.match(item) and self.depth < _MAX_NESTED:
            inner = f"{self.member}[bytes at {self.at}]"
            follow(bytes(item), self.given, inner, self.trace, depth=self.depth + 1, is_certain=False)

    def build(self, state: Any) -> None:
        target = self.top()
        if isinstance(target, Global):
            self.add(f"{target.name}.__setstate__", f"({_preview(state)})")
            return
        if isinstance(target, Record):
            parts = state if isinstance(state, tuple) else (state,)
            for number, part in enumerate(parts):
                for key, value in part.items() if isinstance(part, dict) else ():
                    is_special = isinstance(key, str) and (key.startswith("__") or key in _METHODS)
                    is_foreign = isinstance(value, Global | Record) and _name(value) not in CONSTRUCTORS
                    if is_special and (is_foreign or number):
                        self.add(_name(value) if is_foreign else f"{target.name}.{key}", f" (set as {key})")
            target.state = state
            if target.name == _JOBLIB and isinstance(state, dict):
                raise _Interleaved(state)

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.top(), Global):
            self.add(f"{self.top().name}.extend", _preview(tuple(items)))
        else:
            super().extend(items)

    def update(self, flat: list[Any]) -> None:
        if isinstance(self.top(), Global):
            self.add(f"{self.top().name}.__setitem__", _preview(tuple(flat)))
        else:
            super().update(flat)

    def persistent(self, identity: Any) -> Any:
        # Old versions of torch call the type of a storage with its size.
        if isinstance(identity, tuple) and len(identity) >= 5 and identity[0] == "storage":
            kind = identity[1]
            if isinstance(kind, Global | Record) and _name(kind) not in CONSTRUCTORS:
                self.add(_name(kind), f"({header.shown(identity[4])}), as the type of a storage")
        return Record("torch.storage.TypedStorage", (identity,))


def follow(
    content: bytes | mmap.mmap,
    given: str,
    member: str,
    trace: Trace,
    *,
    start: int = 0,
    depth: int = 0,
    is_certain: bool = True,
) -> int:
    """Follows one pickle after the other, as long as what is behind a STOP begins like one.

    Args:
        content: bytes in memory or a memory map.
        given: the path as the user wrote it.
        member: of the archive, for the calls.
        trace: calls are added to it, those before a break too.
        start: position of the first pickle.
        depth: of pickles in pickles.
        is_certain: whether the first one has to be a pickle.

    Returns:
        The position behind the last STOP.
    """
    position = start
    for number in range(_MAX_PICKLES):
        if position >= len(content) or not (number == 0 or START.match(content, position)):
            break
        found, machine = Trace(), None
        try:
            machine = _Tracer(content, given, member, found, depth)
            position = _run(machine, position)
        except CheckpointError as error:
            is_raw = number > 0 or not is_certain  # what is no pickle after all, such as the storages behind one
            if not is_raw:
                trace.problem = trace.problem or str(error)
            for call in found.calls.values():
                if not is_raw or call.callable.isascii():
                    trace.add(call, is_named=call.arguments == NAMED)
            break
        for call in found.calls.values():
            trace.add(call, is_named=call.arguments == NAMED)
        trace.named |= found.named
        trace.problem = trace.problem or found.problem
    return position


def _run(machine: _Tracer, position: int) -> int:
    while True:
        try:
            return pickle_program.run(machine, position)
        except _Interleaved as stop:
            position = _behind_array(machine, stop.wrapper)


def _behind_array(machine: _Tracer, wrapper: dict[Any, Any]) -> int:
    """Where a joblib file goes on behind the elements of an array."""
    position, content = machine.at + 1, machine.content
    shape, dtype = wrapper.get("shape"), wrapper.get("dtype")
    code = dtype.args[0] if isinstance(dtype, Record) and dtype.args else ""
    match = re.fullmatch(r"[|<>=]?([a-zA-Z])(\d{1,6})", code) if isinstance(code, str) else None
    if match is None or not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise CheckpointError(f"{machine.given}: expected an array of joblib, found one of unknown size; save it anew")
    if match[1] == "O":
        inner = _Tracer(content, machine.given, machine.member, machine.trace, machine.depth + 1)
        return _run(inner, position)
    if wrapper.get("numpy_array_alignment_bytes") and position < len(content):
        position += 1 + content[position]
    nbytes = int(match[2]) * (4 if match[1] == "U" else 1)
    for size in shape:
        nbytes *= size
    return position + nbytes


def _name(found: Any) -> str:
    if isinstance(found, Record):
        given = ", ".join(item.name if isinstance(item, Global) else header.shown(item) for item in found.args[:3])
        return found.name if found.name in CONSTRUCTORS else f"{found.name}({given})"[:400]
    return found.name if isinstance(found, Global) else f"a {type(found).__name__}"


def _preview(args: Any) -> str:
    items = args if isinstance(args, tuple) else (args,)
    text = ", ".join(item.name if isinstance(item, Global) else header.shown(item) for item in items[:6])
    return f"({text[:_MAX_PREVIEW]}{', ...' if len(items) > 6 or len(text) > _MAX_PREVIEW else ''})"
