"""The stack machine of pickles, watched instead of served: what a program would call, by whatever opcode.

Where the loader of weights refuses a program, this one goes on, as Python would: what stands behind an odd opcode runs.
"""

from collections.abc import Callable, Iterator
from typing import Any

from jaxguard.checkpoints import header
from jaxguard.checkpoints.calls import NAMED, Call, Inside, Trace, begins
from jaxguard.checkpoints.pickle_allowed import CALLED_ARGUMENTS, CONSTRUCTORS, RECORDS, SUBTYPES, TYPES
from jaxguard.checkpoints.pickle_danger import runs_code
from jaxguard.checkpoints.pickle_machine import Machine
from jaxguard.checkpoints.pickle_objects import Global, Record

JOBLIB = "joblib.numpy_pickle.NumpyArrayWrapper"
COMPUTED = "a name that is computed"
_LOADS, _ENCODE = "torch.storage._load_from_bytes", "_codecs.encode"
_UTF_8 = ((), ("utf-8",), ("utf8",))
_PLAIN_CODECS = (*_UTF_8, ("latin1",), ("latin-1",), ("iso-8859-1",), ("ascii",))
_METHODS = frozenset(("append", "extend", "add"))
_COLLECTIONS = frozenset((
    *("collections.OrderedDict", "collections.Counter", "collections.defaultdict", "collections.deque"),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("list", "dict", "set", "bytearray")),
))  # fmt: skip
_MAX_PREVIEW, _MAX_VISITED, _MAX_INSIDE, _MAX_NAME = 160, 10_000, 1000, 400
_HEADS = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x93NUMPY")
"""How other files begin that may be handed over as bytes."""

_MAKERS = frozenset((
    *("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__"),
    *("numpy.ma.core._mareconstruct", "pandas.core.indexes.base._new_Index", "sklearn.metrics._dist_metrics.newObj"),
    *("pandas._libs.arrays.__pyx_unpickle_NDArrayBacked", "sklearn.neighbors._kd_tree.newObj"),
    "sklearn.neighbors._ball_tree.newObj",
))  # fmt: skip
"""Constructors that call no more than `__new__`."""

_RANDOM = ("numpy.random._pickle.__generator_ctor", "numpy.random._pickle.__randomstate_ctor")
"""Constructors that take the result of another one in the place of its name."""

_FORWARDED: dict[str, Callable[[Any], Any]] = {
    "copyreg.__newobj__": lambda args: tuple(args[1:]),
    "copyreg.__newobj_ex__": lambda args: args[1] if len(args) > 1 else (),
    "jax._src.array._reconstruct_array": lambda args: args[1] if len(args) > 1 else (),
    "torch._tensor._rebuild_from_type": lambda args: args[2] if len(args) > 2 else (),
    "torch._tensor._rebuild_from_type_v2": lambda args: args[2] if len(args) > 2 else (),
}
"""Constructor that calls its first argument -> what it hands on to that."""


class Interleaved(Exception):  # no error: data stands between two opcodes
    """The elements of an array of joblib come next; `wrapper` says how many."""

    def __init__(self, wrapper: dict[Any, Any]):
        self.wrapper = wrapper


class Slice:
    """Bytes of the file, not copied."""

    def __init__(self, content: Any, start: int, end: int):
        self.content, self.start, self.end = content, start, end

    def __len__(self) -> int:
        return self.end - self.start

    def __repr__(self) -> str:
        return header.shown(bytes(self.content[self.start : min(self.end, self.start + 60)]))

    def head(self, count: int) -> bytes:
        """The first bytes."""
        return bytes(self.content[self.start : min(self.end, self.start + count)])

    def all(self) -> bytes:
        """A copy."""
        return bytes(self.content[self.start : self.end])


