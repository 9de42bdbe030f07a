"""Safetensors in shards: what Hugging Face's layout holds opens lazily, and a lying index is one CheckpointError."""

import hashlib
import json
import os
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from jaxguard import checkpoints
from jaxguard.errors import CheckpointError, HostileError

SHARDS = {
    "model-00001-of-00002.safetensors": {"encoder.weight": np.arange(12.0).reshape(3, 4), "encoder.bias": np.ones(3)},
    "model-00002-of-00002.safetensors": {"head.weight": np.full((2, 3), 0.5, np.float16)},
}
LEAVES = {name: leaf for shard in SHARDS.values() for name, leaf in shard.items()}
FIRST, SECOND = SHARDS


def index_of(shards) -> dict:
    size = sum(leaf.nbytes for shard in shards.values() for leaf in shard.values())
    weight_map = {name: file for file, shard in shards.items() for name in shard}
    return {"metadata": {"total_size": size}, "weight_map": weight_map}


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """As `save_pretrained` leaves it."""
    made = tmp_path / "model"
    made.mkdir()
    for file, shard in SHARDS.items():
        safetensors.numpy.save_file(shard, made / file, metadata={"format": "pt"})
    write_index(made, index_of(SHARDS))
    return made


def write_index(folder: pathlib.Path, index) -> pathlib.Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(index if isinstance(index, str) else json.dumps(index, indent=2))
    return path


def assert_holds(checkpoint: checkpoints.Checkpoint) -> None:
    found = checkpoint.read_all()
    assert checkpoint.format == "sharded"
    assert list(found) == list(checkpoint.leaves) == list(LEAVES)
    for name, leaf in LEAVES.items():
        assert found[name].dtype == checkpoint.leaves[name].dtype == leaf.dtype
        assert checkpoint.leaves[name].shape == leaf.shape
        np.testing.assert_array_equal(found[name], leaf)
        np.testing.assert_array_equal(checkpoint.read(name), leaf)


def test_the_index_and_its_folder_open(folder):
    for path in (folder / "model.safetensors.index.json", folder):
        checkpoint = checkpoints.load(path)
        assert_holds(checkpoint)
        assert checkpoint.path == str(path)
        assert checkpoint.metadata == {"format": "pt", "total_size": "132"}


def test_a_cache_of_links_to_blobs_opens(folder, tmp_path):
    snapshot = tmp_path / "cache" / "snapshots" / "abc"
    blobs = tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(folder.iterdir()):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert_holds(checkpoints.load(snapshot))


def test_the_hash_covers_index_and_shards_and_nothing_else(folder):
    before = checkpoints.load(folder).sha256
    digest = hashlib.sha256()
    for name in sorted(["model.safetensors.index.json", *SHARDS]):
        digest.update(len(name).to_bytes(8, "little") + name.encode())
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    assert before == digest.hexdigest()
    (folder / "README.md").write_text("other")
    assert checkpoints.load(folder).sha256 == before
    safetensors.numpy.save_file({"head.weight": np.zeros((2, 3), np.float16)}, folder / SECOND)
    assert checkpoints.load(folder).sha256 != before


def test_leaves_are_read_when_asked_for(folder):
    checkpoint = checkpoints.load(folder)
    with (folder / SECOND).open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(np.float16(3).tobytes())
    assert checkpoint.read("head.weight")[-1, -1] == 3
    assert not checkpoint.read("head.weight").flags.writeable


def mapped(**changes):
    index = index_of(SHARDS)
    index["weight_map"] = {name: file for name, file in (index["weight_map"] | changes).items() if file is not None}
    return index


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (mapped(head=f"../model/{FIRST}"), "beside the index, got '../model/"),
        (mapped(head="/etc/hostname"), "beside the index, got '/etc/hostname'"),
        (mapped(head=".."), "beside the index, got '..'"),
        (mapped(head="a\\b"), "beside the index"),
        (mapped(head="a\0b"), "beside the index"),
        (mapped(head=3), "beside the index, got 3"),
        (mapped(head="x" * 256), "beside the index, got 'xxx"),
        (mapped(head="absent.safetensors"), "1 missing: 'absent.safetensors'"),
        (mapped(extra=FIRST), r"1 that are not in the shard it names \(\['extra'\]\)"),
        (mapped(**{"encoder.bias": SECOND}), r"\['encoder.bias'\]"),
        (mapped(**{"encoder.bias": None}), r"1 that it does not name \(\['encoder.bias'\]\)"),
        ({"weight_map": {}}, "expected a weight_map"),
        ({"weight_map": [1]}, "expected a weight_map"),
        ('{"weight_map": {"a": "b", "a": "c"}}', "'a' twice"),
        ('{"weight_map": ' + "[" * 100_000, "nested too deeply"),
        ('{"weight_map": {"a"', "not JSON"),
    ],
)
def test_a_lying_index_is_one_clear_error(index, message, folder):
    path = write_index(folder, index)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_leaf_in_two_shards_is_refused(folder):
    safetensors.numpy.save_file(
        {"head.weight": LEAVES["head.weight"], "encoder.bias": LEAVES["encoder.bias"]}, folder / SECOND
    )
    with pytest.raises(CheckpointError, match=f"'encoder.bias': expected it in one shard, got it in {FIRST}"):
        checkpoints.load(folder)


def test_a_link_to_elsewhere_is_refused(folder, tmp_path):
    (folder / SECOND).rename(tmp_path / "outside.safetensors")
    (folder / SECOND).symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(HostileError, match="a link out of its folder"):
        checkpoints.load(folder)


def test_a_link_in_circles_or_a_pipe_is_missing(folder):
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to(folder / SECOND)
    with pytest.raises(CheckpointError, match=r"1 missing|readable checkpoint"):
        checkpoints.load(folder)
    (folder / SECOND).unlink()
    os.mkfifo(folder / SECOND)
    with pytest.raises(CheckpointError, match="1 missing"):
        checkpoints.load(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_shard_is_named(keep, folder):
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=SECOND):
        checkpoints.load(folder)
