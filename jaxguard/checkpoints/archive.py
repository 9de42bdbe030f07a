"""Zip archives written by strangers: every announced size is checked, and stored members are mapped, not read.

Members are looked up, never extracted to disk, so that a name such as `../../x` is only a name.
"""

import functools
import io
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from jaxguard.checkpoints import header, limits, mapping, refusals
from jaxguard.errors import CheckpointError

MAX_MEMBERS = 100_000
MAX_DIRECTORY_BYTES = 2**24

MAGIC = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_ENCRYPTED, _SIZES_FOLLOW = 0x1, 0x8
_IN_ZIP64 = 0xFFFFFFFF
_END_MAGIC, _END_BYTES, _MAX_COMMENT, _DESCRIPTOR_BYTES, _BLOCK_BYTES = b"PK\x05\x06", 22, 2**16, 24, 2**20


@dataclass(frozen=True)
class Member:
    """Position of one member in the file.

    Attributes:
        start: its first byte.
        stored: bytes in the file.
        size: bytes of content; equals `stored` where it is not deflated.
        deflated: whether it has to be inflated.
        checksum: CRC-32 of the content.
    """

    start: int
    stored: int
    size: int
    deflated: bool
    checksum: int


@dataclass(frozen=True, eq=False)
class Archive:
    """An opened archive: its directory has been checked against the file, its members are still on disk.

    Attributes:
        given: the path as the user wrote it.
        members: `{name: Member}` in directory order, without folders.
        outside: bytes that belong to no member and not to the directory.
    """

    given: str
    members: Mapping[str, Member]
    outside: int
    _content: np.ndarray = field(repr=False)

    @property
    def beside(self) -> dict[str, str]:
        """What is in the file beside its members, in words for `Checkpoint.beside`."""
        return {"(outside of the archive)": f"{self.outside:,} bytes that belong to no member"} if self.outside else {}

    def view(self, name: str) -> np.ndarray:
        """The content of a member, `[size]` uint8, read-only: mapped where it is stored, inflated where deflated.

        Raises:
            CheckpointError: no such member, or it does not inflate to what the directory announces.
        """
        member = self._member(name)
        return np.frombuffer(self._whole(name, member), np.uint8) if member.deflated else self._stored(member)

    def read(self, name: str, limit: int) -> bytes:
        """The content of a member that has to be small.

        Args:
            name: a key of `members`.
            limit: the most bytes it may have.

        Raises:
            CheckpointError: as `view`, or the member is larger than `limit`.
        """
        member = self._member(name)
        if member.size > limit:
            raise refusals.unsupported(self._where(name), f"at most {limit} bytes", str(member.size))
        return self._whole(name, member) if member.deflated else self._stored(member).tobytes()

    def head(self, name: str, count: int) -> bytes:
        """The first `count` bytes of a member, fewer where it is shorter; no more than that is inflated.

        Raises:
            CheckpointError: no such member, or it does not inflate.
        """
        member = self._member(name)
        return self._inflated(name, member, count) if member.deflated else self._stored(member)[:count].tobytes()

    def _member(self, name: str) -> Member:
        if name not in self.members:
            raise refusals.damaged(self._where(name), "a member of this name", "none")
        return self.members[name]

    def _stored(self, member: Member) -> np.ndarray:
        return self._content[member.start : member.start + member.stored]

    def _whole(self, name: str, member: Member) -> bytes:
        content = self._inflated(name, member, member.size + 1)
        if len(content) > member.size:
            raise refusals.hostile(self._where(name), f"{member.size} bytes, as announced", "more (a zip bomb)")
        if len(content) < member.size or zlib.crc32(content) != member.checksum:
            expected = f"{member.size} bytes with the announced checksum"
            raise refusals.damaged(self._where(name), expected, "other content")
        return content

    def _inflated(self, name: str, member: Member, count: int) -> bytes:
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(self._stored(member).data, max(count, 1))[:count]
        except zlib.error as error:
            raise refusals.damaged(self._where(name), "deflated content", str(error)) from error

    def _where(self, name: str) -> str:
        return f"{self.given}: member {header.shown(name)}"


