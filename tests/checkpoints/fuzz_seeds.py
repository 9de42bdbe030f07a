"""Small valid checkpoints of every format and variant, as files in memory: what the fuzzer mutates.

Some hold pickles that would run code if anything unpickled them; the file `CANARY` would then appear.
"""

import argparse
import collections
import functools
import io
import json
import os
import pathlib
import pickle
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.serialization
import foreign_bytes
import jax
import ml_dtypes
import msgpack
import numpy as np
import torch_bytes

from jaxguard import checkpoints, models
from jaxguard.checkpoints import DTYPES

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CANARY = "jaxguard_canary"
FILE = "checkpoint"
FOLDER, FOREIGN = "folder", "foreign"
KERNEL, BIAS = np.arange(12, dtype=np.float32).reshape(3, 4), np.ones(4, np.float32)


class Seed(NamedTuple):
    """A checkpoint that opens, unless it carries a gadget.

    Attributes:
        kind: row of `jaxguard.checkpoints.FORMATS`, `folder` for one that is found inside a folder, or `foreign` for a
            format that is named and refused.
        name: which variant.
        files: `{relative path: content}`.
        target: which of the files to open; empty for the folder itself.
    """

    kind: str
    name: str
    files: Mapping[str, bytes]
    target: str = FILE


class _Gadget:
    """What attackers put into a pickle."""

    def __init__(self, function: Any, *args: Any):
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


GADGETS = (_Gadget(os.system, f"touch {CANARY}"), _Gadget(open, CANARY, "w"), _Gadget(exec, f"open({CANARY!r}, 'w')"))


@functools.cache
def seeds() -> Mapping[str, tuple[Seed, ...]]:
    """`{kind: seeds}`, the same ones on every call and every machine."""
    found: dict[str, list[Seed]] = {name: [] for name in (*checkpoints.FORMATS, FOLDER, FOREIGN)}
    for seed in (
        *_safetensors(),
        *_sharded(),
        *_orbax(),
        *_msgpack(),
        *_keras(),
        *_pytorch(),
        *_numpy(),
        *_pickles(),
        *_folders(),
        *(Seed(FOREIGN, name, {FILE: content()}) for name, (content, _) in foreign_bytes.FILES.items()),
    ):
        found[seed.kind].append(seed)
    return {kind: tuple(variants) for kind, variants in found.items()}


