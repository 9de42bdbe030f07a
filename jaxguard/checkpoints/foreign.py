"""Files of formats that are not read, named as what they are by their content; nothing of them is believed."""

import os
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

from jaxguard.checkpoints import archive, protobuf

HEAD_BYTES = 2**16
"""So much of a file is looked at."""

SHARD_SUFFIX = ".distcp"
"""Of the shards that torch.distributed.checkpoint writes."""

_TAIL_BYTES = 8


class Foreign(NamedTuple):
    """What a file or folder is.

    Attributes:
        what: with an article, such as `a GGUF model`.
        remedy: what to do to have it audited.
        is_placeholder: whether the file that was meant is elsewhere.
    """

    what: str
    remedy: str
    is_placeholder: bool = False


_ORIGINAL = "audit the checkpoint that it was exported from"
_SAVE = "load it where it was made and save the weights as safetensors"
_UNPACK = "unpack it first"
_EXPORT = "save the state_dict of the model that was exported"
_MERGE = "convert it with torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
_ELSEWHERE = True

_STARTS: tuple[tuple[bytes, Foreign], ...] = (
    (b"GGUF", Foreign("a GGUF model of llama.cpp", _ORIGINAL)),
    *((magic, Foreign("a GGML model", _ORIGINAL)) for magic in (b"lmgg", b"tjgg", b"fmgg", b"algg")),
    (b"ptrt", Foreign("a TensorRT engine", _ORIGINAL)),
    (b"ftrt", Foreign("a TensorRT engine", _ORIGINAL)),
    (b"\x12\x01" + bytes(6), Foreign("an MXNet file of arrays", _SAVE)),
    (bytes(4) + b"\2\0\0\0\5\0\0\0", Foreign("Darknet weights", _SAVE)),
    (b"MATLAB 5.0 MAT-file", Foreign("a MATLAB file", "save the arrays as npz")),
    (b"PAR1", Foreign("a Parquet table", "save the arrays as npz")),
    (b"ARROW1", Foreign("an Arrow table", "save the arrays as npz")),
    (b"\x1f\x8b", Foreign("a file packed with gzip", _UNPACK)),
    (b"BZh", Foreign("a file packed with bzip2", _UNPACK)),
    (b"\xfd7zXZ\0", Foreign("a file packed with xz", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", Foreign("a file packed with Zstandard", _UNPACK)),
    (b"\x04\x22\x4d\x18", Foreign("a file packed with LZ4", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Foreign("a 7z archive", _UNPACK)),
    (b"Rar!\x1a\x07", Foreign("a RAR archive", _UNPACK)),
    (
        b"version https://git-lfs",
        Foreign("a Git LFS pointer in place of the file", "run `git lfs pull`", is_placeholder=True),
    ),
)
"""First bytes that say it all."""

_ZLIB = re.compile(rb"\x78[\x01\x5e\x9c\xda]")
_STREAM = re.compile(rb"\x92[\x91-\x9f](?:[\xa1-\xbf]|\xd9.)[\w.-]", re.DOTALL)
_JOBLIB = re.compile(rb"joblib\.numpy_pickle|joblib\nNumpyArrayWrapper")
_WEB_PAGE = re.compile(rb"\s*<(?:!doctype html|html|head|\?xml[^>]*>\s*<error)", re.IGNORECASE)
_OPENVINO = re.compile(rb"\s*(?:<\?xml[^>]*>)?\s*<net\s")
_TABLE = (0xDB4775248B80FB57).to_bytes(_TAIL_BYTES, "little")
_DATA_OF_TENSORFLOW = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")


def named(path: pathlib.Path) -> Foreign | None:
    """What a file or folder is that no reader takes; None where that cannot be told.

    Args:
        path: a regular file or a directory.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_dir():
        return _named_folder(path)
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _TAIL_BYTES, 0))
        tail = file.read()
    if head.startswith(archive.MAGIC):
        return _named_zip(path)
    found = next((foreign for magic, foreign in _STARTS if head.startswith(magic)), None)
    return found or next((foreign for is_it, foreign in _TESTS if is_it(head, tail, path)), None)


def is_joblib(head: bytes) -> bool:
    """Whether a pickle is of joblib, whose arrays stand between the opcodes; by its first kilobytes."""
    return _JOBLIB.search(head) is not None


def _named_zip(path: pathlib.Path) -> Foreign | None:
    names = archive.member_names(path)
    tops = {name.partition("/")[2] if "/" in name else name for name in names}
    if tops & {"archive_format", "archive_version"} or "serialized_exported_program.json" in names:
        return Foreign("a program of torch.export (.pt2)", _EXPORT)
    if any(name.endswith(".mlmodel") for name in names):
        return Foreign("a Core ML package", _ORIGINAL)
    if "saved_model.pb" in {name.rpartition("/")[2] for name in names}:
        return Foreign("a TensorFlow SavedModel, packed", _SAVE)
    if not names:
        return None
    return Foreign("a zip archive that holds no PyTorch, NumPy or Keras checkpoint", _UNPACK)


def _named_folder(folder: pathlib.Path) -> Foreign | None:
    names = {child.name for child in folder.iterdir()}
    if shards := [name for name in names if name.endswith(SHARD_SUFFIX)]:
        return Foreign(f"a folder of torch.distributed.checkpoint with {len(shards)} shards", _MERGE)
    return next((found for is_it, found in _FOLDERS if is_it(folder, names)), None)


def _holds_zarr(folder: pathlib.Path, names: set[str]) -> bool:
    return any((folder / name / file).is_file() for name in names for file in ("zarr.json", ".zarray"))


def _holds_tensorflow(folder: pathlib.Path, names: set[str]) -> bool:
    indexes = [name for name in names if name.endswith(".index") and _is_table(folder / name)]
    return bool(indexes) and any(_DATA_OF_TENSORFLOW.fullmatch(name) for name in names)


_FOLDERS: tuple[tuple[Callable[[pathlib.Path, set[str]], bool], Foreign], ...] = (
    (lambda _, names: bool(names & {"saved_model.pb", "saved_model.pbtxt"}), Foreign("a TensorFlow SavedModel", _SAVE)),
    (lambda folder, _: (folder / "Data/com.apple.CoreML").is_dir(), Foreign("a Core ML package", _ORIGINAL)),
    (
        lambda _, names: any(name.startswith("zero_pp_rank_") for name in names),
        Foreign("a DeepSpeed ZeRO checkpoint in parts", "merge it with DeepSpeed's zero_to_fp32"),
    ),
    (_holds_zarr, Foreign("a folder of Zarr arrays without an Orbax index", "save it again with Orbax")),
    (_holds_tensorflow, Foreign("a TensorFlow checkpoint", _SAVE)),
)
"""Tests of `(folder, names in it)`."""


def _is_table(path: pathlib.Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
        return file.read() == _TABLE


def _is_tensorflow_data(head: bytes, tail: bytes, path: pathlib.Path) -> bool:
    """The data of a TensorFlow checkpoint are bare bytes; the index beside them says what they are."""
    del head, tail
    match = _DATA_OF_TENSORFLOW.fullmatch(path.name)
    index = path.with_name(f"{match[1]}.index") if match else None
    return index is not None and index.is_file() and _is_table(index)


def _is_zlib(head: bytes, *_: object) -> bool:
    return _ZLIB.match(head) is not None and int.from_bytes(head[:2], "big") % 31 == 0


def _is_tensorflow_js(head: bytes, *_: object) -> bool:
    return head.lstrip().startswith(b"{") and b'"modelTopology"' in head


def _is_message(kind: str) -> Callable[..., bool]:
    return lambda head, tail, path: protobuf.kind_of(path) == kind


_TESTS: tuple[tuple[Callable[[bytes, bytes, pathlib.Path], bool], Foreign], ...] = (
    (lambda head, *_: head[4:8] == b"TFL3", Foreign("a TensorFlow Lite model", _ORIGINAL)),
    (lambda head, *_: head[4:6] == b"ET" and head[6:8].isdigit(), Foreign("an ExecuTorch program", _ORIGINAL)),
    (lambda head, *_: head[257:262] == b"ustar", Foreign("a tar archive", _UNPACK)),
    (lambda head, *_: is_joblib(head), Foreign("a pickle of joblib", "save the arrays as npz or safetensors")),
    (lambda head, *_: bool(_STREAM.match(head)), Foreign("a stream of EasyLM", "convert it to one msgpack file")),
    (
        lambda head, *_: bool(_WEB_PAGE.match(head)),
        Foreign("a web page in place of the file", "download it again", is_placeholder=True),
    ),
    (lambda head, *_: bool(_OPENVINO.match(head)), Foreign("an OpenVINO model", _ORIGINAL)),
    (lambda _, tail, __: tail == _TABLE, Foreign("the index of a TensorFlow checkpoint", _SAVE)),
    (_is_tensorflow_data, Foreign("the data of a TensorFlow checkpoint", _SAVE)),
    (_is_tensorflow_js, Foreign("a TensorFlow.js model", _ORIGINAL)),
    (_is_message("onnx"), Foreign("an ONNX model", _ORIGINAL)),
    (_is_message("coreml"), Foreign("a Core ML model", _ORIGINAL)),
    (_is_message("saved_model"), Foreign("the graph of a TensorFlow SavedModel", _SAVE)),
    (_is_message("graph_def"), Foreign("a frozen TensorFlow graph", _ORIGINAL)),
    (_is_message("caffe"), Foreign("a Caffe model", _SAVE)),
    (_is_message("mindspore"), Foreign("a MindSpore checkpoint", _SAVE)),
    (_is_zlib, Foreign("a file packed with zlib, perhaps by joblib", _UNPACK)),
)
"""Tests of `(first bytes, last bytes, path)`, from the certain to the vague."""
