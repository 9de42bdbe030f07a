"""The safetensors reader: what the library writes opens, and every lie in a header is one CheckpointError."""

import json
import math
import pathlib

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jaxguard import checkpoints
from jaxguard.checkpoints import header
from jaxguard.errors import CheckpointError

LEAVES = {
    "params/conv/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "params/conv/bias": np.array([1.5, -2.0, 0.25], ml_dtypes.bfloat16),
    "scale": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float16),
    "mask": np.array([True, False, True]),
}


def stored(fields: object, data: bytes = b"", length: int | None = None) -> bytes:
    """Bytes of a safetensors file with the header as given, true or not."""
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def tiny(tmp_path) -> pathlib.Path:
    path = tmp_path / "tiny.safetensors"
    checkpoints.save(path, LEAVES, metadata={"arch": "mlp", "note": "für später"})
    return path


def test_round_trip_keeps_values_shapes_dtypes_and_metadata(tiny):
    checkpoint = checkpoints.load(tiny)
    found = checkpoint.read_all()
    assert checkpoint.format == "safetensors"
    assert checkpoint.metadata == {"arch": "mlp", "note": "für später"}
    assert not checkpoint.left_out
    assert set(found) == set(LEAVES) == set(checkpoint.leaves)
    for name, leaf in LEAVES.items():
        assert found[name].dtype == leaf.dtype == checkpoint.leaves[name].dtype
        assert found[name].shape == leaf.shape == checkpoint.leaves[name].shape
        np.testing.assert_array_equal(found[name], leaf)


@pytest.mark.parametrize("code", checkpoints.DTYPES)
def test_every_dtype_of_the_table_round_trips(code, tmp_path):
    leaf = np.array([[4, 1, 2], [1, 1, 4]]).astype(checkpoints.DTYPES[code])
    checkpoints.save(tmp_path / "x.safetensors", {"leaf": leaf})
    found = checkpoints.load(tmp_path / "x.safetensors").read("leaf")
    assert found.dtype == leaf.dtype
    np.testing.assert_array_equal(found, leaf)


def test_the_library_reads_what_is_written_and_the_other_way_round(tmp_path):
    leaves = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3, np.int32)}
    checkpoints.save(tmp_path / "ours.safetensors", leaves, metadata={"a": "b"})
    for name, leaf in safetensors.numpy.load_file(tmp_path / "ours.safetensors").items():
        np.testing.assert_array_equal(leaf, leaves[name])
    safetensors.numpy.save_file(leaves, tmp_path / "theirs.safetensors", metadata={"a": "b"})
    theirs = checkpoints.load(tmp_path / "theirs.safetensors")
    assert theirs.metadata == {"a": "b"}
    for name, leaf in theirs.read_all().items():
        np.testing.assert_array_equal(leaf, leaves[name])


def test_strided_and_big_endian_leaves_are_written_by_value(tmp_path):
    leaf = np.arange(6, dtype=np.float32).reshape(2, 3)
    checkpoints.save(tmp_path / "x.safetensors", {"t": leaf.T, "b": leaf.astype(">f4"), "s": leaf[:, ::2]})
    found = checkpoints.load(tmp_path / "x.safetensors").read_all()
    np.testing.assert_array_equal(found["t"], leaf.T)
    np.testing.assert_array_equal(found["b"], leaf)
    np.testing.assert_array_equal(found["s"], leaf[:, ::2])