def _saved(leaves: Mapping[str, Any], suffix: str = ".safetensors", **metadata: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / f"x{suffix}"
        checkpoints.save(path, leaves, metadata=metadata)
        return path.read_bytes()


def _zipped(*arguments: Any, **options: Any) -> bytes:
    """`torch_bytes.zipped` without today's date."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(torch_bytes.zipped(*arguments, **options))) as dated,
        zipfile.ZipFile(buffer, "w") as archive,
    ):
        for entry in dated.infolist():
            archive.writestr(zipfile.ZipInfo(entry.filename), dated.read(entry), entry.compress_type)
    return buffer.getvalue()


def _network(spec: str) -> dict[str, np.ndarray]:
    model = models.build(spec, num_classes=3, input_shape=(8, 8, 1))
    return checkpoints.flatten(model.init(jax.random.key(0)))


def _safetensors() -> Iterator[Seed]:
    every = {code: np.zeros((2, 1), dtype) for code, dtype in DTYPES.items()}
    every |= {"empty": np.zeros((0, 3), np.float32), "scalar": np.array(3, np.int64)}
    contents = {
        "dtypes": _saved(every, note="für später", arch="mlp"),
        "mlp": _saved(_network("mlp:hidden=4")),
        "resnet20": _saved(_network("resnet20:width=0.0625")),
        "by hand": _saved({"conv1.weight": np.ones((4, 1, 3, 3), np.float32), "bn1.weight": BIAS, "bn1.bias": BIAS}),
    }
    odd = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"x":{"dtype":"F4","shape":[4],"data_offsets":[8,10]}}'
    contents["an odd array"] = len(odd).to_bytes(8, "little") + odd + bytes(10)
    yield from (Seed("safetensors", name, {FILE: content}) for name, content in contents.items())


def _shards(suffix: str) -> dict[str, bytes]:
    parts = {f"model-{n}-of-2{suffix}": {f"layer{n}.weight": KERNEL, f"layer{n}.bias": BIAS} for n in (1, 2)}
    weight_map = {name: file for file, leaves in parts.items() for name in leaves}
    index = {"metadata": {"total_size": 128, "format": "pt"}, "weight_map": weight_map}
    if suffix == ".bin":
        storage, shapes = np.arange(12, dtype=np.float32).tobytes(), {"weight": ((3, 4), (4, 1)), "bias": ((4,), (1,))}
        contents = {
            file: _zipped(
                torch_bytes.mapping(
                    **{name: torch_bytes.tensor(*shapes[name[7:]], stored=torch_bytes.storage(size=12)) for name in of}
                ),
                {"0": storage},
            )
            for file, of in parts.items()
        }
    else:
        contents = {file: _saved(leaves, suffix) for file, leaves in parts.items()}
    return {f"model{suffix}.index.json": json.dumps(index).encode(), **contents}


def _sharded() -> Iterator[Seed]:
    for suffix in (".safetensors", ".msgpack", ".bin"):
        yield Seed("sharded", suffix, _shards(suffix), f"model{suffix}.index.json")


def _orbax() -> Iterator[Seed]:
    layouts: dict[str, dict[str, bytes]] = collections.defaultdict(dict)
    with zipfile.ZipFile(GOLDEN / "orbax.zip") as packed:
        for name in packed.namelist():
            layout, _, path = name.partition("/")
            layouts[layout][path] = packed.read(name)
    yield from (Seed("orbax", layout, files, "") for layout, files in layouts.items())
    odd = next({**files} for files in layouts.values() if sum(name.endswith("/.zarray") for name in files) > 1)
    name = next(name for name in odd if name.endswith("/.zarray") and b'"<f4"' in odd[name])
    yield Seed("orbax", "an odd array", odd | {name: odd[name].replace(b'"<f4"', b'"int4"')}, "")


def _msgpack() -> Iterator[Seed]:
    def array(values: np.ndarray) -> msgpack.ExtType:
        return msgpack.ExtType(1, msgpack.packb((values.shape, values.dtype.name, values.tobytes())))

    chunks = {"0": array(KERNEL.reshape(-1)[:8]), "1": array(KERNEL.reshape(-1)[8:])}
    chunked = {"__msgpack_chunked_array__": True, "shape": {"0": 3, "1": 4}, "chunks": chunks}
    params = {"dense": {"kernel": KERNEL, "bias": BIAS.astype(ml_dtypes.bfloat16)}, "list": {"0": BIAS, "1": BIAS}}
    mixed = {"params": params, "note": "text", "lr": 0.5, "scalar": np.float32(2), "complex": 1 + 2j, "none": None}
    state = {"step": np.array(3), "params": params, "opt_state": {"0": {"mu": params, "count": np.array(3)}, "1": {}}}
    contents = {
        "mixed": flax.serialization.msgpack_serialize(mixed),
        "train state": flax.serialization.msgpack_serialize(state),
        "chunked": msgpack.packb({"params": {"kernel": chunked, "bias": array(BIAS)}}),
        "NNX lists": msgpack.packb({"layers": {0: {"kernel": array(KERNEL)}, 1: {"kernel": array(KERNEL)}}}),
        "metadata": _saved(_network("mlp:hidden=4"), ".msgpack", arch="mlp:hidden=4"),
        "an odd array": msgpack.packb({"w": array(KERNEL), "x": array(np.zeros(4, ml_dtypes.int4))}),
        "an average": flax.serialization.msgpack_serialize({"params": params, "ema_params": params}),
    }
    yield from (Seed("msgpack", name, {FILE: content}) for name, content in contents.items())
    steps = {f"checkpoint_{n}": contents["train state"] for n in (1, 2)}
    yield Seed("msgpack", "steps", steps, "")


def _keras() -> Iterator[Seed]:
    sound = ("storages", "dense", "lying_names", "circle", "soft_circle", "missing_chunks", "bomb", "external")
    sound += ("mixed", "pandas")
    files = [GOLDEN / name for name in ("keras_legacy.h5", "keras.weights.h5", "keras.keras")]
    for path in (*files, *(GOLDEN / "hdf5" / f"{name}.h5" for name in sound)):
        yield Seed("keras", path.name, {FILE: path.read_bytes()})


def _pytorch() -> Iterator[Seed]:
    for path in sorted((GOLDEN / "pytorch").glob("*.pt")):
        kind = "pytorch-legacy" if path.stem.endswith("_legacy") else "pytorch"
        yield Seed(kind, path.name, {FILE: path.read_bytes()})
    for number, gadget in enumerate(GADGETS):
        bomb = pickle.dumps(gadget, 2).removeprefix(b"\x80\x02").removesuffix(b".")
        program = torch_bytes.mapping(w=torch_bytes.tensor(), epoch=bomb)
        yield Seed("pytorch", f"gadget {number}", {FILE: _zipped(program)})
        yield Seed("pytorch-legacy", f"gadget {number}", {FILE: torch_bytes.legacy(program)})
    sound = torch_bytes.mapping(w=torch_bytes.tensor())
    odd = torch_bytes.tensor((2,), (1,), stored=torch_bytes.storage("1", 2, "torch ComplexDoubleStorage"))
    tied = torch_bytes.mapping(w=torch_bytes.tensor(), again=torch_bytes.tensor(), odd=odd)
    content = {"0": bytes(24), "1": bytes(32)}
    yield Seed("pytorch", "tied and odd", {FILE: _zipped(tied, content)})
    yield Seed("pytorch", "bytes behind", {FILE: _zipped(sound) + bytes(64)})
    yield Seed("pytorch-legacy", "tied and odd", {FILE: torch_bytes.legacy(tied, content, {"1": 2})})
    yield Seed("pytorch-legacy", "bytes behind", {FILE: torch_bytes.legacy(sound) + bytes(5)})
    yield Seed("pytorch", "big-endian", {FILE: _zipped(sound, order=b"big")})
    yield Seed("pytorch", "deflated", {FILE: _zipped(sound, compression=zipfile.ZIP_DEFLATED)})
    yield Seed("pytorch-legacy", "by hand", {FILE: torch_bytes.legacy(sound)})


def _numpy() -> Iterator[Seed]:
    def record(values: Any) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        return buffer.getvalue()

    leaves = {
        **{"dense/kernel": KERNEL, "dense/bias": BIAS.astype(">f4"), "fortran": np.asfortranarray(KERNEL)},
        **{"half": BIAS.astype(np.float16), "brain": BIAS.astype(ml_dtypes.bfloat16), "note": np.array("text")},
        **{"scalar": np.array(3), "empty": np.zeros((0, 2))},
    }
    for writer in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        writer(buffer, **leaves)
        yield Seed("npz", writer.__name__, {FILE: buffer.getvalue()})
    buffer = io.BytesIO()
    np.savez(buffer, w=KERNEL, words=np.array(["a", "bc"]), things=np.array([{"a": 1}]), wide=np.ones(2, np.complex128))
    yield Seed("npz", "odd arrays", {FILE: buffer.getvalue()})
    records = b"".join(record(values) for name, values in leaves.items() if name != "note")
    yield Seed("equinox", "bare", {FILE: records})
    yield Seed("equinox", "with a line", {FILE: b'{"width": 4, "act": "relu", "sizes": [1, 2]}\n' + records})
    yield Seed("equinox", "one array", {FILE: record(KERNEL)})
    yield Seed("equinox", "golden", {FILE: (GOLDEN / "equinox.eqx").read_bytes()})


def _pickles() -> Iterator[Seed]:
    tree = {"params": {"dense": {"kernel": KERNEL, "bias": BIAS.astype(">f4")}}, "epoch": 3, "lr": 0.5}
    tree["lists"] = [(KERNEL.T, np.float64(0.25)), {1: BIAS}, {"a"}, b"bytes", 2**70]
    tree["ordered"] = collections.OrderedDict(w=BIAS, args=argparse.Namespace(lr=0.1))
    for protocol in range(6):
        yield Seed("pickle", f"protocol {protocol}", {FILE: pickle.dumps(tree, protocol)})
    for number, gadget in enumerate(GADGETS):
        yield Seed("pickle", f"gadget {number}", {FILE: pickle.dumps({"w": KERNEL, "x": gadget}, number + 2)})
    loop: dict[str, Any] = {"w": BIAS}
    loop["self"] = [loop, loop]
    odd = {"w": KERNEL, "words": np.array(["a"]), "things": np.array([None]), "half": np.zeros(4, ml_dtypes.int4)}
    yield Seed("pickle", "odd arrays", {FILE: pickle.dumps(odd)})
    yield Seed("pickle", "bytes behind", {FILE: pickle.dumps({"w": KERNEL}) + bytes(5)})
    yield Seed("pickle", "circle", {FILE: pickle.dumps(loop)})


def _folders() -> Iterator[Seed]:
    config = {"model_type": "resnet", "architectures": ["Net"], "id2label": {"0": "cat", "1": "dog"}, "depths": [1, 2]}
    beside = {"config.json": json.dumps(config).encode(), "preprocessor_config.json": b'{"image_mean": [0.5, 0.5]}'}
    whole = _saved({"conv.weight": np.ones((2, 1, 3, 3), np.float32), "conv.bias": np.ones(2, np.float32)})
    state = (GOLDEN / "pytorch" / "state_dict.pt").read_bytes()
    yield Seed(FOLDER, "one file", {**beside, "model.safetensors": whole, "README.md": b"# a model"}, "")
    yield Seed(FOLDER, "several", {**beside, "model.safetensors": whole, "pytorch_model.bin": state}, "")
    yield Seed(FOLDER, "shards", {**beside, **_shards(".safetensors")}, "")
    yield Seed(FOLDER, "unnamed", {"weights": state, "config.json": beside["config.json"]}, "")
