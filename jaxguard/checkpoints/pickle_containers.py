"""Containers and plain values that pickles make by a call: what the opcodes have no letter for."""

from collections.abc import Callable
from typing import Any

from jaxguard.checkpoints import header, refusals
from jaxguard.checkpoints.pickle_objects import Builders, Global, Record, entry_key

_ENCODINGS = {"latin1": "latin-1", "latin-1": "latin-1", "iso-8859-1": "latin-1"}


class Encoded:
    """Bytes as Python 3 stores them for Python 2: text of which every character is one byte. Not copied until used."""

    __slots__ = ("text",)

    def __init__(self, text: Any, encoding: Any = "latin1"):
        if not isinstance(text, str) or encoding not in _ENCODINGS:
            raise refusals.Unsupported(f"bytes written as text in the encoding {header.shown(encoding)}")
        self.text = text

    def __len__(self) -> int:
        return len(self.text)

    def __bytes__(self) -> bytes:
        return self.text.encode("latin-1")


def content_of(found: Any) -> Any:
    """The value itself, or `Encoded` for the text that Python 2 wrote for bytes; ValueError for anything else."""
    if isinstance(found, str):
        return Encoded(found)
    if not isinstance(found, bytes | bytearray | Encoded):
        raise ValueError(f"a {type(found).__name__} in place of bytes")
    return found


def _ordered(items: Any = None, *_: Any) -> dict[Any, Any]:
    if items is None or isinstance(items, dict):
        return {} if items is None else dict(items)
    if not isinstance(items, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in items
    ):
        raise ValueError(f"a dictionary made from a {type(items).__name__}")
    return {entry_key(key): value for key, value in items}


def _listed(items: Any = None, *_: Any) -> list[Any] | Record:
    if items is None or isinstance(items, list):
        return list(items or ())
    return Record("list", (items,))


def _bytes(content: Any = b"", *args: Any) -> Any:
    return Encoded(content, *args) if isinstance(content, str) else content_of(content)


def _complex(real: Any = 0.0, imaginary: Any = 0.0) -> complex:
    if not all(isinstance(part, int | float) for part in (real, imaginary)):
        raise ValueError("a complex number made of other things than numbers")
    return complex(real, imaginary)


def _reconstructed(cls: Any, *args: Any) -> Record:
    if not isinstance(cls, Global):
        raise ValueError(f"an object of the class {header.shown(cls)}")
    return Record(cls.name, args)


def _named(name: str) -> Callable[..., Record]:
    return lambda *args: Record(name, args)


def _builtins(name: str) -> tuple[str, str]:
    return f"builtins.{name}", f"__builtin__.{name}"


BUILDERS: Builders = {
    "collections.OrderedDict": _ordered,
    "collections.Counter": _ordered,
    "flax.core.frozen_dict.FrozenDict": _ordered,
    "collections.defaultdict": lambda *_: {},
    "collections.deque": _listed,
    "argparse.Namespace": lambda *args: Record("argparse.Namespace", args),
    "_codecs.encode": Encoded,
    **dict.fromkeys(("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__"), _reconstructed),
    **dict.fromkeys((*_builtins("set"), *_builtins("frozenset"), *_builtins("list")), _listed),
    **dict.fromkeys((*_builtins("dict"),), _ordered),
    **dict.fromkeys((*_builtins("bytes"), *_builtins("bytearray")), _bytes),
    **dict.fromkeys(_builtins("complex"), _complex),
    **{name: _named(name) for kind in ("object", "int", "float", "bool", "str", "tuple") for name in _builtins(kind)},
}
"""What pickles of plain values refer to; one that is made from other things than values raises ValueError."""