def test_equal_content_gives_equal_bytes_whatever_the_order(tmp_path):
    metadata = {str(i): "x" for i in range(9)}
    checkpoints.save(tmp_path / "a.safetensors", LEAVES, metadata=metadata)
    reordered = dict(reversed(LEAVES.items()))
    checkpoints.save(tmp_path / "b.safetensors", reordered, metadata=dict(reversed(metadata.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_leaves_are_aligned_read_only_views_of_the_file(tiny):
    checkpoint = checkpoints.load(tiny)
    first, second = checkpoint.read("params/conv/kernel"), checkpoint.read("params/conv/kernel")
    assert not first.flags.writeable and first.flags.aligned
    assert np.shares_memory(first, second)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0


def test_an_opened_file_keeps_its_content_when_its_name_is_overwritten(tiny):
    checkpoint = checkpoints.load(tiny)
    checkpoints.save(tiny, {"other": np.ones(100, np.float32)}, overwrite=True)
    np.testing.assert_array_equal(checkpoint.read("params/conv/kernel"), LEAVES["params/conv/kernel"])


HOSTILE = {
    "length beyond the file": (stored({"a": entry()}, bytes(8), length=2**40), "header length"),
    "length of all ones": (stored({"a": entry()}, bytes(8), length=2**64 - 1), "header length"),
    "length cuts the JSON": (stored({"a": entry()}, bytes(8), length=10), "not JSON"),
    "not UTF-8": (stored(b'{"\xff\xfe": 1}'), "not JSON"),
    "half a character": (stored({"\ud800": entry()}, bytes(8)), "surrogates not allowed"),
    "deep brackets": (stored(b'{"a":' + b"[" * 100_000), "nested too deeply"),
    "huge integer": (stored(b'{"a":' + b"9" * 10_000 + b"}"), "not JSON"),
    "key twice": (stored(b'{"a":{},"a":{}}'), "twice"),
    "inner key twice": (
        stored(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "twice",
    ),
    "no leaf at all": (stored({}), "at least one leaf"),
    "entry is text": (stored({"a": "x"}), "dtype, shape and data_offsets"),
    "entry lacks shape": (stored({"a": {"dtype": "F32", "data_offsets": [0, 8]}}), "dtype, shape and"),
    "entry has more": (stored({"a": entry() | {"x": 1}}, bytes(8)), "dtype, shape and"),
    "unknown dtype": (stored({"a": entry(dtype="OBJECT")}, bytes(8)), "'a': an array of element type 'OBJECT'"),
    "dtype is a list": (stored({"a": entry() | {"dtype": ["F32"]}}, bytes(8)), "expected a dtype"),
    "negative size": (stored({"a": entry(shape=(-2, -1))}, bytes(8)), "expected a shape"),
    "size is true": (stored({"a": entry(shape=(True, 2))}, bytes(8)), "expected a shape"),
    "size is a float": (stored({"a": entry(shape=(2.0,))}, bytes(8)), "expected a shape"),
    "too many axes": (stored({"a": entry(shape=[1] * 1000, offsets=(0, 4))}, bytes(4)), "expected a shape"),
    "shape overflows": (stored({"a": entry(shape=[2**32, 2**32], offsets=(0, 0))}), "address space"),
    "empty shape overflows": (stored({"a": entry(shape=[0, 2**62, 8], offsets=(0, 0))}), "address space"),
    "three offsets": (stored({"a": entry(offsets=(0, 4, 8))}, bytes(8)), "data_offsets"),
    "backward offsets": (stored({"a": entry(offsets=(8, 0))}, bytes(8)), "span the 8 bytes"),
    "negative offsets": (stored({"a": entry(offsets=(-8, 0))}, bytes(8)), "data_offsets"),
    "span too short": (stored({"a": entry(offsets=(0, 4))}, bytes(4)), "span the 8 bytes"),
    "span outside": (stored({"a": entry(offsets=(8, 16))}, bytes(8)), "inside the 8 bytes"),
    "data cut short": (stored({"a": entry()}, bytes(7)), "inside the 7 bytes"),
    "overlap": (stored({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "on top of the leaf before it"),
    "gap": (stored({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)), "behind bytes that belong to no leaf"),
    "gap in front": (stored({"a": entry(offsets=(4, 12))}, bytes(12)), "behind bytes that belong to no leaf"),
    "tail": (stored({"a": entry()}, bytes(9)), "1 bytes that belong to no leaf"),
    "metadata is a list": (stored({"__metadata__": [], "a": entry()}, bytes(8)), "text values"),
    "metadata of numbers": (stored({"__metadata__": {"x": 1}, "a": entry()}, bytes(8)), "text values"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_lying_header_is_one_clear_error(case, tmp_path):
    content, message = HOSTILE[case]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.load(path)
    assert str(path) in str(caught.value)
    assert "expected" in str(caught.value) and "got" in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(path))


def test_a_header_longer_than_the_limit_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(header, "MAX_HEADER_BYTES", 50)
    (tmp_path / "x.safetensors").write_bytes(stored({"a": entry()}, bytes(8)))
    with pytest.raises(CheckpointError, match="header length"):
        checkpoints.load(tmp_path / "x.safetensors")


def test_every_truncation_of_a_valid_file_is_refused(tiny, tmp_path):
    content = tiny.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for size in range(len(content)):
        cut.write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            checkpoints.load(cut)


def mutated(content: bytes, edits: list[tuple[float, int]], keep: float) -> bytes:
    changed = bytearray(content)
    for place, value in edits:
        changed[int(place * (len(changed) - 1))] = value
    return bytes(changed[: math.ceil(keep * len(changed))])


edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=edits, keep=st.one_of(st.just(1.0), st.floats(0, 1)))
@example(edits=[(0.0, 255)], keep=1.0)
def test_only_checkpoint_errors_escape_from_mutated_files(edits, keep, tiny, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(mutated(tiny.read_bytes(), edits, keep))
    try:
        found = checkpoints.load(broken).read_all()
    except CheckpointError:
        return
    assert sum(leaf.nbytes for leaf in found.values()) <= broken.stat().st_size


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.dictionaries(
        st.text(max_size=5),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from([*checkpoints.DTYPES, "I4", 3, None]),
                "shape": st.lists(st.integers(-1, 2**65) | st.integers(0, 3), max_size=4),
                "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2),
            }
        ),
        max_size=3,
    ),
    size=st.integers(0, 64),
)
def test_only_checkpoint_errors_escape_from_invented_headers(fields, size, tmp_path):
    path = tmp_path / "invented.safetensors"
    path.write_bytes(stored(fields, bytes(size)))
    try:
        found = checkpoints.load(path).read_all()
    except CheckpointError:
        return
    assert sum(leaf.nbytes for leaf in found.values()) == size


def test_third_party_files_open_with_their_recorded_hash(shared_data):
    files = sorted((shared_data / "checkpoints").glob("*.safetensors"))
    assert len(files) >= 30
    for path in files:
        record = json.loads(path.with_suffix(".json").read_text())
        checkpoint = checkpoints.load(path)
        assert checkpoint.sha256 == record["sha256"], path.name
        checkpoints.check_finite(checkpoint.read_all(), path)
        theirs = safetensors.numpy.load_file(path)
        for name, leaf in checkpoint.read_all().items():
            np.testing.assert_array_equal(leaf, theirs[name])


# ---------------------------------------------------------------- many files, one header


def test_files_with_the_same_header_share_what_is_known_of_it_and_nothing_else(tmp_path):
    leaves = {"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 2), np.float32)}
    for k in (0, 1):
        checkpoints.save(tmp_path / f"{k}.safetensors", {name: leaf + k for name, leaf in leaves.items()})
    first, second = (checkpoints.load(tmp_path / f"{k}.safetensors") for k in (0, 1))
    assert first.leaves is second.leaves
    with pytest.raises(TypeError, match="does not support item"):
        first.leaves["a"] = second.leaves["b"]  # pyright: ignore[reportIndexIssue]
    for k, opened in enumerate((first, second)):
        for name, leaf in opened.read_all().items():
            np.testing.assert_array_equal(leaf, leaves[name] + k)


def test_a_header_that_was_right_for_another_file_is_checked_against_this_one(tmp_path):
    whole = tmp_path / "whole.safetensors"
    checkpoints.save(whole, {"a": np.ones(8, np.float32)})
    checkpoints.load(whole)
    for name in ("cut", "cut too"):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(whole.read_bytes()[:-4])
        with pytest.raises(CheckpointError, match=rf"{name}\.safetensors: leaf 'a': expected data_offsets inside"):
            checkpoints.load(path)
