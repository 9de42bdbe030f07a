"""URLs: fetched once, opened like local files; without the extra, or with nothing there, one CheckpointError."""

import pathlib
import shutil
import sys
import types

import fsspec
import numpy as np
import pytest

from jaxguard import checkpoints
from jaxguard.checkpoints import remote
from jaxguard.errors import CheckpointError

LEAVES = {"params/w": np.arange(4, dtype=np.float32)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jaxguard" / "remote"


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_a_file_behind_a_url_opens_and_is_fetched_once(memory, tmp_path, cache, monkeypatch):
    checkpoints.save(tmp_path / "x.safetensors", LEAVES)
    memory.put(str(tmp_path / "x.safetensors"), "/bucket/x.safetensors")
    checkpoint = checkpoints.load("memory://bucket/x.safetensors")
    assert checkpoint.path == "memory://bucket/x.safetensors"
    assert checkpoint.format == "safetensors"
    assert checkpoint.location.is_relative_to(cache)
    assert checkpoint.sha256 == checkpoints.load(tmp_path / "x.safetensors").sha256
    np.testing.assert_array_equal(checkpoint.read("params/w"), LEAVES["params/w"])
    with monkeypatch.context() as patch:
        patch.setattr(remote, "_copy", None)
        assert checkpoints.load("memory://bucket/x.safetensors").location == checkpoint.location
    checkpoints.save(tmp_path / "y.safetensors", {"other": np.ones(2)})
    memory.put(str(tmp_path / "y.safetensors"), "/bucket/x.safetensors")
    assert list(checkpoints.load("memory://bucket/x.safetensors").leaves) == ["other"]


def test_a_directory_behind_a_url_opens(memory, tmp_path):
    checkpoints.save(tmp_path / "model", LEAVES)
    memory.put(str(tmp_path / "model"), "/bucket/model", recursive=True)
    checkpoint = checkpoints.load("memory://bucket/model")
    assert checkpoint.format == "orbax"
    np.testing.assert_array_equal(checkpoint.read("params/w"), LEAVES["params/w"])


def test_file_urls_open(tmp_path):
    checkpoints.save(tmp_path / "x.safetensors", LEAVES)
    assert list(checkpoints.load(f"file://{tmp_path}/x.safetensors").leaves) == list(LEAVES)


def test_nothing_half_stays_in_the_cache(memory, tmp_path, cache, monkeypatch):
    checkpoints.save(tmp_path / "x.safetensors", LEAVES)
    memory.put(str(tmp_path / "x.safetensors"), "/bucket/x.safetensors")
    size = memory.info("/bucket/x.safetensors")["size"]
    for announced in (size - 1, size + 1):
        with monkeypatch.context() as patch:
            entry = {"name": "/bucket/x.safetensors", "size": announced, "type": "file"}
            patch.setattr(type(memory), "info", lambda self, path, entry=entry, **more: entry)
            with pytest.raises(CheckpointError, match=f"expected a file of {announced} bytes"):
                checkpoints.load("memory://bucket/x.safetensors")
    assert list(cache.iterdir()) == []
    assert checkpoints.load("memory://bucket/x.safetensors").leaves


def test_too_much_is_not_fetched(memory, monkeypatch):
    memory.pipe({"/bucket/a": b"12345", "/bucket/b": b"1"})
    monkeypatch.setattr(remote, "MAX_BYTES", 5)
    with pytest.raises(CheckpointError, match="got 2 of 6"):
        checkpoints.load("memory://bucket")
    monkeypatch.setattr(remote, "MAX_FILES", 1)
    with pytest.raises(CheckpointError, match="expected 1 to 1 files"):
        checkpoints.load("memory://bucket")


def test_names_that_leave_the_folder_are_refused(memory, monkeypatch, cache):
    memory.pipe("/bucket/a", b"1")
    found = {"/bucket/../../escaped": {"size": 1, "type": "file"}}
    monkeypatch.setattr(type(memory), "find", lambda *_, **__: found)
    with pytest.raises(CheckpointError, match="expected files below it"):
        checkpoints.load("memory://bucket")
    assert not cache.exists()


@pytest.mark.parametrize("url", ["memory://absent", "nosuch://bucket/model", "file:///absent/model"])
def test_what_is_not_there_is_one_error(url, memory):
    with pytest.raises(CheckpointError, match=r"expected .*got") as caught:
        checkpoints.load(url)
    assert url in str(caught.value)


@pytest.mark.parametrize("url", ["hf://owner/name", "gs://bucket/model", "s3://bucket/model"])
def test_without_the_extra_it_is_named(url, monkeypatch):
    for library in ("huggingface_hub", "fsspec.core", "gcsfs", "s3fs"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(CheckpointError, match=r"pip install 'jaxguard\[remote\]'"):
        checkpoints.load(url)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> list:
    """A Hugging Face with one repository, of which `calls` tells what was asked for."""
    source, calls = tmp_path / "source", []
    source.mkdir()
    checkpoints.save(source / "flax_model.msgpack", LEAVES)
    (source / "config.json").write_text('{"model_type": "resnet"}')

    def snapshot_download(repo_id, *, revision, allow_patterns, ignore_patterns, cache_dir):
        calls.append((repo_id, revision, tuple(allow_patterns)))
        folder = (cache_dir or tmp_path / "hub") / f"models--{repo_id.replace('/', '--')}" / "snapshots" / "0"
        folder.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, folder)
        return str(folder)

    def hf_hub_download(repo_id, filename, *, revision, cache_dir):
        calls.append((repo_id, revision, filename))
        return str(source / filename)

    constants = types.SimpleNamespace(HF_HUB_CACHE=str(tmp_path / "hub"))
    library = types.SimpleNamespace(snapshot_download=snapshot_download, hf_hub_download=hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    return calls


def test_a_repository_opens_with_the_best_weights_it_has(hub):
    checkpoint = checkpoints.load("hf://owner/na.me@refs/pr/1")
    assert checkpoint.path == "hf://owner/na.me@refs/pr/1"
    assert checkpoint.format == "msgpack"
    assert checkpoint.metadata["model_type"] == "resnet"
    np.testing.assert_array_equal(checkpoint.read("params/w"), LEAVES["params/w"])
    assert {call[:2] for call in hub} == {("owner/na.me", "refs/pr/1")}
    asked = [pattern for call in hub for pattern in call[2]]
    assert "*.safetensors" in asked
    assert not any(pattern.endswith((".py", "*")) or "pytorch" in pattern for pattern in asked)


def test_one_file_of_a_repository_opens(hub):
    assert checkpoints.load("hf://owner/name/flax_model.msgpack").format == "msgpack"
    assert hub == [("owner/name", None, "flax_model.msgpack")]


def test_a_repository_is_kept_among_the_downloads_unless_hugging_face_has_it(hub, cache, tmp_path):
    assert checkpoints.load("hf://owner/name").location.is_relative_to(cache / "models--owner--name")
    (tmp_path / "hub" / "models--owner--other").mkdir(parents=True)
    assert checkpoints.load("hf://owner/other").location.is_relative_to(tmp_path / "hub")
    assert [entry.name for entry in cache.iterdir()] == ["models--owner--name"]


def test_a_repository_without_weights_is_one_error(hub, tmp_path):
    (tmp_path / "source" / "flax_model.msgpack").unlink()
    with pytest.raises(CheckpointError, match="expected weights in the repository"):
        checkpoints.load("hf://owner/name")


@pytest.mark.parametrize("url", ["hf://", "hf://owner", "hf://owner/name/../x", "hf://owner/name@", "hf://o/n/f@a@b"])
def test_misspelt_repositories_are_one_error(url, hub):
    with pytest.raises(CheckpointError, match="hf://owner/name"):
        checkpoints.load(url)
    assert hub == []
