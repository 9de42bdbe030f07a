"""Flax msgpack: what Flax writes opens, Flax opens what is written, and hostile bytes are one CheckpointError."""

import pathlib
import time

import flax.serialization
import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import optax
import pytest
from flax.training import checkpoints as flax_checkpoints
from flax.training.train_state import TrainState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxguard import checkpoints
from jaxguard.checkpoints import msgpack as msgpack_format
from jaxguard.errors import CheckpointError

TREE = {
    "params": {
        "conv": {
            "kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
            "bias": np.array([1.5, -2], ml_dtypes.bfloat16),
        },
        "blocks": {"0": np.ones(2, np.float16), "1": jnp.zeros(3)},
    },
    "batch_stats": {"mean": np.zeros((0, 2)), "count": np.array(7, np.int32)},
}
LEAVES = checkpoints.flatten(TREE)


def written(path: pathlib.Path, content: bytes) -> pathlib.Path:
    path.write_bytes(content)
    return path


def ndarray(shape, dtype: str, content: bytes, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, content)))


def assert_holds(checkpoint: checkpoints.Checkpoint, leaves=LEAVES) -> None:
    found = checkpoint.read_all()
    assert checkpoint.format == "msgpack"
    assert set(found) == set(checkpoint.leaves) == set(leaves)
    for name, leaf in leaves.items():
        assert type(found[name]) is np.ndarray
        assert found[name].dtype == checkpoint.leaves[name].dtype == leaf.dtype
        assert found[name].shape == checkpoint.leaves[name].shape == leaf.shape
        np.testing.assert_array_equal(found[name], leaf)


def test_what_flax_writes_opens(tmp_path):
    assert_holds(checkpoints.load(written(tmp_path / "x.msgpack", flax.serialization.to_bytes(TREE))))


def test_flax_opens_what_is_written(tmp_path):
    checkpoints.save(tmp_path / "x.msgpack", LEAVES)
    content = (tmp_path / "x.msgpack").read_bytes()
    assert content == flax.serialization.msgpack_serialize(TREE)
    checkpoints.save(tmp_path / "described.msgpack", LEAVES, metadata={"arch": "mlp", "note": "für später"})
    restored = flax.serialization.from_bytes(TREE, (tmp_path / "described.msgpack").read_bytes())
    jax.tree.map(np.testing.assert_array_equal, restored, TREE)
    described = checkpoints.load(tmp_path / "described.msgpack")
    assert_holds(described)
    assert described.metadata == {"arch": "mlp", "note": "für später"}


def test_round_trip_of_every_dtype(tmp_path):
    leaves = {f"params/{code}": np.ones((2, 3)).astype(dtype) for code, dtype in checkpoints.DTYPES.items()}
    leaves["params/turned"] = np.arange(6.0).reshape(2, 3).T
    leaves["params/swapped"] = np.arange(6).astype(">i4")
    checkpoints.save(tmp_path / "x.msgpack", leaves)
    assert_holds(checkpoints.load(tmp_path / "x.msgpack"), {**leaves, "params/swapped": np.arange(6, dtype=np.int32)})


def test_arrays_in_chunks_of_a_gigabyte(tmp_path, monkeypatch):
    leaf = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    tree = {"params": {"w": leaf, "b": np.ones(2)}, "other": leaf.T}
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 28)
    monkeypatch.setattr("jaxguard.checkpoints.msgpack._CHUNK_BYTES", 28)
    theirs = flax.serialization.msgpack_serialize(tree)
    assert theirs.count(b"__msgpack_chunked_array__") == 2
    assert_holds(checkpoints.load(written(tmp_path / "x", theirs)), checkpoints.flatten(tree))
    checkpoints.save(tmp_path / "y.msgpack", checkpoints.flatten(tree))
    ours = flax.serialization.msgpack_restore((tmp_path / "y.msgpack").read_bytes())
    jax.tree.map(np.testing.assert_array_equal, ours, tree)


def train_state(step: int) -> TrainState:
    state = TrainState.create(apply_fn=None, params=TREE["params"], tx=optax.adam(1e-3))
    return state.replace(step=step, params=jax.tree.map(lambda leaf: leaf + step, state.params))


