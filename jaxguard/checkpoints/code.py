"""Code that a loader would run: calls in pickles, marshalled functions in Keras files, operators of TorchScript.

No tensor is read and nothing is run. Only the standard library is needed, HDF5 excepted, so the verdict is instant.
"""

import bz2
import gzip
import io
import json
import lzma
import mmap
import os
import pathlib
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxguard.checkpoints import header, pickle_calls
from jaxguard.checkpoints.pickle_calls import Call, Trace
from jaxguard.checkpoints.pickle_danger import runs_code
from jaxguard.errors import CheckpointError

_PICKLES = (".pkl", ".pickle", ".p", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".jbl", ".th", ".dill", ".pk")
_ZIP, _NPY, _HDF5, _SEVEN = b"PK\x03\x04", b"\x93NUMPY", b"\x89HDF\r\n\x1a\n", b"7z\xbc\xaf\x27\x1c"
_HEAD, _MAX_BYTES, _MAX_MEMBERS, _MAX_DEPTH, _MAX_CONFIG = 1024, 2**28, 100_000, 4, 2**26
_PACKED = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"]\0\0": lzma.LZMAFile,
}
_KERAS = ("keras", "tensorflow", "tf_keras", "keras_hub", "keras_nlp", "keras_cv", "builtins")
_OPERATOR = re.compile(r"\bops\.(?!aten\b|prim\b|quantized\b|torchvision\b)(\w+)\.(\w+)")
_FILES = re.compile(r"\b(?:torch|ops\.aten)\.(save|from_file|load)\(")


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


class _Found(NamedTuple):
    given: str
    trace: Trace
    notes: list[str]

    def fail(self, why: str) -> None:
        self.trace.problem = self.trace.problem or f"{self.given}: {why}"


def examine(path: str | os.PathLike[str]) -> Code:
    """Looks for code that a loader of a file, or of a folder with a model, would run.

    Args:
        path: a local file or folder.

    Returns:
        All that was found; what cannot be read is a `problem`, never an exception.

    >>> examine("no such file").calls
    ()
    """
    given, trace, notes = os.fspath(path), Trace(), list[str]()
    into = _Found(given, trace, notes)
    try:
        location = _local(given)
        if location.is_dir():
            for file in sorted(location.iterdir()):
                if file.is_file():
                    _examine(file, into, file.name)
            notes += _beside(location)
        elif location.is_file():
            _examine(location, into, "")
            notes += _beside(location.parent) if location.name in _HUGGING_FACE else []
    except (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, zlib.error, lzma.LZMAError) as error:
        trace.problem = trace.problem or f"{given}: expected to read it, found {error}; is it complete?"
    except (CheckpointError, zipfile.BadZipFile, tarfile.TarError, RecursionError, LookupError) as error:
        trace.problem = trace.problem or str(error)
    if trace.named:
        names = list(trace.named)
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        called = [name for name in names if name not in trace.calls]
        if called:
            notes.append(f"Classes and functions named in it: {', '.join(called[:5])}{more}.")
    return Code(tuple(trace.calls.values()), tuple(dict.fromkeys(notes)), trace.problem)


def _local(given: str) -> pathlib.Path:
    """The path, or where what is behind a URL was downloaded to."""
    if re.match(r"[a-z][a-z0-9+]+://", given):
        from jaxguard.checkpoints import remote

        return remote.fetched(given)
    return pathlib.Path(given)


