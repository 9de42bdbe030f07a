"""Files of formats that are not read, built by hand from their specifications: a few bytes each."""

import gzip
import io
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable

import msgpack
import numpy as np
from flax import serialization

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