def member_names(path: pathlib.Path) -> list[str]:
    """Names in the directory of a zip archive, unchecked; none where the file is no readable archive."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return []
    try:
        return [entry.filename for entry in _directory(path, str(path))[0]]
    except CheckpointError:
        return []


def open_archive(path: pathlib.Path, given: str) -> Archive:
    """Checks the directory of a zip archive and maps the file.

    Args:
        path: a regular file; it must not be shortened in place while views are in use.
        given: the path as the user wrote it.

    Returns:
        The archive; nothing has been inflated.

    Raises:
        DamagedError: no zip archive, or members that lie outside of the file.
        HostileError: too many members; two of one name; members on top of each other, or that the directory and their
            own headers describe differently; more content than a checkpoint of this size can hold.
        UnsupportedError: encryption, compression other than deflate, or several archives in one file.
    """
    entries, directory = _directory(path, given)
    content = mapping.mapped(path)
    members: dict[str, Member] = {}
    spans = []
    for entry in entries:
        if entry.filename in members:
            raise refusals.hostile(_where(given, entry), "one member of this name", "two, of which readers take either")
        member = _checked_member(entry, content, given)
        spans.append((entry.header_offset, member.start + member.stored, entry))
        members[entry.filename] = member
    end_before = outside = 0
    for first, end, entry in sorted(spans, key=lambda span: span[:2]):
        if first < end_before:
            expected = f"a member behind byte {end_before}"
            raise refusals.hostile(_where(given, entry), expected, f"one at {first}, on top of another member")
        outside += _outside(content[end_before:first], given)
        end_before = end
    outside += _outside(content[end_before:directory], given) + _behind(content)
    limits.check_announced(sum(member.size for member in members.values() if member.deflated), content.size, given)
    files = {name: member for name, member in members.items() if not name.endswith("/")}
    return Archive(given, files, outside, content)


def _outside(gap: np.ndarray, given: str) -> int:
    """Bytes between members, where a descriptor of the member before may be, but no member that is not named."""
    for start in range(0, gap.size, _BLOCK_BYTES):
        if MAGIC in gap[start : start + _BLOCK_BYTES + len(MAGIC)].tobytes():
            found = "several in one file, of which readers open the last (as torch.distributed.checkpoint writes them)"
            raise refusals.unsupported(given, "one zip archive", found, "convert it, or save the weights again")
    return 0 if gap.size <= _DESCRIPTOR_BYTES else gap.size


def _behind(content: np.ndarray) -> int:
    """Bytes behind the end of the directory and its comment."""
    tail = content[max(content.size - _END_BYTES - _MAX_COMMENT, 0) :].tobytes()
    at = tail.rfind(_END_MAGIC)
    comment = int.from_bytes(tail[at + _END_BYTES - 2 : at + _END_BYTES], "little")
    return max(len(tail) - at - _END_BYTES - comment, 0)


class _BoundedReader(io.BufferedReader):
    """zipfile reads a directory of any announced size in one call; this file refuses."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return super().read(size)


@functools.lru_cache(maxsize=1)
def _entries(path: pathlib.Path, version: tuple[int, int, int]) -> tuple[tuple[zipfile.ZipInfo, ...], int]:
    """The directory of a file in one version of it, and its place: every format that is an archive asks in turn."""
    del version
    with _BoundedReader(io.FileIO(path)) as file, zipfile.ZipFile(file) as opened:
        return tuple(opened.infolist()), opened.start_dir


def _directory(path: pathlib.Path, given: str) -> tuple[tuple[zipfile.ZipInfo, ...], int]:
    status = path.stat()
    try:
        entries, start = _entries(path, (status.st_ino, status.st_size, status.st_mtime_ns))
    # zipfile lets the errors of struct, of codecs and of negative seeks through.
    except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, IndexError, OverflowError) as error:
        kind = refusals.Unsupported(str(error)) if isinstance(error, NotImplementedError) else error
        raise refusals.because(kind, given, "a zip archive", header.shown(str(error))) from error
    if len(entries) > MAX_MEMBERS:
        raise refusals.hostile(given, f"at most {MAX_MEMBERS} members", str(len(entries)))
    return entries, start


def _checked_member(entry: zipfile.ZipInfo, content: np.ndarray, given: str) -> Member:
    """One member, believed: what the directory and the member's own header agree on."""
    where = _where(given, entry)
    if entry.flag_bits & _ENCRYPTED:
        raise refusals.unsupported(where, "a member that is not encrypted", "an encrypted one", "decrypt it first")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        found = f"compression method {entry.compress_type}"
        raise refusals.unsupported(where, "a stored or deflated member", found, "pack it again with deflate")
    deflated = entry.compress_type == zipfile.ZIP_DEFLATED
    if not deflated and entry.compress_size != entry.file_size:
        raise refusals.damaged(where, f"{entry.file_size} stored bytes, its size", f"{entry.compress_size}")
    behind = entry.header_offset + _LOCAL_HEADER.size
    if entry.header_offset < 0 or behind > content.size:
        expected = f"a header inside the {content.size} bytes"
        raise refusals.damaged(where, expected, f"one at {entry.header_offset}")
    magic, _, flags, method, _, _, _, stored, size, name_length, extra_length = _LOCAL_HEADER.unpack_from(
        content.data, entry.header_offset
    )
    if magic != MAGIC:
        raise refusals.damaged(where, f"the header of a member at byte {entry.header_offset}", header.shown(magic))
    if method != entry.compress_type:
        raise refusals.hostile(where, "a header like its entry in the directory", "another, which some readers believe")
    announced = (entry.compress_size, entry.file_size)
    is_alike = stored in (announced[0], _IN_ZIP64) and size in (announced[1], _IN_ZIP64)
    if not flags & _SIZES_FOLLOW and not is_alike:
        expected = f"{announced} stored and inflated bytes as in the directory"
        raise refusals.hostile(where, expected, f"{(stored, size)}, which some readers believe")
    start = behind + name_length + extra_length
    if start + entry.compress_size > content.size:
        expected = f"an end within the {content.size} bytes"
        raise refusals.damaged(where, expected, f"one at {start + entry.compress_size}")
    return Member(start, entry.compress_size, entry.file_size, deflated, entry.CRC)


def _where(given: str, entry: zipfile.ZipInfo) -> str:
    return f"{given}: member {header.shown(entry.filename)}"
