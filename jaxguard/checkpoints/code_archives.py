"""Archives and compressed files, taken apart for what a loader would run; tensors are passed over."""

import ast
import bz2
import gzip
import io
import lzma
import mmap
import pathlib
import re
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxguard.checkpoints import code_configs, header
from jaxguard.checkpoints.calls import Trace

PICKLES = frozenset(
    (".pkl", ".pickle", ".p", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".jbl", ".th", ".dill", ".pk", ".dat", ".data")
)
"""Suffixes of files that loaders unpickle."""

WHOLE, BEHIND = "whole", "behind other data"
"""What an archive is of a file."""

ZIP, NPY, HDF5 = b"PK\x03\x04", b"\x93NUMPY", b"\x89HDF\r\n\x1a\n"
MAX_BYTES = 2**28
_MAX_MEMBERS, _MAX_DEPTH, _HEAD = 100_000, 4, 2**16
_FOREIGN = {b"7z\xbc\xaf\x27\x1c": "7z", b"\x04\x22\x4d\x18": "lz4", b"\x28\xb5\x2f\xfd": "zstd", b"Rar!": "rar"}
_FOREIGN_SUFFIXES = (".7z", ".lz4", ".zst", ".zstd", ".rar", ".zip", ".npz", ".npy", ".tar")
_OPENERS = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"]\0\0": lzma.LZMAFile,
}
_ZLIB = (b"x\x01", b"x\x5e", b"x\x9c", b"x\xda")


class Part(NamedTuple):
    """A file, a member of an archive, or decompressed bytes.

    Attributes:
        content: bytes or a memory map.
        member: where it stands, empty for the file itself.
        name: its suffix says what loaders take it for.
        depth: of archives in archives.
    """

    content: Any
    member: str
    name: str
    depth: int = 0

    @property
    def suffix(self) -> str:
        """In small letters, with the dot."""
        return pathlib.PurePosixPath(self.name).suffix.lower()

    def inner(self, content: bytes, name: str, called: str = "") -> "Part":
        """A part of this one; `called` is the name that tells its format, where that is another."""
        return Part(content, f"{self.member}/{name}" if self.member else name, called or name, self.depth + 1)


@dataclass
class Found:
    """What an examination has found so far, and what it has still to look at.

    Attributes:
        given: the path as the user wrote it.
        trace: calls and the first problem.
        notes: whole sentences.
        pending: parts that were not followed yet.
    """

    given: str
    trace: Trace = field(default_factory=Trace)
    notes: list[str] = field(default_factory=list)
    pending: list[Part] = field(default_factory=list)

    def fail(self, why: str) -> None:
        """Keeps the first problem."""
        self.trace.fail(f"{self.given}: {why}")

    def add(self, part: Part) -> None:
        """Puts a part in the queue."""
        if part.depth > _MAX_DEPTH:
            self.fail(f"expected files in files up to {_MAX_DEPTH} deep, got more; do not load it elsewhere")
        elif len(part.content) > MAX_BYTES:
            self.fail(f"expected at most {MAX_BYTES} bytes in {header.shown(part.member)}, got more; unpack it first")
        else:
            self.pending.append(part)


def opened(part: Part, into: Found) -> str:
    """Puts what an archive or a compressed file holds in the queue.

    Args:
        part: of any kind.
        into: gets its members, and the problem where they cannot be read.

    Returns:
        `WHOLE` where that is all that a loader would see of it, `BEHIND` where it has more, empty for no archive.
    """
    head = bytes(part.content[:_HEAD])
    is_zip = head.startswith(ZIP)
    is_behind = not is_zip and part.suffix not in {".safetensors", ".npy"} and _has_directory(part.content)
    if is_zip or is_behind:
        _zip(part, into)
    if is_zip:
        return WHOLE
    for magic, kind in _FOREIGN.items():
        # The chunks of other formats are compressed too, and hold numbers.
        if head.startswith(magic) and part.suffix in {*PICKLES, *_FOREIGN_SUFFIXES}:
            into.fail(f"expected content to follow, got {kind} compression, which is not supported; unpack it first")
            return WHOLE
    if head[257:262] == b"ustar" or (part.suffix == ".tar" and tarfile.is_tarfile(io.BytesIO(part.content))):
        _tar(part, into)
        return WHOLE
    for magic, opener in _OPENERS.items():
        if head.startswith(magic):
            into.add(part.inner(opener(io.BytesIO(part.content)).read(MAX_BYTES + 1), "decompressed", part.name))
            return WHOLE
    if head.startswith(_ZLIB):
        unpacked = zlib.decompressobj().decompress(bytes(part.content), MAX_BYTES + 1)
        into.add(part.inner(unpacked, "decompressed", part.name))
        return WHOLE
    return BEHIND if is_behind else ""