class Tracer(Machine):
    """Adds to a trace what it comes upon."""

    max_opcodes = 2**24

    def __init__(self, content: Any, given: str, member: str, trace: Trace):
        super().__init__(content, given, {}, None)
        self.member, self.trace = member, trace

    def add(self, name: str, arguments: str = NAMED) -> None:
        """Notes a call."""
        self.trace.add(Call(name[:_MAX_NAME], arguments, self.member, self.at))

    # What the loader of weights refuses.

    def unread(self, error: ValueError) -> Any:
        """Any value will do."""
        del error
        return 0

    def integer(self, value: int) -> None:
        """Pushes an integer of any size."""
        self.stack.append(value)

    def text(self, position: int) -> int:
        """Pushes text, which need not be UTF-8."""
        try:
            return super().text(position)
        except UnicodeDecodeError:
            self.stack.append("?")
            return position + 4 + int.from_bytes(self.content[position : position + 4], "little")

    def content_bytes(self, start: int, end: int) -> None:
        """Pushes a place in the file."""
        self.stack.append(Slice(self.content, start, end))

    def buffer(self) -> None:
        """Pushes bytes that nobody knows."""
        self.stack.append(Record("builtins.bytearray"))

    def read_only(self) -> None:
        """Changes nothing."""
        self.top()

    def persistent_text(self, identity: str) -> None:
        """As `persistent`."""
        self.stack.append(self.persistent(identity))

    def persistent(self, identity: Any) -> Any:
        """Pushes a storage, whatever the id is."""
        if isinstance(identity, tuple) and len(identity) > 1 and identity[0] == "module":
            return identity[1]  # a class, with its source beside it
        # Old versions of torch call the type of a storage with its size.
        if isinstance(identity, tuple) and len(identity) >= 5 and identity[0] == "storage":
            kind = identity[1]
            if isinstance(kind, Record) or (isinstance(kind, Global) and not is_allowed(kind.name)):
                self.add(_name(kind), f"({header.shown(identity[4])}), as the type of a storage")
        return Record("torch.storage.TypedStorage", (identity,))

    # Names.

    def found_global(self, module: Any, name: Any) -> Global:
        """Notes a name unless it is on the allow-list."""
        if not isinstance(module, str) or not isinstance(name, str):
            self.add(COMPUTED)
            return Global(COMPUTED)
        full, parts = f"{module}.{name}"[: 2 * _MAX_NAME], name.split(".")
        if full in SUBTYPES or is_allowed(full):
            return Global(full)
        # A dunder in the name leads from an object to another: only the two modules of scripts are called so.
        inner = parts if module in ("__main__", "__builtin__") else [*module.split("."), *parts]
        if runs_code(module, name) or any(part.startswith("__") and part.endswith("__") for part in inner):
            self.add(full)
        else:
            self.trace.name(full)
        return Global(full)

    def extension(self, code: int) -> Global:
        """Notes a number whose name is not in the file."""
        self.add(f"copyreg.extension_{code}")
        return Global(f"copyreg.extension_{code}")

    # Calls.

    def called(self, function: Any, args: Any) -> Any:
        """Notes a call unless it is on the allow-list, and what such a call leads to."""
        name = _name(function)
        if name == _ENCODE and isinstance(args, tuple) and isinstance(args[0], str) and args[1:] in _PLAIN_CODECS:
            return args[0].encode("utf-8" if args[1:] in _UTF_8 else "latin-1", "replace")
        if isinstance(function, Global) and is_allowed(name):
            self.called_by_constructor(name, args)
        else:
            self.add(name, _preview(args))
        items = tuple(args) if isinstance(args, list | tuple) else (args,)
        for item in items:
            self.inside(item, name)
        return Record(name, items)

    def new_object(self) -> None:
        """Notes a class unless an object of it is made without running code of a stranger's choice."""
        *_, function, args = [None, None, *self.stack[self.marks[-1] :]]
        if isinstance(function, Global) and is_record(function.name):
            self.stack[-2:] = [Record(function.name, args if isinstance(args, tuple) else (args,))]
        else:
            self.reduce()

    def called_with_names(self, function: Any, args: Any, named: Any) -> Any:
        """As `called`."""
        return self.called(function, (*args, named) if isinstance(args, tuple) and named else args)

    def called_by_constructor(self, name: str, args: Any) -> None:
        """What a constructor of the allow-list calls in its turn."""
        if name == _ENCODE:  # the name of a codec is the name of a module
            self.add(name, _preview(args))
        if name == _LOADS and not (isinstance(args, tuple) and args and isinstance(args[0], Slice | bytes)):
            self.add(name, " (of bytes that are computed)")
        if (positions := CALLED_ARGUMENTS.get(name)) is None:
            return
        if not isinstance(args, list | tuple):
            self.add(name, " (with arguments that are computed)")
            return
        for value in (args[position] for position in positions if position < len(args)):
            is_foreign = isinstance(value, Global) and not (is_allowed(value.name) or value.name in SUBTYPES)
            is_result = isinstance(value, Record) and not (name in _RANDOM and is_allowed(value.name))
            if is_result or (is_foreign and not (name in _MAKERS and is_record(value.name))):
                self.add(_name(value), f"(...), called by {name}")
            elif not is_foreign and isinstance(value, Global) and value is args[0] and name in _FORWARDED:
                self.called(value, _FORWARDED[name](args))

    def inside(self, item: Any, name: str) -> None:
        """Keeps bytes that are handed to a call and begin like a file."""
        if isinstance(item, str) and item[:1] in ("\x80", "c", "("):
            item = item.encode("latin-1", "replace")
        if not isinstance(item, Slice | bytes | bytearray) or len(self.trace.inside) >= _MAX_INSIDE:
            return
        head = item.head(1024) if isinstance(item, Slice) else bytes(item[:1024])
        if name == _LOADS or head.startswith(_HEADS) or begins(head):
            content = item.all() if isinstance(item, Slice) else bytes(item)
            self.trace.inside.append(Inside(content, f"{self.member}[bytes at {self.at}]", name == _LOADS))

    # Methods of objects, which an attacker may have set.

    def build(self, state: Any) -> None:
        """Notes a state that reaches a function: `__setstate__` of a name, or methods of the object."""
        target = self.top()
        if isinstance(target, Global):
            self.add(f"{target.name}.__setstate__", f"({_preview(state)})")
        if not isinstance(target, Record):
            return
        for number, part in enumerate(state if isinstance(state, tuple) else (state,)):
            for key, value in part.items() if isinstance(part, dict) else ():
                is_special = isinstance(key, str) and (key.startswith("__") or key in _METHODS)
                foreign = [_name(value)] if isinstance(value, Record) and not is_allowed(value.name) else []
                foreign += list(_foreign(value))
                if is_special and (foreign or number):
                    self.add(foreign[0] if foreign else f"{target.name}.{key}", f" (set as {key})")
            for name in _foreign(part) if isinstance(part, Record) else ():
                self.add(name, f" (in a state of {target.name} that is computed)")
        target.state = state if target.state is None else [target.state, state]
        if target.name == JOBLIB and isinstance(state, dict):
            for name in _foreign(state.get("subclass")):
                self.add(name, " (as the class of an array)")
            raise Interleaved(state)

    def extend(self, items: list[Any]) -> None:
        """Adds items; notes whose method that may be."""
        target = self.top()
        self.method(target, "extend", items)
        if isinstance(target, list):
            target.extend(items)

    def update(self, flat: list[Any]) -> None:
        """Sets entries; notes whose method that may be."""
        target = self.top()
        self.method(target, "__setitem__", flat)
        if isinstance(target, dict | Record):
            super().update(flat)

    def method(self, target: Any, name: str, given: list[Any]) -> None:
        """A method of a name is called, or one of an object that may have been given another's."""
        if isinstance(target, Global):
            self.add(f"{target.name}.{name}", _preview(tuple(given)))
        elif isinstance(target, Record) and target.name not in _COLLECTIONS:
            for foreign in _foreign(target):
                self.add(foreign, f"(...), as a method of {target.name}")


