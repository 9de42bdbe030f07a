"""Code that a loader would run: calls in pickles, marshalled functions in Keras files, operators of TorchScript.

No tensor is read and nothing is run. Only the standard library is needed, HDF5 excepted, so the verdict is instant.
"""

import binascii
import contextlib
import functools
import itertools
import lzma
import mmap
import os
import pathlib
import re
import stat
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

from jaxguard.checkpoints import code_archives, code_configs
from jaxguard.checkpoints.calls import Call, begins
from jaxguard.checkpoints.code_archives import HDF5, NPY, PICKLES, Found, Part
from jaxguard.errors import CheckpointError

_PYTABLES = b"PYTABLES_FORMAT_VERSION"
_USER_BLOCKS = tuple(512 * 2**power for power in range(16))
"""Where HDF5 may begin, behind whatever a user put there."""

_SWEPT = re.compile(rb"\x80[\x01-\x05][\]\[(){}NcXK\x8c\x95]|[c(][\w.]{2,80}\n[\w.]{2,80}\n")
"""How pickles begin that stand among other data."""

_OPCODES = frozenset(b"().012BCFGIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80") | frozenset(range(0x81, 0x99))
"""First bytes of what Python's pickle machine does not refuse at once."""

_HELD = tuple(
    re.compile(pattern, re.DOTALL)  # each with a first byte of its own, which is sought quickly
    for pattern in (
        rb"\x80[\x02-\x05](?:\x95.{6}\0\0|[\](){}cq]).{0,4096}",
        rb"gA[IMNQRSUV][\w+/]{16,}={0,2}",
        rb"800[2-5](?:[0-9a-fA-F]{2}){8,}",
    )
)
"""Pickles in a pickle: plain, in base64, in hexadecimal."""

_MAX_HELD = 2**24
_OTHERS = (b"GGUF", b"ggml", b"{")
_WEIGHTS = frozenset((".safetensors", ".bin", ".msgpack", ".h5", ".pt", ".pth", ".ckpt", ".onnx", ".gguf"))
"""Suffixes of weights in the folder of a Hugging Face model."""


@dataclass(frozen=True)
class Code:
    """What a loader would run.

    Attributes:
        calls: code that runs when the file is loaded.
        notes: classes that are only named, and code that a loader runs if it is told to; whole sentences.
        problem: why the file could not be followed to its end; empty where it was.
    """

    calls: tuple[Call, ...] = ()
    notes: tuple[str, ...] = ()
    problem: str = ""


def examine(path: str | os.PathLike[str]) -> Code:
    """Looks for code that a loader of a file, or of a folder with a model, would run.

    Args:
        path: a local file or folder, or a URL.

    Returns:
        All that was found; what cannot be read is a `problem`, never an exception.

    >>> examine("no such file").calls
    ()
    """
    given = os.fspath(path)
    try:
        location = _local(given)
        state = location.stat()
    except CheckpointError as error:
        return Code(problem=str(error))
    except OSError as error:
        return Code(problem=f"{given}: expected to read it, got {error}; check the path")
    if stat.S_ISDIR(state.st_mode):
        return _folder(location, given)
    return _file(given, location, (state.st_mtime_ns, state.st_size, state.st_ino))


def _local(given: str) -> pathlib.Path:
    """The path, or where what is behind a URL was downloaded to."""
    if re.match(r"[a-z][a-z0-9+]+://", given):
        from jaxguard.checkpoints import remote

        return remote.fetched(given)
    return pathlib.Path(given)


def _folder(location: pathlib.Path, given: str) -> Code:
    """All files below a folder, as one."""
    into = Found(given)
    for folder, folders, names in os.walk(location):
        folders.sort()
        here = pathlib.Path(folder)
        for name in sorted(names):
            _guarded(here / name, into, (here / name).relative_to(location).as_posix())
        into.notes.extend(code_configs.beside(here))
    return _told(into)


@functools.lru_cache(maxsize=256)
def _file(given: str, location: pathlib.Path, version: tuple[int, ...]) -> Code:
    """One file of one version; the command line looks at it before the scan does."""
    del version
    into = Found(given)
    _guarded(location, into, "")
    if location.suffix in _WEIGHTS or location.name.endswith(".index.json"):
        for folder in (location.parent.parent, location.parent):
            if folder == location.parent or (folder / "model_index.json").is_file():
                into.notes.extend(_beside(folder, folder.stat().st_mtime_ns))
    return _told(into)


@functools.lru_cache(maxsize=64)
def _beside(folder: pathlib.Path, version: int) -> tuple[str, ...]:
    """As `code_configs.beside`, once for all weights of a folder."""
    del version
    return tuple(code_configs.beside(folder))


def _told(into: Found) -> Code:
    trace, notes = into.trace, into.notes
    named = [name for name in trace.named if name not in trace.calls]
    if named:
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        notes.append(f"Classes and functions named in it: {', '.join(named[:5])}{more}.")
    return Code(tuple(trace.calls.values()), tuple(dict.fromkeys(notes)), trace.problem)