def objects(head: bytes) -> tuple[int, bool]:
    """Where the elements of a npy record begin, and whether they are a pickle of objects.

    >>> buffer = io.BytesIO()
    >>> import numpy as np
    >>> np.save(buffer, np.array([None], object))
    >>> objects(buffer.getvalue())
    (128, True)
    """
    width = 2 if head[6:7] == b"\x01" else 4
    start = 8 + width + int.from_bytes(head[8 : 8 + width], "little")
    try:
        fields = ast.literal_eval(head[8 + width : start].decode("latin-1").strip())
        return start, re.search(r"'[|<>=]?O", repr(fields["descr"])) is not None
    except (ValueError, SyntaxError, LookupError, TypeError, RecursionError, MemoryError):
        return start, True  # NumPy does not read it either; to follow it costs nothing


def _has_directory(content: Any) -> bool:
    """Whether a zip archive's directory is at the end, whatever the file begins with."""
    return content[max(len(content) - 66_000, 0) :].rfind(b"PK\x05\x06") >= 0


def _tar(part: Part, into: Found) -> None:
    with tarfile.open(fileobj=io.BytesIO(part.content)) as archive:
        for info in archive:
            if info.isfile() and (file := archive.extractfile(info)) is not None:
                into.add(part.inner(file.read(MAX_BYTES + 1), info.name))


def _zip(part: Part, into: Found) -> None:
    file = part.content if isinstance(part.content, mmap.mmap) else io.BytesIO(part.content)
    members = zipfile.ZipFile(file).infolist()  # type: ignore[arg-type]  # a map reads like a file
    if len(members) > _MAX_MEMBERS:
        into.fail(f"expected at most {_MAX_MEMBERS} members, got {len(members)}; do not load it elsewhere")
    for info in members[:_MAX_MEMBERS]:
        suffix = pathlib.PurePosixPath(info.filename).suffix.lower()
        if info.is_dir() or ("/data/" in info.filename and suffix not in (".py", *PICKLES)):
            continue  # storages of torch
        try:
            _zip_member(part, info, into)
        except (ValueError, zlib.error, OSError, EOFError, lzma.LZMAError) as error:
            shown = header.shown(info.filename)
            into.fail(f"member {shown}: expected to read it, got {error}; do not load it elsewhere")


def _zip_member(part: Part, info: zipfile.ZipInfo, into: Found) -> None:
    name = info.filename
    if info.flag_bits & 1:
        into.notes.append(f"The member {header.shown(name)} is said to be encrypted; it was read as it lies there.")
    if name.endswith(".py") and "code/" in name:
        text = _read(part.content, info, code_configs.MAX_CONFIG).decode("utf-8", "replace")
        into.notes.extend(code_configs.torchscript(text, part.inner(b"", name).member, into.trace))
    elif name == "config.json":
        config = _read(part.content, info, code_configs.MAX_CONFIG)
        into.notes.extend(code_configs.keras(config, part.inner(b"", name).member, into.trace))
    else:
        head = _read(part.content, info, _HEAD)
        # Arrays of numbers and HDF5 need not be read whole.
        if not head.startswith(HDF5) and not (head.startswith(NPY) and not objects(head)[1]):
            into.add(part.inner(_read(part.content, info, MAX_BYTES + 1), name))


def _read(content: Any, info: zipfile.ZipInfo, limit: int) -> bytes:
    """The start of a member, as a lenient loader reads it: checksums and flags do not count."""
    at = info.header_offset
    local = bytes(content[at : at + 30])
    if local[:4] != ZIP:
        raise ValueError("no header where the directory says")
    start = at + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    stored = bytes(content[start : start + min(info.compress_size, 2 * limit)])
    match info.compress_type:
        case zipfile.ZIP_STORED:
            return stored[:limit]
        case zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, limit)
        case zipfile.ZIP_BZIP2:
            return bz2.BZ2Decompressor().decompress(stored, limit)
    raise ValueError(f"compression method {info.compress_type}")