@pytest.mark.parametrize("step", [3, jnp.array(3)], ids=["python", "array"])
def test_a_train_state_is_its_model(step, tmp_path):
    path = written(tmp_path / "x", flax.serialization.to_bytes(train_state(0).replace(step=step)))
    checkpoint = checkpoints.load(path)
    assert_holds(checkpoint, {name: leaf for name, leaf in LEAVES.items() if name.startswith("params/")})
    assert checkpoint.metadata["step"] == "3"
    assert sum(why == "optimizer state" for why in checkpoint.left_out.values()) == 9  # 4 mu, 4 nu, their count


def test_a_run_opens_at_its_latest_or_at_a_named_step(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAX_USE_ORBAX_CHECKPOINTING", "0")
    for step in (2, 10):
        path = written(tmp_path / f"checkpoint_{step}", flax.serialization.to_bytes(train_state(step)))
        assert flax_checkpoints.latest_checkpoint(tmp_path) == str(path)
    written(tmp_path / "checkpoint_99", b"")
    written(tmp_path / "checkpoint_11.tmp", b"half")
    assert checkpoints.load(tmp_path).metadata["step"] == "10"
    assert checkpoints.load(tmp_path).read("params/blocks/0").tolist() == [11, 11]
    assert checkpoints.load(f"{tmp_path}@2").read("params/blocks/0").tolist() == [3, 3]
    assert checkpoints.load(f"{tmp_path}@2").path == f"{tmp_path}@2"
    with pytest.raises(CheckpointError, match="expected step 7"):
        checkpoints.load(f"{tmp_path}@7")


def test_scalars_are_metadata_and_lists_are_numbered(tmp_path):
    tree = {
        "w": [np.ones(1), np.zeros(2)],
        "numbered": {3: np.ones(3)},
        "epoch": 7,
        "rate": 0.5,
        "done": True,
        "none": None,
        "note": "für",
        "turn": 1 + 2j,
        "low": np.float16(0.25),
        "raw": b"abc",
        "empty": {},
    }
    checkpoint = checkpoints.load(written(tmp_path / "x", flax.serialization.msgpack_serialize(tree)))
    assert_holds(checkpoint, {"w/0": np.ones(1), "w/1": np.zeros(2), "numbered/3": np.ones(3)})
    assert checkpoint.metadata == {
        **{"epoch": "7", "rate": "0.5", "done": "True", "note": "für"},
        **{"turn": "(1+2j)", "low": "0.25", "raw": "3 bytes"},
    }


def nested(depth: int) -> bytes:
    return b"\x81\xa1a" * depth + b"\x01"


HOSTILE = {
    "nested maps": (nested(100_000), "64 levels"),
    "nested arrays": (b"\x81\xa1a" + b"\x91" * 100_000 + b"\x01", "64 levels"),
    "map of 4 billion": (b"\xdf\xff\xff\xff\xff\xa1a\x01", "map within the 3 bytes left, got size 4294967295"),
    "array of 4 billion": (b"\x81\xa1a\xdd\xff\xff\xff\xff", "array within"),
    "text of 4 GB": (b"\x81\xdb\xff\xff\xff\xffa", "text within"),
    "extension of 4 GB": (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "extension within"),
    "reserved byte": (b"\x81\xa1a\xc1", "0xc1"),
    "long key": (msgpack.packb({"a" * 2000: 1}), "at most 1024"),
    "many entries": (msgpack.packb({"a": [0] * 100_001}), "at most 100000 entries"),
    "many empty maps": (msgpack.packb({"a": [{}] * 1_000_001}), "at most 1000000 tokens"),
    "two of a name": (b"\x82\xa1a\x01\xa1a\x02", "'a', got two"),
    "two joined to a name": (msgpack.packb({"a": {"b": 1}, "a/b": 2}), "'a/b', got two"),
    "bytes after the end": (msgpack.packb({"a": 1}) + b"\x00", "1 more bytes"),
    "key is a map": (b"\x81\xa1a\x81\x80\x01", "expected text, got map"),
    "key is no UTF-8": (b"\x82\xa1a\x01\xa1\xff\x01", "UTF-8"),
    "nothing to read": (msgpack.packb({"a": 1}), "at least one array"),
    "unknown extension": (msgpack.packb({"a": msgpack.ExtType(9, b"abc")}), "extension 9"),
    "timestamp": (msgpack.packb({"a": msgpack.Timestamp(3)}), "extension -1"),
    "object dtype": (
        msgpack.packb({"a": ndarray((1,), "object", bytes(8))}),
        r"element type 'object'\), which is not supported",
    ),
    "text dtype": (
        msgpack.packb({"a": ndarray((1,), "str96", bytes(12))}),
        r"element type 'str96'\), which is not supported",
    ),
    "dtype with fields": (
        msgpack.packb({"a": ndarray((1,), "i4,i4", bytes(8))}),
        r"element type 'i4,i4'\), which is not supported",
    ),
    "negative axis": (msgpack.packb({"a": ndarray((-1, -4), "uint8", bytes(4))}), "sizes"),
    "boolean axis": (msgpack.packb({"a": ndarray((True,), "uint8", bytes(1))}), "sizes"),
    "map as axis": (msgpack.packb({"a": ndarray(({},), "uint8", b"")}), "sizes"),
    "huge empty": (msgpack.packb({"a": ndarray((2**63, 0), "uint8", b"")}), "sizes"),
    "33 axes": (msgpack.packb({"a": ndarray((1,) * 33, "uint8", b"a")}), "a shape, a dtype"),
    "few bytes": (msgpack.packb({"a": ndarray((2**40,), "uint8", b"a")}), "another number"),
    "bytes too many": (msgpack.packb({"a": ndarray((1,), "uint8", b"ab")}), "another number"),
    "no payload": (msgpack.packb({"a": msgpack.ExtType(1, b"\xa1a")}), "the end of the data"),
    "payload with a tail": (
        msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,), "uint8", b"a")) + b"\x00")}),
        "1 more bytes",
    ),
    "scalar of two": (msgpack.packb({"a": ndarray((2,), "uint8", b"ab", code=3)}), "a scalar"),
    "complex of three": (msgpack.packb({"a": msgpack.ExtType(2, msgpack.packb((1.0, 2.0, 3.0)))}), "two real|more"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_one_clear_error(name, tmp_path):
    content, message = HOSTILE[name]
    path = written(tmp_path / "x.msgpack", content)
    begun = time.process_time()
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert time.process_time() - begun < 10


CHUNKED = {
    "__msgpack_chunked_array__": True,
    "shape": {"0": 2, "1": 2},
    "chunks": {"0": ndarray((3,), "uint8", b"abc"), "1": ndarray((1,), "uint8", b"d")},
}


@pytest.mark.parametrize(
    "change",
    [
        {"shape": {"0": 2, "1": 3}},
        {"shape": {"0": 2, "2": 2}},
        {"shape": {"0": -2, "1": -2}},
        {"shape": {"0": {"x": 4}}},
        {"chunks": {}},
        {"chunks": {"0": ndarray((4,), "uint8", b"abcd"), "2": ndarray((0,), "uint8", b"")}},
        {"chunks": {"0": 3}},
        {"chunks": {"0": ndarray((3,), "uint8", b"abc"), "1": ndarray((1,), "int8", b"d")}},
        {"extra": 3},
    ],
)
def test_hostile_chunks_are_one_clear_error(change, tmp_path):
    whole = written(tmp_path / "whole", msgpack.packb({"a": {"b": CHUNKED}}))
    assert checkpoints.load(whole).read("a/b").tobytes() == b"abcd"
    path = written(tmp_path / "x", msgpack.packb({"a": {"b": CHUNKED | change}}))
    with pytest.raises(CheckpointError, match="'a/b': expected"):
        checkpoints.load(path)


def test_an_empty_file_is_one_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="whole token"):
        msgpack_format.open_checkpoint(written(tmp_path / "x", b""), "x")


def test_an_empty_map_is_no_checkpoint_but_perhaps_a_pickle(tmp_path):
    for content in (b"\x80", b"\x80\x02}q\x00."):
        with pytest.raises(CheckpointError):
            checkpoints.load(written(tmp_path / "x", content))


def test_leaves_are_read_when_asked_for(tmp_path):
    path = tmp_path / "x.msgpack"
    checkpoints.save(path, {"w": np.zeros(1000, np.uint8)})
    checkpoint = checkpoints.load(path)
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(len(content) - 1)
        file.write(b"\x07")
    assert checkpoint.read("w")[-1] == 7
    assert not checkpoint.read("w").flags.writeable


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
    keep=st.sampled_from([1.0, 1.0, 0.9, 0.5]),
)
def test_only_checkpoint_errors_escape_from_mutated_files(places, keep, tmp_path):
    content = bytearray(flax.serialization.to_bytes(train_state(1)))
    for place, value in places:
        content[int(place * (len(content) - 1))] = value
    path = written(tmp_path / "x", bytes(content[: int(keep * len(content))]))
    try:
        found = checkpoints.load(path).read_all()
    except CheckpointError:
        return
    assert found
