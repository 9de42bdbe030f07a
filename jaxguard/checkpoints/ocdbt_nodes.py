"""Nodes of OCDBT databases: checked, decompressed, and parsed column by column.

A node is stored by columns: the lengths of all keys, then the keys, then the lengths of all values, and so on
(https://google.github.io/tensorstore/kvstore/ocdbt).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxguard.checkpoints import refusals

MAX_ENTRIES = 2**20
_MAX_ENCODED, _MAX_DECODED = 2**25, 2**27  # Orbax lets nodes grow to 100 MB
_MAX_NAME_BYTES = 2**27
_PIECE_BYTES = 2**20
_LENGTH_BYTES, _CHECKSUM_BYTES = 8, 4
_MAX_SHIFT = 63
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, lowest bit first
_ALL_ONES = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Extent:
    """A part of a file.

    Attributes:
        path: of the file, from the database's directory on.
        offset: its first byte.
        length: bytes.
    """

    path: bytes
    offset: int
    length: int


class Cursor:
    """Parses a decoded node from start to end; every method raises ValueError at a premature end."""

    def __init__(self, content: bytes):
        self.content, self.position = content, 0

    def skip(self, count: int) -> None:
        """Skips bytes."""
        self.position += count
        if self.position > len(self.content):
            raise ValueError("a node that ends too early")

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self.skip(count)
        return self.content[self.position - count : self.position]

    def integer(self) -> int:
        """The next integer in LEB128: seven bits a byte, the lowest first."""
        value = 0
        for shift in range(0, _MAX_SHIFT + 1, 7):
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("an integer of more than 64 bits")

    def integers(self, count: int) -> Sequence[int]:
        """The next `count` integers, one for each byte where all are small."""
        column = self.content[self.position : self.position + count]
        if len(column) == count and column.isascii():
            self.position += count
            return column
        return [self.integer() for _ in range(count)]

    def count(self, most: int) -> int:
        """The next integer, a number of entries of at least one byte each, which must not exceed `most`."""
        found = self.integer()
        if found > most:
            raise ValueError(f"{found} entries in place of at most {most}")
        return found

    def names(self, prefixes: Sequence[int], suffixes: Sequence[int]) -> list[bytes]:
        """Prefix-compressed names: each begins with `prefixes[i]` bytes of the previous one."""
        if sum(prefixes) + sum(suffixes) > _MAX_NAME_BYTES:
            raise refusals.Trick(f"names of more than {_MAX_NAME_BYTES} bytes")
        found, name = [], b""
        for prefix, suffix in zip(prefixes, suffixes, strict=True):
            if prefix > len(name):
                raise ValueError("a name that shares more with the one before than that has")
            name = name[:prefix] + self.take(suffix)
            found.append(name)
        return found

    def files(self, base: bytes) -> list[tuple[bytes, bytes]]:
        """The table of files.

        Args:
            base: prefix of the paths in this node.

        Returns:
            The path of each, and the prefix of paths in nodes stored there.
        """
        count = self.count(MAX_ENTRIES)
        prefixes = (0, *self.integers(count - 1)) if count else ()
        suffixes, lengths = self.integers(count), self.integers(count)
        paths = self.names(prefixes, suffixes)
        if any(length > len(path) for length, path in zip(lengths, paths, strict=True)):
            raise ValueError("a path whose first part is longer than all of it")
        return [(base + path, base + path[:length]) for path, length in zip(paths, lengths, strict=True)]


def body(encoded: memoryview, magic: bytes) -> Cursor:
    """Checks the envelope of a node (magic, length, version, compression, checksum) and decompresses the rest.

    Raises:
        ValueError: not a node of this kind, a damaged one, or one that is too large.
    """
    if len(encoded) > _MAX_ENCODED:
        raise refusals.Trick(f"a node of {len(encoded)} bytes")
    content, checksum = bytes(encoded[:-_CHECKSUM_BYTES]), bytes(encoded[-_CHECKSUM_BYTES:])
    cursor = Cursor(content)
    if cursor.take(len(magic)) != magic or int.from_bytes(cursor.take(_LENGTH_BYTES), "little") != len(encoded):
        raise ValueError("a node that does not begin like one")
    if crc32c(content) != int.from_bytes(checksum, "little"):
        raise ValueError("a node with another checksum")
    version, compression = cursor.integer(), cursor.integer()
    if version != 0 or compression not in (0, 1):
        raise refusals.Unsupported(f"a node of version {version} and compression {compression}")
    rest = content[cursor.position :]
    return Cursor(_inflated(rest) if compression else rest)


def _inflated(content: bytes) -> bytes:
    """The content of a zstd frame, inflated piece by piece so that a bomb stops at the limit."""
    import pyarrow

    pieces, left = [], _MAX_DECODED
    try:
        with pyarrow.CompressedInputStream(pyarrow.BufferReader(content), "zstd") as stream:
            while piece := stream.read(_PIECE_BYTES):
                pieces.append(piece)
                left -= len(piece)
                if left < 0:
                    raise refusals.Trick(f"a node of more than {_MAX_DECODED} bytes, a decompression bomb")
    except OSError as error:
        raise ValueError(f"a node that cannot be inflated ({error})") from error
    return b"".join(pieces)


def _remainder(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = tuple(_remainder(byte) for byte in range(256))


def crc32c(content: Iterable[int]) -> int:
    """CRC-32C, which the standard library lacks; 20 MB/s, meant for the small parts that carry one.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    table, checksum = _TABLE, _ALL_ONES
    for byte in content:
        checksum = table[(checksum ^ byte) & 0xFF] ^ checksum >> 8
    return checksum ^ _ALL_ONES
