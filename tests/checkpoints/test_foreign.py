"""Files that other programs read are named as what they are by their content: refused alone, skipped in folders."""

import pathlib

import pytest
import safetensors.numpy
from foreign_bytes import FILES, TABLE_END, WEIGHTS, zipped

from jaxguard import checkpoints
from jaxguard.errors import CheckpointError, DamagedError, UnsupportedError


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_named_by_its_content(name, tmp_path):
    content, what = FILES[name]
    for path in (tmp_path / name, tmp_path / "anything"):
        path.write_bytes(content())
        with pytest.raises(UnsupportedError, match=f"got .*{what}.*which is not supported; ") as caught:
            checkpoints.load(path)
        assert caught.value.kind == "unsupported"
        path.unlink()


def test_folders_count_them_as_skipped_with_what_they_are(tmp_path):
    for name, (content, _) in FILES.items():
        (tmp_path / name).write_bytes(content())
    (tmp_path / "saved_model.pb").unlink()  # which makes a whole folder a SavedModel
    safetensors.numpy.save_file({"w": WEIGHTS}, tmp_path / "good.safetensors")
    listed = {pathlib.Path(one.path).name: one.reason for one in checkpoints.below(tmp_path)}
    assert [name for name, reason in listed.items() if not reason] == ["good.safetensors"]
    for name in FILES.keys() - {"saved_model.pb"}:
        assert FILES[name][1] in listed[name]
        assert "which is not supported; " in listed[name]


FOLDERS = {
    "SavedModel": ({"saved_model.pb": b"\x08\x01", "variables/variables.index": TABLE_END}, "a TensorFlow SavedModel"),
    "TensorFlow checkpoint": (
        {"model.index": bytes(60) + TABLE_END, "model.data-00000-of-00001": bytes(24), "checkpoint": b"model"},
        "a TensorFlow checkpoint",
    ),
    "Core ML": ({"Manifest.json": b"{}", "Data/com.apple.CoreML/model.mlmodel": b"\x08\x04"}, "a Core ML package"),
    "DCP": ({".metadata": b"\x80\x02}.", "__0_0.distcp": zipped(**{"archive/data.pkl": b"."})}, "with 1 shards"),
    "Zarr": ({"target.dense.kernel/.zarray": b"{}", "target.dense.kernel/0.0": b""}, "Zarr arrays without"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_named_and_skipped_as_a_whole(name, tmp_path):
    files, what = FOLDERS[name]
    for file, content in files.items():
        (tmp_path / "store" / "m" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "store" / "m" / file).write_bytes(content)
    with pytest.raises(UnsupportedError, match=f"got .*{what}.*which is not supported; "):
        checkpoints.load(tmp_path / "store" / "m")
    (listed,) = checkpoints.below(tmp_path / "store")
    assert what in listed.reason
    # A checkpoint beside it is not passed over with it.
    safetensors.numpy.save_file({"w": WEIGHTS}, tmp_path / "store" / "m" / "good.safetensors")
    assert [one.path for one in checkpoints.below(tmp_path / "store") if not one.reason] == [
        str(tmp_path / "store" / "m" / "good.safetensors")
    ]


def test_the_data_of_a_tensorflow_checkpoint_are_told_by_their_index(tmp_path):
    (tmp_path / "model.data-00000-of-00001").write_bytes(bytes(24))
    with pytest.raises(UnsupportedError, match="got an unknown format"):
        checkpoints.load(tmp_path / "model.data-00000-of-00001")
    (tmp_path / "model.index").write_bytes(bytes(60) + TABLE_END)
    with pytest.raises(UnsupportedError, match="got the data of a TensorFlow checkpoint"):
        checkpoints.load(tmp_path / "model.data-00000-of-00001")


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), (b"<!DOCTYPE html><html>", "a web page")],
)
def test_what_stands_in_place_of_a_file_is_no_format(content, what, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=what) as caught:
        checkpoints.load(tmp_path / "model.safetensors")
    assert caught.value.kind == "unreadable"
    assert [one.reason for one in checkpoints.below(tmp_path)] == [""]  # it is an error, not skipped


def test_a_zip_archive_without_its_directory_is_damaged(tmp_path):
    (tmp_path / "model.pt").write_bytes(zipped(**{"archive/data.pkl": b"."})[:-30])
    with pytest.raises(DamagedError, match="a zip archive with its directory"):
        checkpoints.load(tmp_path / "model.pt")
