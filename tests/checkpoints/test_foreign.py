"""Files that other programs read are named as what they are by their content: refused alone, skipped in folders."""

import gzip
import io
import pathlib
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable

import msgpack
import numpy as np
import pytest
import safetensors.numpy
from flax import serialization

from jaxguard import checkpoints
from jaxguard.errors import CheckpointError, DamagedError, UnsupportedError

WEIGHTS = np.arange(6, dtype=np.float32)


def field(number: int, content: bytes | int) -> bytes:
    """One field of a protocol buffer: a number below 128, or bytes."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(found) + bytes([value])


def onnx() -> bytes:
    """ModelProto: ir_version 1, producer_name 2, graph 7, opset_import 8 (onnx.proto)."""
    initializer = field(1, 6) + field(2, 1) + field(8, b"w") + field(9, WEIGHTS.tobytes())
    graph = field(1, field(1, b"x") + field(4, b"Relu")) + field(2, b"main") + field(5, initializer)
    return field(1, 8) + field(2, b"pytorch") + field(7, graph) + field(8, field(1, b"") + field(2, 17))


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("weights.bin"))
    return buffer.getvalue()


def of_joblib() -> bytes:
    """As joblib writes: a pickle that names its wrapper, the array between the opcodes."""
    head = b"\x80\x04}\x8c\x01wcjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}\x8c\x05shapeK\x06\x85sb"
    return head + b"\x0f" + b"\xff" * 15 + WEIGHTS.tobytes() + b"s."


def easylm() -> bytes:
    packer = msgpack.Packer()
    leaves = {("params", "dense", "kernel"): WEIGHTS, ("params", "dense", "bias"): WEIGHTS}
    return b"".join(packer.pack((key, serialization.to_bytes(leaf))) for key, leaf in leaves.items())


TABLE_END = bytes.fromhex("57fb808b247547db")  # of the tables of LevelDB, as TensorFlow writes indexes

FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "model.onnx": (onnx, "an ONNX model"),
    "model.gguf": (lambda: b"GGUF" + bytes([3, 0, 0, 0]) + bytes(16), "a GGUF model"),
    "old.bin": (lambda: b"tjgg" + bytes(16), "a GGML model"),
    "model.tflite": (lambda: bytes([28, 0, 0, 0]) + b"TFL3" + bytes(24), "a TensorFlow Lite model"),
    "model.pte": (lambda: bytes([28, 0, 0, 0]) + b"ET12" + bytes(24), "an ExecuTorch program"),
    "model.mlmodel": (
        lambda: field(1, 4) + field(2, field(1, field(1, b"x"))) + field(500, field(1, b"layer")),
        "a Core ML model",
    ),
    "saved_model.pb": (lambda: field(1, 1) + field(2, field(1, field(5, b"2.15"))), "the graph of a TensorFlow Saved"),
    "frozen.pb": (lambda: field(1, field(1, b"conv/w") + field(2, b"Const")) * 2, "a frozen TensorFlow graph"),
    "net.caffemodel": (lambda: field(1, b"VGG16") + field(100, field(1, b"conv1")), "a Caffe model"),
    "resnet.ckpt": (
        lambda: field(1, field(1, b"conv1.weight") + field(2, field(1, 6) + field(2, b"Float32") + field(3, b"\1\2"))),
        "a MindSpore checkpoint",
    ),
    "model.ckpt.index": (lambda: bytes(60) + TABLE_END, "the index of a TensorFlow checkpoint"),
    "model.pt2": (
        lambda: zipped(**{"m/archive_format": b"pt2", "m/data/weights/w": b"1"}),
        "a program of torch.export",
    ),
    "model.mlpackage.zip": (lambda: zipped(**{"Data/com.apple.CoreML/model.mlmodel": b"1"}), "a Core ML package"),
    "other.zip": (lambda: zipped(**{"notes.txt": b"1"}), "a zip archive that holds no"),
    "stream": (easylm, "a stream of EasyLM"),
    "model.joblib": (of_joblib, "a pickle of joblib"),
    "model.pkl.gz": (lambda: gzip.compress(pickle.dumps({"w": 1})), "packed with gzip"),
    "model.pkl.z": (lambda: zlib.compress(pickle.dumps({"w": 1})), "packed with zlib"),
    "model.tar": (tarred, "a tar archive"),
    "model.params": (lambda: b"\x12\x01" + bytes(22), "an MXNet file"),
    "yolo.weights": (lambda: bytes([0, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0]) + bytes(16), "Darknet weights"),
    "model.xml": (lambda: b'<?xml version="1.0"?>\n<net name="m" version="11">', "an OpenVINO model"),
    "model.json": (lambda: b'{"format": "layers-model", "modelTopology": {}}', "a TensorFlow.js model"),
    "model.mat": (lambda: b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "a MATLAB file"),
}
"""Name -> content, and how it is named; the name plays no part."""


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_named_by_its_content(name, tmp_path):
    content, what = FILES[name]
    for path in (tmp_path / name, tmp_path / "anything"):
        path.write_bytes(content())
        with pytest.raises(UnsupportedError, match=f"got .*{what}.*which is not supported; ") as caught:
            checkpoints.load(path)
        assert caught.value.kind == "unsupported"
        path.unlink()


def test_folders_count_them_as_skipped_with_what_they_are(tmp_path):
    for name, (content, _) in FILES.items():
        (tmp_path / name).write_bytes(content())
    (tmp_path / "saved_model.pb").unlink()  # which makes a whole folder a SavedModel
    safetensors.numpy.save_file({"w": WEIGHTS}, tmp_path / "good.safetensors")
    listed = {pathlib.Path(one.path).name: one.reason for one in checkpoints.below(tmp_path)}
    assert [name for name, reason in listed.items() if not reason] == ["good.safetensors"]
    for name in FILES.keys() - {"saved_model.pb"}:
        assert FILES[name][1] in listed[name]
        assert "which is not supported; " in listed[name]


FOLDERS = {
    "SavedModel": ({"saved_model.pb": b"\x08\x01", "variables/variables.index": TABLE_END}, "a TensorFlow SavedModel"),
    "TensorFlow checkpoint": (
        {"model.index": bytes(60) + TABLE_END, "model.data-00000-of-00001": bytes(24), "checkpoint": b"model"},
        "a TensorFlow checkpoint",
    ),
    "Core ML": ({"Manifest.json": b"{}", "Data/com.apple.CoreML/model.mlmodel": b"\x08\x04"}, "a Core ML package"),
    "DCP": ({".metadata": b"\x80\x02}.", "__0_0.distcp": zipped(**{"archive/data.pkl": b"."})}, "with 1 shards"),
    "Zarr": ({"target.dense.kernel/.zarray": b"{}", "target.dense.kernel/0.0": b""}, "Zarr arrays without"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_named_and_skipped_as_a_whole(name, tmp_path):
    files, what = FOLDERS[name]
    for file, content in files.items():
        (tmp_path / "store" / "m" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "store" / "m" / file).write_bytes(content)
    with pytest.raises(UnsupportedError, match=f"got .*{what}.*which is not supported; "):
        checkpoints.load(tmp_path / "store" / "m")
    (listed,) = checkpoints.below(tmp_path / "store")
    assert what in listed.reason
    # A checkpoint beside it is not passed over with it.
    safetensors.numpy.save_file({"w": WEIGHTS}, tmp_path / "store" / "m" / "good.safetensors")
    assert [one.path for one in checkpoints.below(tmp_path / "store") if not one.reason] == [
        str(tmp_path / "store" / "m" / "good.safetensors")
    ]


def test_the_data_of_a_tensorflow_checkpoint_are_told_by_their_index(tmp_path):
    (tmp_path / "model.data-00000-of-00001").write_bytes(bytes(24))
    with pytest.raises(UnsupportedError, match="got an unknown format"):
        checkpoints.load(tmp_path / "model.data-00000-of-00001")
    (tmp_path / "model.index").write_bytes(bytes(60) + TABLE_END)
    with pytest.raises(UnsupportedError, match="got the data of a TensorFlow checkpoint"):
        checkpoints.load(tmp_path / "model.data-00000-of-00001")


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), (b"<!DOCTYPE html><html>", "a web page")],
)
def test_what_stands_in_place_of_a_file_is_no_format(content, what, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=what) as caught:
        checkpoints.load(tmp_path / "model.safetensors")
    assert caught.value.kind == "unreadable"
    assert [one.reason for one in checkpoints.below(tmp_path)] == [""]  # it is an error, not skipped


def test_a_zip_archive_without_its_directory_is_damaged(tmp_path):
    (tmp_path / "model.pt").write_bytes(zipped(**{"archive/data.pkl": b"."})[:-30])
    with pytest.raises(DamagedError, match="a zip archive with its directory"):
        checkpoints.load(tmp_path / "model.pt")
