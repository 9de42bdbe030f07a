"""OCDBT databases by hand, so that tests can lie in every field; nodes carry right checksums."""

import pathlib
from collections.abc import Sequence

import pyarrow

MANIFEST_MAGIC, NODE_MAGIC = b"\x0c\xdb\x3a\x2a", b"\x0c\xdb\x20\xde"


def crc32c(content: bytes) -> int:
    """Bit by bit, from the polynomial."""
    checksum = 0xFFFFFFFF
    for byte in content:
        checksum ^= byte
        for _ in range(8):
            checksum = checksum >> 1 ^ (0x82F63B78 if checksum & 1 else 0)
    return checksum ^ 0xFFFFFFFF


def varint(value: int) -> bytes:
    """LEB128."""
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def varints(values: Sequence[int]) -> bytes:
    return b"".join(map(varint, values))


def wrapped(magic: bytes, body: bytes, *, deflate: bool = True, version: int = 0) -> bytes:
    content = (
        varint(version) + varint(deflate) + (pyarrow.compress(body, codec="zstd", asbytes=True) if deflate else body)
    )
    content = magic + (len(content) + 16).to_bytes(8, "little") + content
    return content + crc32c(content).to_bytes(4, "little")


def table(files: Sequence[tuple[str, str]]) -> bytes:
    """Base paths and what follows them."""
    paths = [(base + rest).encode() for base, rest in files]
    lengths = (
        varints([0] * (len(files) - 1)) + varints(list(map(len, paths))) + varints([len(base) for base, _ in files])
    )
    return varint(len(files)) + lengths + b"".join(paths)


def leaf(
    keys: Sequence[bytes],
    values: Sequence[bytes | tuple[int, int, int]],
    files: Sequence[tuple[str, str]] = (),
    *,
    prefixes: Sequence[int] = (0,),
    suffixes: Sequence[int] = (),
    height: int = 0,
) -> bytes:
    """A leaf node; values are bytes, or (place in the table, offset, length)."""
    outside = [value for value in values if isinstance(value, tuple)]
    return b"".join(
        [
            bytes([height]) + table(files) + varint(len(keys)),
            varints(prefixes[1:] or [0] * (len(keys) - 1)) + varints(suffixes or list(map(len, keys))) + b"".join(keys),
            varints([value[2] if isinstance(value, tuple) else len(value) for value in values]),
            bytes(isinstance(value, tuple) for value in values),
            varints([place for place, _, _ in outside]) + varints([offset for _, offset, _ in outside]),
            b"".join(value for value in values if isinstance(value, bytes)),
        ]
    )


def interior(
    keys: Sequence[bytes],
    shared: Sequence[int],
    places: Sequence[tuple[int, int, int]],
    files: Sequence[tuple[str, str]],
    *,
    height: int = 1,
) -> bytes:
    """An interior node; places are (place in the table, offset, length)."""
    return b"".join(
        [
            bytes([height]) + table(files) + varint(len(keys)),
            varints([0] * (len(keys) - 1)) + varints(list(map(len, keys))) + varints(shared) + b"".join(keys),
            *(varints([place[column] for place in places]) for column in range(3)),
            varints([1] * len(keys)) * 3,
        ]
    )


def manifest(
    file: tuple[str, str], length: int, *, height: int = 0, offset: int = 0, kind: int = 0, place: int = 0
) -> bytes:
    """A manifest of one version whose root lies in `file`."""
    settings = bytes(16) + bytes([kind]) + varints([1024, 10**8]) + b"\x04" + varint(1) + bytes(4)
    version = varints([1, 1]) + bytes([height]) + varints([place, offset, length]) + varints([1, length, 0])
    return settings + table([file]) + version + (1).to_bytes(8, "little") + varint(0)


def write(directory: pathlib.Path, node: bytes, *, magic: bytes = NODE_MAGIC, **options: int) -> pathlib.Path:
    """A database with one node."""
    directory.mkdir(exist_ok=True)
    encoded = wrapped(magic, node)
    (directory / "root").write_bytes(encoded)
    (directory / "manifest.ocdbt").write_bytes(wrapped(MANIFEST_MAGIC, manifest(("", "root"), len(encoded), **options)))
    return directory