def _guarded(path: pathlib.Path, into: Found, member: str) -> None:
    place = f"{member}: " if member else ""
    try:
        _examine(path, into, member)
    except (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, zlib.error, lzma.LZMAError) as error:
        into.fail(f"{place}expected to read it, got {error}; is it complete?")
    except (zipfile.BadZipFile, tarfile.TarError, LookupError) as error:
        into.fail(f"{place}{error}; is it complete?")
    except CheckpointError as error:
        into.trace.fail(str(error))


def _examine(path: pathlib.Path, into: Found, member: str) -> None:
    if not stat.S_ISREG(path.stat().st_mode) or not path.stat().st_size:
        return
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    into.pending = [Part(content, member, path.name)]
    while into.pending:
        part = into.pending.pop()
        _part(part, into)
        # Bytes that a pickle hands to a call are files of their own.
        for inside in into.trace.inside:
            into.add(Part(inside.content, inside.member, "x.pkl" if inside.is_loaded else "", part.depth + 1))
        into.trace.inside.clear()
    if any(content[place : place + 8] == HDF5 for place in (0, *_USER_BLOCKS)):
        _hdf5(path, content, into, member)


def _part(part: Part, into: Found) -> None:
    """Follows whatever a file, a member or decompressed bytes are."""
    head = bytes(part.content[:1024])
    archive = code_archives.opened(part, into)
    if archive == code_archives.WHOLE or head.startswith(HDF5):
        return
    if part.name in ("storages", "tensors") and part.member:  # of torch before 0.2: pickles and numbers in turn
        _sweep(part, into)
    if head.startswith(NPY):
        start, has_objects = code_archives.objects(bytes(part.content[: 2**16]))
        if has_objects:
            _follow(part, into, start=start)
    elif head.startswith(b"version https://git-lfs"):
        into.notes.append("A pointer of Git LFS: the file itself is not here, and was not examined.")
    elif part.suffix == ".safetensors" and head[8:9] == b"{":
        if head[0] in _OPCODES:  # the low byte of the header's length; what begins with no opcode runs nothing
            _follow(part, into, is_certain=False)
    elif begins(head):
        _follow(part, into, is_certain=not archive)
        _held(part, into)
    elif part.suffix in code_configs.SUFFIXES and len(part.content) <= code_configs.MAX_CONFIG:
        into.notes.extend(code_configs.others(bytes(part.content), part.suffix, part.member or part.name))
    elif part.suffix == ".bin":  # of many formats, most of them raw
        known = len(into.trace.calls)
        _follow(part, into, is_certain=False)
        if len(into.trace.calls) == known:
            into.notes.append(f"{part.member or part.name} begins like no pickle, and was not followed as one.")
    else:
        is_pickle = part.suffix in PICKLES and not archive and not head.startswith(_OTHERS)
        _follow(part, into, is_certain=is_pickle)


def _follow(part: Part, into: Found, *, start: int = 0, is_certain: bool = True) -> None:
    from jaxguard.checkpoints import pickle_calls  # most files hold no pickle

    pickle_calls.follow(part.content, into.given, part.member, into.trace, start=start, is_certain=is_certain)


def _sweep(part: Part, into: Found) -> None:
    """Follows what looks like a pickle anywhere among other data."""
    for match in _SWEPT.finditer(part.content):
        _follow(part, into, start=match.start(), is_certain=False)


def _held(part: Part, into: Found) -> None:
    """Notes pickles that a pickle holds as data, plain or encoded: whoever unpickles them runs their calls."""
    content = part.content if len(part.content) <= _MAX_HELD else bytes(part.content[:_MAX_HELD])
    calls = dict[str, None]()
    for match in itertools.chain.from_iterable(pattern.finditer(content, 1) for pattern in _HELD):
        inner = Found(into.given)
        for decode in (bytes, binascii.unhexlify, binascii.a2b_base64):
            with contextlib.suppress(ValueError):
                held = decode(match[0])
                if begins(held):
                    _follow(Part(held, part.member, ""), inner, is_certain=False)
        calls |= dict.fromkeys(name for name in inner.trace.calls if name not in into.trace.calls)
    if calls:
        into.notes.append(f"It holds a pickle as data that would call {', '.join(list(calls)[:5])} where unpickled.")


def _hdf5(path: pathlib.Path, content: Any, into: Found, member: str) -> None:
    from jaxguard.checkpoints import hdf5, mapping

    if content.find(_PYTABLES, 0, 2**20) >= 0:  # of pandas and PyTables, which pickle objects
        _sweep(Part(content, member, path.name), into)
    config = hdf5.root_attributes(mapping.mapped(path), into.given).get("model_config")
    if isinstance(config, (str, bytes)):
        text = config.encode() if isinstance(config, str) else config
        into.notes.extend(code_configs.keras(text, f"{member}/model_config" if member else "model_config", into.trace))
