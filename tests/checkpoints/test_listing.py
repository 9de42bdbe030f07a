"""What a folder holds: every file is a checkpoint, a part of one, or named with the reason why it is none."""

import os
import pathlib
import shutil
import sys

import numpy as np
import pytest
import safetensors.numpy
from orbax import checkpoint as ocp
from orbax_trees import write as write_orbax

from jaxguard import checkpoints
from jaxguard.errors import CheckpointError

LEAVES = {"w": np.ones((2, 3), np.float32)}


def saved(path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(LEAVES, path)
    return path


def found(folder: pathlib.Path) -> tuple[list[str], dict[str, str]]:
    """Paths of checkpoints below a folder, and reasons by path for the others; each file once."""
    listed = list(checkpoints.below(folder))
    assert len({one.path for one in listed}) == len(listed)
    names = {one.path: os.path.relpath(one.path, folder) for one in listed}
    return (
        [names[one.path] for one in listed if not one.reason],
        {names[one.path]: one.reason for one in listed if one.reason},
    )


def test_files_are_found_in_the_order_of_their_names(tmp_path):
    for name in ("b.safetensors", "a.safetensors", "z/y/c.safetensors", "m/d.safetensors"):
        saved(tmp_path / name)
    assert found(tmp_path) == (["a.safetensors", "b.safetensors", "m/d.safetensors", "z/y/c.safetensors"], {})


def test_what_is_no_checkpoint_is_named_with_its_reason(tmp_path):
    saved(tmp_path / "a.safetensors")
    saved(tmp_path / ".hidden.safetensors")
    saved(tmp_path / ".git" / "b.safetensors")
    (tmp_path / "README.md").write_text("# weights")
    (tmp_path / "nothing").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    assert found(tmp_path) == (
        ["a.safetensors"],
        {
            ".git": "a hidden folder",
            ".hidden.safetensors": "a hidden file",
            "README.md": "no checkpoint by its content",
            "gone": "no regular file",
            "nothing": "an empty file",
            "pipe": "no regular file",
        },
    )


def test_a_damaged_file_with_a_certain_suffix_is_not_passed_over(tmp_path):
    """An empty or broken `.safetensors` is a checkpoint that cannot be read, and must be told as such."""
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "broken.pt").write_bytes(b"nonsense")
    assert found(tmp_path) == (["broken.pt", "empty.safetensors"], {})


def test_content_tells_where_the_suffix_does_not(tmp_path):
    saved(tmp_path / "model.weights")
    saved(tmp_path / "pytorch_model.bin")
    (tmp_path / "data.bin").write_bytes(bytes(100))
    assert found(tmp_path) == (["model.weights", "pytorch_model.bin"], {"data.bin": "no checkpoint by its content"})


def test_shards_count_once_as_their_index(tmp_path):
    names = ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]
    for name in names:
        saved(tmp_path / name)
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "%s", "b": "%s"}}' % tuple(names)  # noqa: UP031
    )
    saved(tmp_path / "other.safetensors")
    reason = "a shard of model.safetensors.index.json"
    assert found(tmp_path) == (["model.safetensors.index.json", "other.safetensors"], dict.fromkeys(names, reason))


def shared(folder: pathlib.Path, *names: str) -> pathlib.Path:
    """As models lie on the Hugging Face Hub."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    for name in names:
        saved(folder / name)
    return folder


def test_weights_of_one_model_in_several_formats_count_once_and_are_named(tmp_path):
    shared(tmp_path / "a", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "model.safetensors")
    shared(tmp_path / "b", "pytorch_model.bin", "flax_model.msgpack")
    shared(tmp_path / "c", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "pytorch_model.bin")
    shared(tmp_path / "d", "model.safetensors", "other.safetensors")
    there, reasons = found(tmp_path)
    assert there == [
        "a/model.safetensors", "b/flax_model.msgpack", "c/diffusion_pytorch_model.safetensors", "c/pytorch_model.bin",
        "d/model.safetensors", "d/other.safetensors",
    ]  # fmt: skip
    why = "by its name the same model as {}, which was taken; name the file to have it scanned too"
    assert {name: reason for name, reason in reasons.items() if "config" not in name} == {
        **{
            f"a/{name}": why.format("model.safetensors")
            for name in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack")
        },
        "b/pytorch_model.bin": why.format("flax_model.msgpack"),
        "c/diffusion_pytorch_model.bin": why.format("diffusion_pytorch_model.safetensors"),
    }
    assert sum(one.is_twin for one in checkpoints.below(tmp_path)) == 5
    # What `load` takes of the folder is what counts.
    assert checkpoints.load(tmp_path / "a").location.name == "model.safetensors"
    assert checkpoints.load(tmp_path / "b").location.name == "flax_model.msgpack"


def test_names_alone_make_no_model_of_two_files(tmp_path):
    """Without a configuration beside them it is no folder of Hugging Face's."""
    for name in ("pytorch_model.bin", "model.safetensors"):
        saved(tmp_path / name)
    assert found(tmp_path) == (["model.safetensors", "pytorch_model.bin"], {})


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"])
def test_nothing_is_passed_over_for_weights_that_are_not_there(tmp_path, content):
    folder = shared(tmp_path, "pytorch_model.bin")
    (folder / "model.safetensors").write_bytes(content)
    assert found(folder)[0] == ["model.safetensors", "pytorch_model.bin"]
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "absent.safetensors"}}')
    assert found(folder)[0] == ["model.safetensors.index.json", "pytorch_model.bin"]
    saved(folder / "absent.safetensors")
    assert found(folder)[0] == ["model.safetensors.index.json"]
    assert sorted(found(folder)[1]) == ["absent.safetensors", "config.json", "pytorch_model.bin"]