def is_allowed(name: str) -> bool:
    """Whether calling a dotted name runs no code of a stranger's choice; types of TorchScript exist in its files only.

    >>> is_allowed("collections.OrderedDict"), is_allowed("__torch__.models.Net"), is_allowed("os.system")
    (True, True, False)
    """
    return name in CONSTRUCTORS or name.startswith("__torch__.") or TYPES.fullmatch(name) is not None


def is_record(name: str) -> bool:
    """Whether a class is one of a known library whose objects hold arrays and settings: made by `__new__` alone.

    >>> is_record("optax._src.transform.ScaleByAdamState"), is_record("torchvision.models.resnet.resnet18")
    (True, False)
    """
    return RECORDS.fullmatch(name) is not None


def _foreign(value: Any) -> Iterator[str]:
    """Names outside of the allow-list in a value, however deep."""
    pending, seen = [value], set[int]()
    while pending and len(seen) < _MAX_VISITED:
        here = pending.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        if isinstance(here, Global) and not is_allowed(here.name) and here.name not in SUBTYPES:
            yield here.name
        elif isinstance(here, Record):
            pending += (here.args, here.state, here.entries, here.elements)
        elif isinstance(here, dict):
            pending += here.values()
        elif isinstance(here, list | tuple):
            pending += here


def _name(found: Any) -> str:
    """What is called: what a call made is no name of the allow-list, whatever made it."""
    if isinstance(found, Record):
        given = ", ".join(item.name if isinstance(item, Global) else header.shown(item) for item in found.args[:3])
        return f"{found.name}({given})"[:_MAX_NAME]
    return found.name if isinstance(found, Global) else f"a {type(found).__name__}"


def _preview(args: Any) -> str:
    items = args if isinstance(args, tuple) else (args,)
    text = ", ".join(item.name if isinstance(item, Global) else header.shown(item) for item in items[:6])
    return f"({text[:_MAX_PREVIEW]}{', ...' if len(items) > 6 or len(text) > _MAX_PREVIEW else ''})"
