"""`load` and `save`: what they refuse, and that nothing is ever written half."""

import os
import pathlib
import pickle

import numpy as np
import pytest

from jaxguard import checkpoints
from jaxguard.checkpoints import atomic, formats
from jaxguard.errors import CheckpointError

LEAVES = {"params/w": np.arange(4, dtype=np.float32)}
PATHS = {"safetensors": "x.safetensors", "orbax": "x", "msgpack": "x.msgpack"}


def children(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"\x80\x02}q\x00.", "pickle that holds arrays or tensors, got one without any"),
        (b"PK\x03\x04" + bytes(40), "zip archive with its directory .*got none; the file is damaged"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"plain text, and more of it", r"safetensors or .*orbax.*b'plain te'"),
    ],
)
def test_other_files_are_named_for_what_they_are(content, message, tmp_path):
    path = tmp_path / "model.safetensors"  # the name must not matter
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.load(path)
    assert str(path) in str(caught.value)


def test_a_pickle_runs_no_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    (call,) = checkpoints.examine(tmp_path / "model.safetensors").calls
    assert call.callable == f"{os.name}.mkdir"
    with pytest.raises(CheckpointError, match=rf"references to {os.name}\.mkdir"):
        checkpoints.load(tmp_path / "model.safetensors")
    assert not (tmp_path / "executed").exists()


def test_missing_paths_and_other_directories(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoints.load(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="without an Orbax index"):
        checkpoints.load(tmp_path)
    with pytest.raises(CheckpointError, match="expected a path"):
        checkpoints.load(tmp_path / ("a" * 10_000))


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="device or pipe"):
        checkpoints.load(tmp_path / "pipe.safetensors")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_one_error(tmp_path):
    checkpoints.save(tmp_path / "x.safetensors", LEAVES)
    (tmp_path / "x.safetensors").chmod(0)
    with pytest.raises(CheckpointError, match="permissions"):
        checkpoints.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("format", PATHS)
def test_content_decides_not_the_suffix(format, tmp_path):
    checkpoints.save(tmp_path / "model.pth", LEAVES, format=format)
    assert checkpoints.load(tmp_path / "model.pth").format == format


@pytest.mark.parametrize("format", PATHS)
def test_the_suffix_chooses_the_written_format(format, tmp_path):
    checkpoints.save(tmp_path / PATHS[format], LEAVES)
    checkpoint = checkpoints.load(str(tmp_path / PATHS[format]))
    assert checkpoint.format == format
    assert checkpoint.path == str(tmp_path / PATHS[format])


def test_read_names_the_leaves_there_are(tmp_path):
    checkpoints.save(tmp_path / "x.safetensors", LEAVES)
    with pytest.raises(CheckpointError, match=r"one of its 1 leaves, got 'params/v'.*params/w"):
        checkpoints.load(tmp_path / "x.safetensors").read("params/v")


def test_hash_changes_with_content_only(tmp_path):
    for name, leaf in {"a": LEAVES, "b": LEAVES, "c": {"params/w": np.ones(4, np.float32)}}.items():
        checkpoints.save(tmp_path / f"{name}.safetensors", leaf)
    first, same, other = (checkpoints.load(tmp_path / f"{name}.safetensors").sha256 for name in "abc")
    assert first == same != other
    assert len(first) == 64