_HUGGING_FACE = frozenset(("model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "tf_model.h5"))


def _examine(path: pathlib.Path, into: _Found, member: str) -> None:
    if not stat.S_ISREG(path.stat().st_mode) or not path.stat().st_size:
        return
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _content(content, into, member, path.name, 0)
    if content[:8] == _HDF5:
        _hdf5(path, into, member)


def _content(content: Any, into: _Found, member: str, name: str, depth: int) -> None:
    """Follows whatever a file, a member or decompressed bytes are."""
    head, suffix = bytes(content[:_HEAD]), pathlib.PurePosixPath(name).suffix.lower()
    if depth > _MAX_DEPTH:
        into.trace.problem = (
            into.trace.problem or f"{into.given}: expected archives in archives up to {_MAX_DEPTH}, found more"
        )
        return
    if head.startswith(_ZIP) or (suffix not in {".safetensors", ".npy"} and _has_directory(content)):
        _zip(content, into, member, depth)
        if head.startswith(_ZIP):
            return
    if head.startswith(_NPY):
        _npy(content, into, member)
    elif head.startswith(_SEVEN):
        into.trace.problem = (
            into.trace.problem or f"{into.given}: expected content to follow, found a 7z archive; unpack it first"
        )
    elif head[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for info in archive:
                if info.isfile() and info.size <= _MAX_BYTES and (file := archive.extractfile(info)):
                    _content(file.read(), into, _joined(member, info.name), info.name, depth + 1)
    elif opener := next((opener for magic, opener in _PACKED.items() if head.startswith(magic)), None):
        unpacked = opener(io.BytesIO(content)).read(_MAX_BYTES)
        _content(unpacked, into, _joined(member, "decompressed"), name, depth + 1)
    elif head[:1] == b"x" and head[1:2] in (b"\x01", b"\x9c", b"\xda", b"\x5e"):
        unpacked = zlib.decompressobj().decompress(bytes(content), _MAX_BYTES)
        _content(unpacked, into, _joined(member, "decompressed"), name, depth + 1)
    elif pickle_calls.START.match(head) and not head.startswith(_HDF5):
        pickle_calls.follow(content, into.given, member, into.trace)
    elif suffix in _PICKLES and not head.startswith(b"version "):
        pickle_calls.follow(content, into.given, member, into.trace, is_certain=False)


def _has_directory(content: Any) -> bool:
    """Whether a zip archive's directory is at the end, whatever the file begins with."""
    return content[max(len(content) - 66_000, 0) :].rfind(b"PK\x05\x06") >= 0


def _joined(member: str, name: str) -> str:
    return f"{member}/{name}" if member else name


def _zip(content: Any, into: _Found, member: str, depth: int) -> None:
    file = content if isinstance(content, mmap.mmap) else io.BytesIO(content)
    archive = zipfile.ZipFile(file)  # type: ignore[arg-type]  # a map reads like a file
    for info in archive.infolist()[:_MAX_MEMBERS]:
        name = info.filename
        suffix, where = pathlib.PurePosixPath(name).suffix.lower(), _joined(member, name)
        if info.is_dir() or ("/data/" in name and suffix not in (".py", *_PICKLES)):
            continue
        try:
            head = _member(content, info, _HEAD)
            if suffix == ".py" and "code/" in name:
                _torchscript(_member(content, info, _MAX_CONFIG).decode("utf-8", "replace"), where, into)
            elif name == "config.json":
                _keras(_member(content, info, _MAX_CONFIG), where, into)
            elif suffix in _PICKLES or head.startswith((_ZIP, _NPY)) or pickle_calls.START.match(head):
                is_plain = head.startswith(_NPY) and b"O" not in head[: head.find(b"\n") + 1]
                whole = head if is_plain else _member(content, info, _MAX_BYTES)
                _content(whole, into, where, name, depth + 1)
        except (ValueError, zlib.error, OSError, EOFError, lzma.LZMAError) as error:
            into.fail(f"member {header.shown(name)}: expected to read it, found {error}; do not load it elsewhere")


def _member(content: Any, info: zipfile.ZipInfo, limit: int) -> bytes:
    """The start of a member, as a lenient loader reads it: checksums and flags do not count."""
    at = info.header_offset
    local = bytes(content[at : at + 30])
    if local[:4] != _ZIP:
        raise ValueError("no header where the directory says")
    start = at + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    stored = bytes(content[start : start + min(info.compress_size, limit)])
    match info.compress_type:
        case zipfile.ZIP_STORED:
            return stored
        case zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, limit)
        case zipfile.ZIP_BZIP2:
            return bz2.BZ2Decompressor().decompress(bytes(content[start : start + info.compress_size]), limit)
    raise ValueError(f"compression method {info.compress_type}")


def _npy(content: Any, into: _Found, member: str) -> None:
    head = bytes(content[:_HEAD])
    width = 2 if head[6:7] == b"\x01" else 4
    start = 8 + width + int.from_bytes(head[8 : 8 + width], "little")
    if re.search(rb"'descr'\s*:\s*[^}]*[|']O", bytes(content[:start])):
        pickle_calls.follow(content, into.given, member, into.trace, start=start)


def _torchscript(text: str, member: str, into: _Found) -> None:
    """Methods of TorchScript may only call torch's own operators, of which few touch files."""
    for match in _FILES.finditer(text):
        into.trace.add(Call(f"torch.{match[1]}", " (by a method of TorchScript)", member, match.start()))
    found = list(dict.fromkeys(f"{namespace}.{name}" for namespace, name in _OPERATOR.findall(text)))
    if found:
        into.notes.append(f"Methods in {member} call operators that are not torch's own: {', '.join(found[:5])}.")


def _keras(content: bytes, member: str, into: _Found) -> None:
    """Functions in the configuration of a Keras model: it is walked as data."""
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        return
    for entry in _dictionaries(config):
        kind, module, inner = entry.get("class_name"), entry.get("module"), entry.get("config")
        if not isinstance(kind, str):
            continue
        if kind in ("Lambda", "TFOpLambda", "SlicingOpLambda", "__lambda__"):
            source = inner.get("function") if isinstance(inner, dict) else inner
            if kind == "TFOpLambda":
                continue
            is_marshalled = (
                kind == "__lambda__"
                or isinstance(source, list)
                or (isinstance(source, dict) and source.get("class_name") == "__lambda__")
                or (isinstance(inner, dict) and inner.get("function_type") == "lambda")
            )
            name = inner.get("name") if isinstance(inner, dict) else None
            if is_marshalled:
                told = f"(marshalled code of a layer {header.shown(name)})" if name else "(marshalled code)"
                into.trace.add(Call("keras.layers.Lambda", told, member, 0))
            else:
                into.notes.append(
                    f"A Lambda layer calls the function {header.shown(source)}, which the loader must be given."
                )
        elif isinstance(module, str) and module.split(".")[0] not in _KERAS:
            called = inner if kind == "function" and isinstance(inner, str) else kind
            if kind == "function" or runs_code(module, str(called)):
                into.trace.add(Call(f"{module}.{called}"[:200], " (named in the configuration)", member, 0))
            else:
                into.notes.append(f"The class {module}.{kind} is not Keras's own: a loader imports it.")
        elif isinstance(entry.get("registered_name"), str) and ">" in entry["registered_name"] and not module:
            into.notes.append(f"The class {entry['registered_name']} is not Keras's own: a loader must be given it.")


def _dictionaries(found: Any) -> Iterator[dict[str, Any]]:
    pending = [found]
    while pending:
        here = pending.pop()
        if isinstance(here, dict):
            yield here
        pending += here.values() if isinstance(here, dict) else here if isinstance(here, list) else ()


def _hdf5(path: pathlib.Path, into: _Found, member: str) -> None:
    from jaxguard.checkpoints import hdf5, mapping

    try:
        config = hdf5.open_hdf5(mapping.mapped(path), into.given).root.get("model_config")
    except CheckpointError as error:
        into.trace.problem = into.trace.problem or str(error)
        return
    if isinstance(config, (str, bytes)):
        text = config.encode() if isinstance(config, str) else config
        _keras(text, _joined(member, "model_config"), into)


def _beside(folder: pathlib.Path) -> Iterator[str]:
    """Code beside a Hugging Face model, which runs where `trust_remote_code` is set."""
    config = folder / "config.json"
    if not config.is_file() or config.stat().st_size > _MAX_CONFIG:
        return
    try:
        fields = json.loads(config.read_bytes())
    except (ValueError, RecursionError):
        return
    if isinstance(fields, dict) and isinstance(mapped := fields.get("auto_map"), dict):
        yield f"With trust_remote_code a loader would run {', '.join(map(str, list(mapped.values())[:5]))} (auto_map)."
    sources = sorted(file.name for file in folder.glob("*.py"))[:5]
    if sources and isinstance(fields, dict) and "model_type" in fields:
        yield f"Python files beside the model: {', '.join(sources)}; with trust_remote_code a loader would run them."
