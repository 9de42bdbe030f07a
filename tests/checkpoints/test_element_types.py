"""One array of a type that no leaf has is left out by name in every format; the others are read."""

import pathlib
import pickle
import struct

import flax.serialization
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
import safetensors
import torch_bytes as handmade
from orbax import checkpoint as ocp

from jaxguard import checkpoints
from jaxguard.errors import UnsupportedError

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
W = np.arange(6, dtype=np.float32).reshape(2, 3)
HALF_BYTES = np.arange(4).astype(ml_dtypes.int4)


def of_safetensors(path: pathlib.Path, dtype: str, nbytes: int) -> None:
    fields = {
        "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "odd": {"dtype": dtype, "shape": [4], "data_offsets": [24, 24 + nbytes]},
    }
    text = str(fields).replace("'", '"').encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + W.tobytes() + bytes(nbytes))


def of_npz(path: pathlib.Path, odd: np.ndarray) -> None:
    with path.open("wb") as file:
        np.savez(file, w=W, odd=odd)


def of_msgpack(path: pathlib.Path, odd) -> None:
    path.write_bytes(flax.serialization.msgpack_serialize({"w": W, "odd": odd}))


def of_orbax(path: pathlib.Path, **layout) -> None:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**layout)) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave({"w": W, "odd": jnp.arange(4, dtype=jnp.int4)}))


def of_equinox(path: pathlib.Path, odd: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, W)
        np.save(file, odd)
        np.save(file, W + 1)


def of_torch(path: pathlib.Path, kind: str, size: int, wrap=handmade.zipped) -> None:
    odd = handmade.tensor((2,), (1,), stored=handmade.storage("1", 2, kind))
    program = handmade.mapping(w=handmade.tensor(), odd=odd)
    counts = {"counts": {"1": 2}} if wrap is handmade.legacy else {}
    path.write_bytes(wrap(program, {"0": struct.pack("<6f", *range(6)), "1": bytes(2 * size)}, **counts))


def of_pickle(path: pathlib.Path, odd: np.ndarray) -> None:
    path.write_bytes(pickle.dumps({"w": W, "odd": odd}))


CASES = {
    "safetensors F4": lambda path: of_safetensors(path, "F4", 2),
    "safetensors I4": lambda path: of_safetensors(path, "I4", 2),
    "safetensors F6": lambda path: of_safetensors(path, "F6_E2M3", 3),
    "safetensors of tomorrow": lambda path: of_safetensors(path, "F3_X", 5),
    "npz text": lambda path: of_npz(path, np.array(["a", "bc"])),
    "npz objects": lambda path: of_npz(path, np.array([{"a": 1}, None])),
    "npz double complex": lambda path: of_npz(path, np.ones(2, np.complex128)),
    "msgpack int4": lambda path: of_msgpack(path, HALF_BYTES),
    "msgpack uint4": lambda path: of_msgpack(path, np.zeros(4, ml_dtypes.uint4)),
    "orbax int4": of_orbax,
    "orbax int4, plain": lambda path: of_orbax(path, use_ocdbt=False),
    "orbax int4, zarr3": lambda path: of_orbax(path, use_zarr3=True),
    "torch double complex": lambda path: of_torch(path, "torch ComplexDoubleStorage", 16),
    "torch quantized": lambda path: of_torch(path, "torch QInt8Storage", 1),
    "torch of tomorrow": lambda path: of_torch(path, "torch HalfByteStorage", 1),
    "legacy double complex": lambda path: of_torch(path, "torch ComplexDoubleStorage", 16, handmade.legacy),
    "pickle double complex": lambda path: of_pickle(path, np.ones(2, np.complex128)),
    "pickle text": lambda path: of_pickle(path, np.array(["a", "bc"])),
    "pickle objects": lambda path: of_pickle(path, np.array([{"a": 1}, None])),
    "pickle int4": lambda path: of_pickle(path, HALF_BYTES),
}


@pytest.mark.parametrize("case", CASES)
def test_an_odd_array_is_left_out_by_name(case, tmp_path):
    CASES[case](tmp_path / "x")
    checkpoint = checkpoints.load(tmp_path / "x")
    assert list(checkpoint.leaves) == ["w"]
    np.testing.assert_array_equal(checkpoint.read_all()["w"], W)
    assert list(checkpoint.left_out) == ["odd"]
    assert checkpoint.left_out["odd"].endswith(", which is not supported")
    (note,) = checkpoint.notes
    assert note.startswith("Not read, as that is not supported, though it may be a part of the model: 'odd': ")


@pytest.mark.parametrize("odd", [np.array(["a"]), np.ones(2, np.complex128)], ids=["text", "double complex"])
def test_an_odd_record_of_equinox_keeps_its_number(odd, tmp_path):
    of_equinox(tmp_path / "x.eqx", odd)
    checkpoint = checkpoints.load(tmp_path / "x.eqx")
    assert list(checkpoint.leaves) == ["0", "2"] and list(checkpoint.left_out) == ["1"]
    np.testing.assert_array_equal(checkpoint.read("2"), W + 1)


def test_odd_arrays_of_keras_are_left_out_by_name():
    checkpoint = checkpoints.load(GOLDEN / "hdf5" / "mixed.h5")
    assert list(checkpoint.leaves) == ["layers/dense/kernel"] and checkpoint.read_all()
    assert {name.rpartition("/")[2] for name in checkpoint.left_out} == {"words", "record", "wide"}
    assert all(why.endswith(", which is not supported") for why in checkpoint.left_out.values())


def test_a_table_of_pandas_is_named():
    with pytest.raises(UnsupportedError, match="got tables of pandas, which is not supported"):
        checkpoints.load(GOLDEN / "hdf5" / "pandas.h5")


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "bfloat16"])
def test_small_floats_are_leaves_in_every_format_that_writes_them(dtype, tmp_path):
    odd = np.arange(1, 5).astype(np.float32).astype(dtype)
    checkpoints.save(tmp_path / "x.safetensors", {"w": W, "odd": odd})
    with safetensors.safe_open(tmp_path / "x.safetensors", "np") as file:
        assert set(file.keys()) == {"w", "odd"}
    checkpoints.save(tmp_path / "x.msgpack", {"w": W, "odd": odd})
    checkpoints.save(tmp_path / "orbax", {"w": W, "odd": odd})
    of_pickle(tmp_path / "x.pkl", odd)
    for name in ("x.safetensors", "x.msgpack", "orbax", "x.pkl"):
        checkpoint = checkpoints.load(tmp_path / name)
        assert not checkpoint.left_out and checkpoint.read("odd").dtype == dtype
        assert checkpoint.read("odd").tobytes() == odd.tobytes()


def test_one_odd_array_alone_is_a_file_that_is_not_supported(tmp_path):
    packed = msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((4,), "int4", bytes(4))))})
    (tmp_path / "x.msgpack").write_bytes(packed)
    with pytest.raises(UnsupportedError, match="dense arrays of numbers, got other kinds alone"):
        checkpoints.load(tmp_path / "x.msgpack")
    np.save(tmp_path / "x.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(UnsupportedError, match="Python objects, which only unpickling would bring back"):
        checkpoints.load(tmp_path / "x.npy")