def test_hash_of_a_file_that_went_away_is_one_error(tmp_path):
    checkpoints.save(tmp_path / "x.safetensors", LEAVES)
    checkpoint = checkpoints.load(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(CheckpointError, match="open the checkpoint again"):
        _ = checkpoint.sha256


@pytest.mark.parametrize("format", PATHS)
def test_an_existing_checkpoint_is_replaced_only_on_request(format, tmp_path):
    path = tmp_path / PATHS[format]
    checkpoints.save(path, LEAVES)
    before = checkpoints.load(path).sha256
    with pytest.raises(CheckpointError, match="overwrite=True"):
        checkpoints.save(path, {"other": np.ones(2)})
    assert checkpoints.load(path).sha256 == before
    checkpoints.save(path, {"other": np.ones(2)}, overwrite=True)
    assert list(checkpoints.load(path).leaves) == ["other"]
    assert children(tmp_path) == [path.name]


@pytest.mark.parametrize(("old", "new"), [("safetensors", "orbax"), ("orbax", "safetensors")])
def test_a_file_replaces_a_directory_and_the_other_way_round(old, new, tmp_path):
    checkpoints.save(tmp_path / "x", LEAVES, format=old)
    checkpoints.save(tmp_path / "x", {"other": np.ones(2)}, format=new, overwrite=True)
    assert checkpoints.load(tmp_path / "x").format == new
    assert children(tmp_path) == ["x"]


class DiskFullError(OSError):
    pass


def failing_writer(self, path, leaves, metadata):
    path.write_bytes(b"half")
    raise DiskFullError(28, "No space left on device")


@pytest.mark.parametrize("format", PATHS)
def test_a_failed_write_leaves_nothing_or_the_old_content(format, tmp_path, monkeypatch):
    path = tmp_path / PATHS[format]
    with monkeypatch.context() as patch:
        patch.setattr(formats.Format, "write", failing_writer)
        with pytest.raises(CheckpointError, match="No space left"):
            checkpoints.save(path, LEAVES)
        assert children(tmp_path) == []
    checkpoints.save(path, LEAVES)
    before = checkpoints.load(path).sha256
    monkeypatch.setattr(formats.Format, "write", failing_writer)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoints.save(path, {"other": np.ones(2)}, overwrite=True)
    assert checkpoints.load(path).sha256 == before
    assert children(tmp_path) == [path.name]


@pytest.mark.parametrize("format", PATHS)
def test_a_failed_rename_brings_the_old_content_back(format, tmp_path, monkeypatch):
    path = tmp_path / PATHS[format]
    checkpoints.save(path, LEAVES)
    before = checkpoints.load(path).sha256
    real = {"rename": os.rename, "replace": os.replace}

    def refusing(name):
        def move(source, target):
            if pathlib.Path(source).name == "fresh" and pathlib.Path(target) == path:
                raise OSError(5, "Input/output error")
            return real[name](source, target)

        return move

    for name in real:
        monkeypatch.setattr(atomic.os, name, refusing(name))
    with pytest.raises(CheckpointError, match="Input/output error"):
        checkpoints.save(path, {"other": np.ones(2)}, overwrite=True)
    monkeypatch.undo()
    assert checkpoints.load(path).sha256 == before
    assert children(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"leaves": {}}, "at least one leaf"),
        ({"leaves": {"a": np.array(["text"])}}, "leaf 'a': expected a dtype"),
        ({"leaves": {"a": np.array([object()])}}, "leaf 'a': expected a dtype"),
        ({"leaves": {"__metadata__": np.ones(1)}}, "does not reserve"),
        ({"leaves": {3: np.ones(1)}}, "names that are text"),
        ({"metadata": {"step": 3}}, "expected text as metadata"),
        ({"format": "npz"}, r"safetensors \(.safetensors\), orbax \(no suffix\).*got format 'npz'"),
        ({"path": "x.pth"}, r"got the suffix '.pth'"),
        ({"path": "absent/x.safetensors"}, "mkdir -p"),
        ({"format": "orbax", "leaves": {"a": np.zeros((0, 2))}}, "save as safetensors"),
        ({"format": "orbax", "leaves": {"a": np.ones(1), "a/b": np.ones(1)}}, "a leaf or a group of leaves"),
    ],
)
def test_save_refuses(arguments, message, tmp_path):
    arguments = {"path": "x.safetensors", "leaves": LEAVES} | arguments
    path, leaves = tmp_path / arguments.pop("path"), arguments.pop("leaves")
    with pytest.raises(CheckpointError, match=message):
        checkpoints.save(path, leaves, **arguments)
    assert children(tmp_path) == []
