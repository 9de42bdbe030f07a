"""MessagePack as a stream of tokens with their positions, without copies.

The msgpack library copies every array while it decodes; this walk over a memory map visits headers only, so that
leaves stay on disk until they are read. See https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

import enum
import struct
from typing import Any, NamedTuple

from jaxguard.checkpoints import limits, refusals
from jaxguard.errors import DamagedError, HostileError

MAX_TOKENS = 1_000_000


class Kind(enum.Enum):
    """What a token is."""

    MAP = "map"
    ARRAY = "array"
    TEXT = "text"
    BYTES = "bytes"
    EXTENSION = "extension"
    PLAIN = "plain"


class Span(NamedTuple):
    """Bytes of the file, `start` to `end`; `code` is the type of an extension."""

    start: int
    end: int
    code: int = 0


class Token(NamedTuple):
    """One token; `value` is a number of entries, a Span, or a plain number, boolean or None."""

    kind: Kind
    value: Any


_FIXED = {
    **{0x80 + size: (Kind.MAP, size) for size in range(16)},
    **{0x90 + size: (Kind.ARRAY, size) for size in range(16)},
    **{0xA0 + size: (Kind.TEXT, size) for size in range(32)},
    **{0xD4 + power: (Kind.EXTENSION, 1 << power) for power in range(5)},
}
_PLAIN = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = dict(zip(range(0xCA, 0xD4), ("f", "d", "B", "H", "I", "Q", "b", "h", "i", "q"), strict=True))
_LENGTHS = {
    first + power: (kind, format)
    for kind, first, formats in (
        (Kind.BYTES, 0xC4, "BHI"),
        (Kind.EXTENSION, 0xC7, "BHI"),
        (Kind.TEXT, 0xD9, "BHI"),
        (Kind.ARRAY, 0xDC, "HI"),
        (Kind.MAP, 0xDE, "HI"),
    )
    for power, format in enumerate(formats)
}


class Stream:
    """Tokens from `start` to `end` of a buffer; every length is checked before it is used.

    Attributes:
        given: the path as the user wrote it.
        position: first byte of the next token.
    """

    def __init__(self, content: memoryview, given: str, start: int = 0, end: int | None = None) -> None:
        self.given = given
        self.position = start
        self._content = content
        self._end = len(content) if end is None else end
        self._num_tokens = 0

    def next(self) -> Token:
        """The next token; a map or an array is followed by its entries.

        Raises:
            DamagedError: bytes end early, or no such token exists.
            HostileError: there are too many.
        """
        self._num_tokens += 1
        if self._num_tokens > MAX_TOKENS:
            raise self.trick(f"at most {MAX_TOKENS} tokens", "more")
        first = self._number("B")
        # Small numbers are their own first byte, negative ones as two's complement from 0xE0 on.
        if first <= 0x7F or first >= 0xE0:
            return Token(Kind.PLAIN, first if first <= 0x7F else first - 0x100)
        if first in _PLAIN or first in _NUMBERS:
            return Token(Kind.PLAIN, _PLAIN[first] if first in _PLAIN else self._number(_NUMBERS[first]))
        if first in _FIXED:
            return self._sized(*_FIXED[first])
        if first not in _LENGTHS:
            raise self.damage("a MessagePack token", hex(first))
        kind, format = _LENGTHS[first]
        return self._sized(kind, self._number(format))

    def text(self, token: Token, limit: int = limits.MAX_NAME_LENGTH) -> str:
        """The text of a TEXT token, or of BYTES, as which old files store it.

        Raises:
            DamagedError: another token, or no UTF-8.
            HostileError: text of more than `limit` bytes.
        """
        if token.kind not in (Kind.TEXT, Kind.BYTES):
            raise self.damage("text", token.kind.value)
        start, end, _ = token.value
        if end - start > limit:
            raise self.trick(f"text of at most {limit} bytes", f"{end - start}")
        try:
            return self.bytes(token.value).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damage("UTF-8 text", str(error)) from error

    def bytes(self, span: Span) -> bytes:
        """A copy of a span."""
        return self._content[span.start : span.end].tobytes()

    def inside(self, token: Token) -> "Stream":
        """The tokens in the payload of an extension."""
        return Stream(self._content, self.given, token.value.start, token.value.end)

    def require_end(self) -> None:
        """Checks that nothing follows.

        Raises:
            DamagedError: something does.
        """
        if self.position != self._end:
            raise self.damage("an end", f"{self._end - self.position} more bytes")

    @property
    def where(self) -> str:
        """The file, and the place in it."""
        return f"{self.given}: before byte {self.position}"

    def damage(self, expected: str, found: str) -> DamagedError:
        """The error to raise about the bytes before `position`."""
        return refusals.damaged(self.where, expected, found)

    def trick(self, expected: str, found: str) -> HostileError:
        """Likewise, of what no honest writer makes."""
        return refusals.hostile(self.where, expected, found)

    def _number(self, format: str) -> Any:
        end = self.position + struct.calcsize(f">{format}")
        if end > self._end:
            raise self.damage("a whole token", "the end of the data")
        (number,) = struct.unpack_from(f">{format}", self._content, self.position)
        self.position = end
        return number

    def _sized(self, kind: Kind, size: int) -> Token:
        code = self._number("b") if kind is Kind.EXTENSION else 0
        is_nested = kind in (Kind.MAP, Kind.ARRAY)
        # Every entry takes at least a byte, every pair two: a larger count is refused before any memory is taken for
        # it.
        smallest = 2 * size if kind is Kind.MAP else size
        if smallest > self._end - self.position:
            raise self.damage(f"{kind.value} within the {self._end - self.position} bytes left", f"size {size}")
        if is_nested:
            return Token(kind, size)
        start = self.position
        self.position += size
        return Token(kind, Span(start, self.position, code))
