"""Orbax directories that are damaged or lie: each is one CheckpointError, within bounded memory."""

import json
import os
import pathlib
import shutil
import tracemalloc
import zlib

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from orbax_trees import LEAVES, assert_holds, write

from jaxguard import checkpoints
from jaxguard.errors import CheckpointError


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> pathlib.Path:
    """One folder per array, whose files can be damaged one by one; never written to."""
    return write(tmp_path_factory.mktemp("orbax") / "plain", use_ocdbt=False)


@pytest.fixture
def copy(plain, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(plain, tmp_path / "copy"))


def edited_index(directory: pathlib.Path, edit) -> None:
    index = json.loads((directory / "_METADATA").read_text())
    edit(index["tree_metadata"])
    (directory / "_METADATA").write_text(json.dumps(index))


def renamed(keys):
    def edit(tree):
        tree["('scale',)"]["key_metadata"] = [{"key": key, "key_type": 2} for key in keys]

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (renamed([".."]), "leaves it or occurs twice"),
        (renamed(["../copy/step"]), "leaves it or occurs twice"),
        (renamed(["/etc"]), "leaves it or occurs twice"),
        (renamed([]), "leaves it or occurs twice"),
        (renamed(["a", "b"]), "'a/b': .*leaves it or occurs twice"),
        (renamed(["absent"]), "names, got . parts of others, such as 'scale"),
        (renamed(["\ud800"]), "surrogates not allowed"),
        (lambda tree: tree["('scale',)"].pop("key_metadata"), "expected key_metadata"),
        (lambda tree: tree.update(x=3), "expected key_metadata"),
        (lambda tree: tree.clear(), "at least one array"),
    ],
)
def test_a_lying_index_is_one_clear_error(edit, message, copy):
    edited_index(copy, edit)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.load(copy)
    assert str(copy) in str(caught.value)


def test_a_leaf_of_another_kind_is_left_out_by_name(copy):
    def edit(tree):
        tree["('scale',)"]["value_metadata"].update(value_type="evil.Class")

    edited_index(copy, edit)
    checkpoint = checkpoints.load(copy)
    assert checkpoint.left_out == {"scale": "a value of type 'evil.Class', which is not supported"}
    assert "scale" not in checkpoint.leaves and len(checkpoint.read_all()) == len(checkpoint.leaves)


ODD = ["|O", "<U5", "<c16", "int4", "|V2147483647", [["x", "<f4"], ["y", "<f4"]]]


@pytest.mark.parametrize("dtype", ODD, ids=str)
def test_an_array_of_other_elements_is_left_out_by_name(dtype, copy):
    file = copy / "params.conv.kernel" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dtype": dtype}))
    checkpoint = checkpoints.load(copy)
    assert list(checkpoint.left_out) == ["params/conv/kernel"]
    assert checkpoint.left_out["params/conv/kernel"].startswith("elements of type ")
    assert "params/conv/kernel" not in checkpoint.leaves and len(checkpoint.read_all()) == len(checkpoint.leaves)
    assert any("params/conv/kernel" in note and "may be a part of the model" in note for note in checkpoint.notes)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff", b'{"a":1,"a":2}', b'{"tree_metadata": 3}', b"[" * 99_999]
)
def test_a_broken_index_is_one_clear_error(content, copy):
    (copy / "_METADATA").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"header|tree_metadata"):
        checkpoints.load(copy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": [2**20, 2**20, 4]}, "announced"),
        ({"chunks": [2**20, 2**20, 4]}, "announced"),
        ({"shape": [2, 2**62, 4]}, "readable array|announced"),
        ({"dtype": None}, "readable array"),
        ({"zarr_format": 9}, "readable array"),
    ],
)
def test_an_array_that_announces_the_impossible_is_refused_before_it_is_read(fields, message, copy):
    file = copy / "params.conv.kernel" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.load(copy)
    assert str(copy) in str(caught.value)


