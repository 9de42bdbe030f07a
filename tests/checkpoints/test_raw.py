"""A file read once into the caller's memory: its bytes, its hash, and whether it is still the one that was opened."""

import hashlib
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxguard import checkpoints
from jaxguard.checkpoints import raw
from jaxguard.errors import CheckpointError


def state(path) -> dict:
    found = os.stat(path)
    return {"size": found.st_size, "modified": found.st_mtime_ns, "given": "demo"}


@settings(deadline=None)
@given(content=st.binary(min_size=1, max_size=300), start=st.integers(0, 300), block=st.integers(1, 70))
def test_bytes_and_hash(tmp_path_factory, content, start, block):
    start = min(start, len(content))
    path = tmp_path_factory.mktemp("raw") / "file"
    path.write_bytes(content)
    memory = np.full(len(content) - start, 7, np.uint8)
    before, raw._BLOCK = raw._BLOCK, block
    try:
        digest = checkpoints.read_into(path, start, memory, **state(path))
    finally:
        raw._BLOCK = before
    assert memory.tobytes() == content[start:]
    assert digest == hashlib.sha256(content).hexdigest()


def test_reads_that_return_less_than_was_asked(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, blocks, place: read(file, [blocks[0][:13]], place))
    memory = np.zeros(190, np.uint8)
    assert checkpoints.read_into(path, 10, memory, **state(path)) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert memory.tobytes() == bytes(range(10, 200))


@pytest.mark.parametrize("change", ["shorter", "longer", "rewritten"])
def test_a_file_that_changed_is_one_error(tmp_path, change):
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    before = state(path)
    path.write_bytes({"shorter": bytes(50), "longer": bytes(101), "rewritten": bytes(100)}[change])
    os.utime(path, ns=(0, before["modified"] + (change == "rewritten")))
    with pytest.raises(CheckpointError, match=r"demo: expected the 100 bytes .* changed since"):
        checkpoints.read_into(path, 10, np.zeros(90, np.uint8), **before)


def test_no_file_stays_open(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    folder, before = "/proc/self/fd", state(path)
    if not os.path.isdir(folder):
        pytest.skip("needs /proc")
    count = len(os.listdir(folder))
    checkpoints.read_into(path, 10, np.zeros(90, np.uint8), **before)
    with pytest.raises(CheckpointError):
        checkpoints.read_into(path, 10, np.zeros(91, np.uint8), **before)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        checkpoints.read_into(path, 10, np.zeros(90, np.uint8), **before)
    assert len(os.listdir(folder)) == count