def test_an_orbax_directory_is_one_checkpoint(tmp_path):
    write_orbax(tmp_path / "runs" / "model")
    assert found(tmp_path) == (["runs/model"], {})
    assert found(tmp_path / "runs" / "model") == (["."], {})


def test_a_store_and_a_run_of_orbax_checkpoints_are_as_many_as_they_are(tmp_path):
    """`load` takes the latest of a run; whoever searches a store must not lose the others."""
    for name in ("model_1", "model_2", "other/model"):
        write_orbax(tmp_path / name)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (3, 4):
            manager.save(step, args=ocp.args.StandardSave(LEAVES))
    saved(tmp_path / "beside.safetensors")
    unfinished = tmp_path / "model_3.orbax-checkpoint-tmp-7"
    shutil.copytree(tmp_path / "model_1", unfinished)
    listed, skipped = found(tmp_path)
    assert listed == ["beside.safetensors", "model_1", "model_2", "other/model", "run/3", "run/4"]
    assert skipped == {unfinished.name: "an Orbax checkpoint that was never finished"}
    for name in listed[1:]:
        assert checkpoints.load(tmp_path / name).format == "orbax"


def test_the_items_of_a_step_are_checkpoints_of_their_own(tmp_path):
    save = ocp.args.Composite(state=ocp.args.StandardSave(LEAVES), average=ocp.args.StandardSave(LEAVES))
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, args=save)
    assert found(tmp_path)[0] == ["run/1/average", "run/1/state"]


def test_links_to_folders_are_not_followed_and_links_to_files_are(tmp_path):
    saved(tmp_path / "store" / "a.safetensors")
    (tmp_path / "store" / "loop").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "b.safetensors").symlink_to(tmp_path / "store" / "a.safetensors")
    assert found(tmp_path / "store") == (
        ["a.safetensors", "b.safetensors"],
        {"loop": "a link to a folder, not followed"},
    )


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_names_that_are_no_text(tmp_path):
    saved(tmp_path / "a.safetensors")
    os.rename(tmp_path / "a.safetensors", os.fsencode(tmp_path) + b"/\xff.safetensors")
    (one,) = checkpoints.below(tmp_path)
    assert os.fsencode(one.path).endswith(b"/\xff.safetensors")
    assert list(checkpoints.load(one.path).leaves) == ["w"]


def test_a_folder_that_cannot_be_listed_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    saved(tmp_path / "a" / "x.safetensors")
    saved(tmp_path / "b" / "y.safetensors")
    scandir = os.scandir

    def refusing(path):
        if pathlib.Path(path).name == "a":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    listed, skipped = found(tmp_path)
    assert listed == ["b/y.safetensors"]
    assert "Permission denied" in skipped["a"]
    with pytest.raises(CheckpointError, match="Permission denied"):
        list(checkpoints.below(tmp_path / "a"))
    with pytest.raises(CheckpointError, match="No such file"):
        list(checkpoints.below(tmp_path / "absent"))


@pytest.fixture
def deep(tmp_path, monkeypatch):
    """A checkpoint below more folders than Python can recurse into; taken away again, since pytest cannot."""
    depth = 1200
    monkeypatch.chdir(tmp_path)
    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")
    saved(pathlib.Path("a.safetensors"))
    yield "d/" * depth + "a.safetensors"
    os.unlink("a.safetensors")
    for _ in range(depth):
        os.chdir("..")
        os.rmdir("d")


def test_folders_deeper_than_python_can_recurse(tmp_path, deep):
    listed = [one.path for one in checkpoints.below(tmp_path)]
    assert listed == [f"{tmp_path}/{deep}"]


def test_a_manifest_names_paths_relative_to_itself(tmp_path):
    path = tmp_path / "models.txt"
    path.write_text(
        "# the good ones\n\n a.safetensors \r\nsub/b c.npz\n/abs/c.pt\nhf://owner/name@v1\n"
        "memory://bucket/d # not a comment\n"
    )
    assert checkpoints.manifest(path) == [
        f"{tmp_path}/a.safetensors", f"{tmp_path}/sub/b c.npz", "/abs/c.pt", "hf://owner/name@v1",
        "memory://bucket/d # not a comment",
    ]  # fmt: skip


@pytest.mark.parametrize(("content", "match"), [(b"# none\n\n", "got none"), (b"\xff\xfe\x00", "text file")])
def test_a_manifest_without_names_is_one_error(tmp_path, content, match):
    path = tmp_path / "models.txt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=match) as caught:
        checkpoints.manifest(path)
    assert str(path) in str(caught.value)
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoints.manifest(tmp_path / "absent.txt")
