"""Bytes of a file that no leaf accounts for: an error where they are arrays, else named."""

import io
import json
import pathlib
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pytest
import torch_bytes as handmade
from orbax_trees import LAYOUTS, write

from jaxguard import checkpoints
from jaxguard.errors import DamagedError, UnsupportedError

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
SIX = struct.pack("<6f", *range(6))
TENSOR = handmade.mapping(w=handmade.tensor())


def with_members(content: bytes, **more: bytes) -> bytes:
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as file:
        for name, member in more.items():
            file.writestr(name, member)
    return buffer.getvalue()


def test_a_storage_that_no_tensor_uses_is_an_error(tmp_path):
    (tmp_path / "x.pt").write_bytes(handmade.zipped(TENSOR, {"0": SIX, "hidden": bytes(1000)}, is_exact=True))
    with pytest.raises(DamagedError, match=r"1 that none refers to, such as 'archive/data/hidden'"):
        checkpoints.load(tmp_path / "x.pt")


def test_members_of_torch_are_passed_over_and_others_are_named(tmp_path):
    known = {"archive/version": b"3", "archive/.data/serialization_id": b"1", "archive/code/m.py": b"pass"}
    content = with_members(handmade.zipped(TENSOR, order=b"little"), **known)
    (tmp_path / "x.pt").write_bytes(content)
    assert not checkpoints.load(tmp_path / "x.pt").left_out
    other = {"archive/extra/notes": b"n", "archive/constants/0": bytes(40), "archive/constants/1": bytes(2)}
    (tmp_path / "x.pt").write_bytes(with_members(content, **other))
    checkpoint = checkpoints.load(tmp_path / "x.pt")
    assert checkpoint.left_out == {
        "archive/extra/notes": "a member that is no part of the weights",
        "archive/constants/*": "2 tensors of 42 bytes that are constants of TorchScript code, which is not supported",
    }
    assert list(checkpoint.leaves) == ["w"]
    assert any("may be a part of the model: 'archive/constants/*'" in note for note in checkpoint.notes)


def test_several_archives_in_one_file_are_refused(tmp_path):
    """As shards of torch.distributed.checkpoint are: a reader of zip archives sees the last alone."""
    (tmp_path / "x.pt").write_bytes(handmade.zipped(TENSOR) * 3)
    with pytest.raises(UnsupportedError, match="expected one zip archive, got several in one file"):
        checkpoints.load(tmp_path / "x.pt")


def savez(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["x.pt", "x.npz", "x.keras"])
def test_bytes_around_an_archive_are_named(name, tmp_path):
    golden = (GOLDEN / "keras.keras").read_bytes()
    content = {"x.pt": handmade.zipped(TENSOR), "x.npz": savez(w=np.ones(3)), "x.keras": golden}[name]
    (tmp_path / name).write_bytes(content)
    before = checkpoints.load(tmp_path / name)
    assert "(outside of the archive)" not in before.left_out
    (tmp_path / name).write_bytes(content + bytes(64))
    checkpoint = checkpoints.load(tmp_path / name)
    assert checkpoint.left_out["(outside of the archive)"] == "64 bytes that belong to no member"
    assert checkpoint.leaves == before.leaves
    # A gap between two members, as editors of archives leave it.
    first = content.index(b"PK\x01\x02")
    end = content.rindex(b"PK\x05\x06")
    moved = first + 500
    tail = content[end : end + 16] + moved.to_bytes(4, "little") + content[end + 20 :]
    (tmp_path / name).write_bytes(content[:first] + b"?" * 500 + content[first:end] + tail)
    found = checkpoints.load(tmp_path / name).left_out
    assert found["(outside of the archive)"] == "500 bytes that belong to no member"


def test_members_of_a_keras_file_are_named(tmp_path):
    shutil.copy(GOLDEN / "keras.keras", tmp_path / "x.keras")
    (tmp_path / "x.keras").write_bytes(with_members((tmp_path / "x.keras").read_bytes(), **{"assets/words.txt": b"a"}))
    found = checkpoints.load(tmp_path / "x.keras").left_out
    assert found["assets/words.txt"] == "a member that holds no weights"


PICKLES = {
    "plain": pickle.dumps({"w": np.arange(6.0)}),
    "legacy": handmade.legacy(TENSOR),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_what_is_behind_a_pickle_is_named_or_refused(kind, tmp_path):
    (tmp_path / "x.bin").write_bytes(PICKLES[kind] + b"\0" * 5)
    checkpoint = checkpoints.load(tmp_path / "x.bin")
    assert checkpoint.left_out == {"(behind the pickle)": "5 bytes that nothing refers to"}
    (tmp_path / "x.bin").write_bytes(PICKLES[kind] * 2)
    with pytest.raises(UnsupportedError, match=f"expected one pickle, got {len(PICKLES[kind]):,} bytes of others"):
        checkpoints.load(tmp_path / "x.bin")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_array_that_the_index_of_orbax_does_not_name_is_an_error(layout, tmp_path):
    path = write(tmp_path / "model", **LAYOUTS[layout])
    index = json.loads((path / "_METADATA").read_text())
    del index["tree_metadata"]["('params', 'conv', 'kernel')"]
    (path / "_METADATA").write_text(json.dumps(index))
    with pytest.raises(DamagedError, match=r"names, got . parts of others, such as 'params.conv.kernel/"):
        checkpoints.load(path)
