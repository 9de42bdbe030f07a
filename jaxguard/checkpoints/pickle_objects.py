"""What pickles are made of that Python has no harmless value for: names, unknown objects, arrays, keys."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_MAX_KEY = 2**61 - 1  # the modulus of Python's integer hash: larger integers can be chosen to collide


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """A name the pickle refers to; `a.b.C` is never looked up."""

    name: str


@dataclass(eq=False, slots=True, repr=False)
class Record:
    """What an unknown class or function would have made: its name and everything it was given.

    Attributes:
        name: dotted name of the class or function.
        args: positional arguments.
        state: what its `__setstate__` or `__dict__` was given.
        entries: items of a subclass of dict.
        elements: items of a subclass of list or set.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    entries: dict[Any, Any] | None = None
    elements: list[Any] | None = None

    def __repr__(self) -> str:
        return f"Record({self.name!r})"  # what it holds may be a circle, or the same again and again


@dataclass(frozen=True, eq=False, slots=True)
class Unreadable:
    """An array that is there but that nothing here can read.

    Attributes:
        kind: what it is, such as `a quantized tensor`.
    """

    kind: str


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class OpaqueKey:
    """A key that is no scalar: hashed by identity, as hashing a stranger's tuples can take exponential time."""

    value: Any


Builders = Mapping[str, Callable[..., Any]]
"""Dotted name -> function that rebuilds the object from its arguments; raises ValueError or TypeError."""


def entry_key(key: Any) -> Any:
    """A key of the file as a key of a dict."""
    if isinstance(key, str | bytes | float | None) or (isinstance(key, int) and abs(key) < _MAX_KEY):
        return key
    return OpaqueKey(key)