def test_a_decompression_bomb_stops_at_the_announced_size(copy):
    folder = copy / "params.conv.kernel"
    described = json.loads((folder / ".zarray").read_text()) | {"compressor": {"id": "zlib", "level": 9}}
    (folder / ".zarray").write_text(json.dumps(described))
    (folder / "0.0.0").write_bytes(zlib.compress(bytes(2**26), 9))
    checkpoint = checkpoints.load(copy)
    with pytest.raises(CheckpointError, match="'params/conv/kernel': expected a readable array"):
        checkpoint.read("params/conv/kernel")


def frame(size: int) -> bytes:
    return pyarrow.compress(bytes(size), codec="zstd", asbytes=True)


RUNS = (2**17 << 3 | 1 << 1).to_bytes(3, "little") + b"x"  # 128 KiB in four bytes
CHUNKS = {
    "more than announced": frame(97),
    "fewer than announced": frame(95),
    "many times what is announced": frame(2**26),
    "gigabytes of no announced size": b"\x28\xb5\x2f\xfd\x00\x50" + RUNS * 2**14 + b"\x01\x00\x00",
    "gigabytes of a false size": b"\x28\xb5\x2f\xfd\x20\x60" + RUNS * 2**14 + b"\x01\x00\x00",
    "an address space": b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8 + RUNS,
    "two frames": frame(96) + frame(96),
    "cut short": frame(96)[:-1],
    "nothing": b"",
}


@pytest.mark.parametrize("case", CHUNKS)
def test_a_chunk_of_another_size_is_one_error_in_little_memory(case, copy):
    (copy / "params.conv.kernel" / "0.0.0").write_bytes(CHUNKS[case])
    checkpoint = checkpoints.load(copy)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="'params/conv/kernel': expected a readable array"):
        checkpoint.read("params/conv/kernel")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    np.testing.assert_array_equal(checkpoint.read("scale"), LEAVES["scale"])


def test_damage_in_one_leaf_leaves_the_others_readable(copy):
    (copy / "params.conv.kernel" / "0.0.0").write_bytes(b"garbage")
    checkpoint = checkpoints.load(copy)
    np.testing.assert_array_equal(checkpoint.read("scale"), LEAVES["scale"])
    with pytest.raises(CheckpointError, match="'params/conv/kernel': expected a readable array"):
        checkpoint.read_all()


def test_a_missing_chunk_is_not_read_as_zeros(copy):
    (copy / "params.conv.kernel" / "0.0.0").unlink()
    with pytest.raises(CheckpointError, match="'params/conv/kernel': expected a readable array"):
        checkpoints.load(copy).read("params/conv/kernel")


def test_a_pipe_inside_is_refused_instead_of_waited_for(copy):
    (copy / "scale" / "0").unlink()
    os.mkfifo(copy / "scale" / "0")
    with pytest.raises(CheckpointError, match="special file"):
        checkpoints.load(copy)


def test_links_to_files_open_and_broken_links_do_not(copy, tmp_path):
    shutil.move(copy / "scale" / "0", tmp_path / "blob")
    (copy / "scale" / "0").symlink_to(tmp_path / "blob")
    assert_holds(checkpoints.load(copy))
    (tmp_path / "blob").unlink()
    with pytest.raises(CheckpointError, match="broken link"):
        checkpoints.load(copy)


damage = st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 255), st.sampled_from([1.0, 1.0, 0.5]))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=damage)
@pytest.mark.parametrize("kind", ["ocdbt", "plain"])
def test_only_checkpoint_errors_escape_from_mutated_directories(kind, damage, tmp_path, plain):
    which, place, value, keep = damage
    original, broken = tmp_path / "original", tmp_path / "broken"
    if not original.exists():
        shutil.copytree(plain, original) if kind == "plain" else write(original)
    shutil.rmtree(broken, ignore_errors=True)
    shutil.copytree(original, broken)
    files = sorted(path for path in broken.rglob("*") if path.is_file() and path.stat().st_size)
    chosen = files[int(which * (len(files) - 1))]
    content = bytearray(chosen.read_bytes())
    content[int(place * (len(content) - 1))] = value
    chosen.write_bytes(content[: int(keep * len(content))])
    try:
        found = checkpoints.load(broken).read_all()
    except CheckpointError:
        return
    assert found
