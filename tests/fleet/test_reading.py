"""From a path to a row of numbers: what was opened is what is read, and whatever a file does is told in its row."""

import hashlib
import os

import numpy as np
import pytest
import stores
from stores import MLP

from jaxguard import checkpoints
from jaxguard.fleet import reading
from jaxguard.fleet.reading import Failure, Known, Opened
from tests.checkpoints import torch_bytes
from tests.checkpoints.orbax_trees import write as write_orbax


def opened(path) -> Opened:
    found = reading.open_one(str(path))
    assert isinstance(found, Opened), found
    return found


def filled(found: Opened) -> tuple[np.ndarray, str | Failure]:
    """A row that held something else before, and what came back."""
    row = np.full(found.structure.length, np.nan, np.float32)
    return row, reading.fill(found, row)


@pytest.mark.parametrize("file", ["a.safetensors", "a.npz", "a.msgpack", "a", "a.pt"])
def test_a_row_holds_every_leaf_and_nothing_of_the_checkpoint_before(tmp_path, file):
    content = stores.leaves(1, layout="torch")
    path = stores.write(tmp_path / file, content)
    found = opened(path)
    row, sha256 = filled(found)
    assert sha256 == checkpoints.load(path).sha256
    assert np.isfinite(row).all() or not found.structure.is_raw
    for (name, shape, _), offset in zip(found.structure.leaves, found.structure.offsets, strict=True):
        size = int(np.prod(shape))
        np.testing.assert_array_equal(row[offset : offset + size].reshape(shape), content[name])
    assert len(found.structure.leaves) == len(content)


def test_the_hash_of_a_raw_file_is_that_of_all_its_bytes(tmp_path):
    path = stores.write(tmp_path / "a.safetensors", stores.leaves(2))
    _, sha256 = filled(opened(path))
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_known_is_not_opened(tmp_path, monkeypatch):
    path = stores.write(tmp_path / "a.safetensors", stores.leaves(3))
    stamp = reading.stamp_of(path)
    monkeypatch.setattr(checkpoints, "load", None)
    assert reading.open_one(str(path), lambda uri, state: (uri, state) == (str(path), stamp)) == Known(str(path))


@pytest.mark.parametrize("how", ["rewritten", "replaced", "gone", "shortened", "same time"])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_file_that_changes_after_its_header_was_read(tmp_path, how, suffix):
    path = stores.write(tmp_path / f"a{suffix}", stores.leaves(4))
    found = opened(path)
    if how == "gone":
        path.unlink()
    elif how == "shortened":
        path.write_bytes(path.read_bytes()[:-8])
    elif how == "same time":
        stores.write(path, stores.stranger())
        os.utime(path, ns=(0, found.stamp.modified))
    else:
        stores.write(path, stores.leaves(5) if how == "rewritten" else stores.stranger())
        os.utime(path, ns=(0, found.stamp.modified + 1))
    _, failure = filled(found)
    assert isinstance(failure, Failure)
    assert failure.uri == str(path)
    assert failure.format == found.format
    assert "expected" in failure.error
    assert str(path) in failure.error


def test_a_file_that_is_replaced_while_its_header_is_read(tmp_path, monkeypatch):
    path = stores.write(tmp_path / "a.safetensors", stores.leaves(6))
    load = checkpoints.load

    def slow(uri, **how):
        checkpoint = load(uri, **how)
        stores.write(path, stores.stranger())
        return checkpoint

    monkeypatch.setattr(checkpoints, "load", slow)
    failure = reading.open_one(str(path))
    assert isinstance(failure, Failure)
    assert "changed since" in failure.error


def test_the_state_of_an_index_is_that_of_its_shards(tmp_path):
    index = stores.sharded(tmp_path, stores.leaves(7))
    before = reading.stamp_of(index)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    assert before.size == sum(path.stat().st_size for path in tmp_path.iterdir())
    os.utime(shard, ns=(0, before.modified + 10**9))
    assert reading.stamp_of(index) == (before.size, before.modified + 10**9)
    found = reading.open_one(str(index))
    stores.write(shard, stores.rounded(checkpoints.load(shard).read_all(), "float64"))
    assert isinstance(found, Opened)
    assert isinstance(filled(found)[1], Failure)


def test_the_state_of_a_folder_is_that_of_all_files_in_it(tmp_path):
    path = write_orbax(tmp_path / "model")
    files = [file for file in path.rglob("*") if file.is_file()]
    before = reading.stamp_of(path)
    assert before.size == sum(file.stat().st_size for file in files)
    os.utime(files[-1], ns=(0, before.modified + 5))
    assert reading.stamp_of(path).modified == before.modified + 5
    with pytest.raises(FileNotFoundError):
        reading.stamp_of(tmp_path / "absent")


def nested() -> bytes:
    """Metadata deeper than a parser can recurse."""
    header = (
        b'{"__metadata__":{"jaxguard":"' + b"[" * 100_000 + b'"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    )
    return len(header).to_bytes(8, "little") + header + bytes(8)


BAD = {
    "empty.safetensors": b"",
    "nonsense.pt": b"nonsense",
    "hostile.pt": torch_bytes.zipped(b"cos\nsystem\n(" + torch_bytes.text("false") + b"tR"),
    "integers.safetensors": stores.safetensors_bytes([("w", np.arange(4))]),
    "lfs.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    "nested.safetensors": nested(),
    "cut.safetensors": stores.safetensors_bytes(list(stores.leaves().items()))[:-4],
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_a_failure(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BAD[name])
    failure = reading.open_one(str(path))
    assert isinstance(failure, Failure)
    assert failure.uri == str(path)
    assert failure.stamp == reading.stamp_of(path)
    assert "expected" in failure.error
    assert str(path) in failure.error


@pytest.mark.parametrize("name", ["absent.safetensors", "nul\0byte", "run@7", "x" * 300, "memory://nothing/here"])
def test_what_is_not_there_is_a_failure(tmp_path, name):
    failure = reading.open_one(name if "://" in name else f"{tmp_path}/{name}")
    assert isinstance(failure, Failure)
    assert "expected" in failure.error


def test_numbers_that_float32_cannot_hold_are_told_later(tmp_path):
    content = stores.rounded(stores.leaves(9, MLP), "float64")
    content["params/fc1/bias"][0] = 1e300
    row, sha256 = filled(opened(stores.write(tmp_path / "a.npz", content)))
    assert isinstance(sha256, str)
    assert np.isinf(row).sum() == 1
