"""Code that a loader of a file would run, as data; and how the files begin that hold most of it."""

import re
from dataclasses import dataclass
from typing import NamedTuple

NAMED = " (named, not called)"
START = re.compile(
    rb"\x80[\x00-\x05]|[(\]}N]{0,8}c[\w.]+\n[\w.]+\n|\((?:[dl]p\d|d\.|l\.)|[\]}](?:q.|[(.])|[^\n]{0,200}\n?i[\w.]+\n[\w.]+\n",
    re.DOTALL,
)
"""How pickles that hold containers or calls begin, by any protocol."""

_MAX_CALLS = 100


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


class Inside(NamedTuple):
    """Bytes that a call is given, which may be a file of their own.

    Attributes:
        content: the bytes.
        member: where they stand.
        is_loaded: whether the call is known to load them.
    """

    content: bytes
    member: str
    is_loaded: bool


def begins(head: bytes) -> bool:
    r"""Whether bytes begin like a pickle.

    >>> begins(b"cos\nsystem\n"), begins(b"no pickle")
    (True, False)
    """
    return START.match(head) is not None


class Trace:
    """What loaders of all the pickles of a file would call, the first call of each function.

    Attributes:
        calls: by the name of the function.
        named: classes and functions that were only named.
        inside: bytes that were handed to a call.
        problem: why a pickle could not be followed to its end, empty where all were.
    """

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}
        self.named: dict[str, None] = {}
        self.inside: list[Inside] = []
        self.problem = ""

    def add(self, call: Call) -> None:
        """Keeps the first call of each function; a call replaces a mere name."""
        known = self.calls.get(call.callable)
        if (known is None and len(self.calls) < _MAX_CALLS) or (
            known is not None and call.arguments != NAMED and known.arguments == NAMED
        ):
            self.calls[call.callable] = call

    def name(self, name: str) -> None:
        """Keeps a name."""
        if len(self.named) < _MAX_CALLS:
            self.named[name] = None

    def fail(self, problem: str) -> None:
        """Keeps the first problem."""
        self.problem = self.problem or problem

    def take(self, other: "Trace") -> None:
        """Adds what another trace found."""
        for call in other.calls.values():
            self.add(call)
        for name in other.named:
            self.name(name)
        self.inside += other.inside
        self.fail(other.problem)
