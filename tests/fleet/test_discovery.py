"""From what the user named to checkpoints: each once, in order, divided without talking, nothing lost in silence."""

import os
import re

import fsspec
import pytest
import stores

from jaxguard import suspects
from jaxguard.errors import ArchitectureError, CheckpointError, FleetError
from jaxguard.fleet import discovery
from jaxguard.fleet.discovery import discover
from jaxguard.suspects import ModelOptions


@pytest.fixture
def folder(tmp_path):
    for path in stores.store(tmp_path / "store", 3):
        assert path.is_file()
    stores.write(tmp_path / "store" / "sub" / "x.npz", stores.leaves(9))
    (tmp_path / "store" / "notes.md").write_text("notes")
    return tmp_path / "store"


def names(found: discovery.Discovery, folder) -> list[str]:
    return [os.path.relpath(uri, folder) for uri in found.names]


ALL = ["0000.safetensors", "0001.safetensors", "0002.safetensors", "sub/x.npz"]


def test_folders_files_and_patterns(folder):
    assert names(discover([str(folder)]), folder) == ALL
    assert discover([str(folder)]).skipped == ((f"{folder}/notes.md", "no checkpoint by its content"),)
    assert names(discover([f"{folder}/*.safetensors"]), folder) == ALL[:3]
    assert names(discover([f"{folder}/**/*.npz"]), folder) == ALL[3:]
    assert names(discover([f"{folder}/0002.safetensors", f"{folder}/0000.safetensors"]), folder) == [ALL[2], ALL[0]]


def test_what_was_named_is_looked_into_whatever_it_is(folder):
    """A file that nobody would take for a checkpoint is an error of its own, not a file passed over."""
    found = discover([f"{folder}/notes.md", f"{folder}/absent.pt"])
    assert (found.names, found.skipped) == ((f"{folder}/notes.md", f"{folder}/absent.pt"), ())


def test_each_once_however_often_it_is_named(folder, monkeypatch):
    manifest = folder.parent / "all.txt"
    manifest.write_text("store/0001.safetensors\n./store\n")
    targets = [str(folder), f"{folder}/", f"{folder}/*/*.npz", f"{folder}/0001.safetensors", str(manifest)]
    assert names(discover(targets), folder) == ALL
    monkeypatch.chdir(folder)
    assert discover(["0001.safetensors", "./0001.safetensors", "."]).names == (ALL[1], ALL[0], *ALL[2:])


def test_a_file_that_is_named_is_not_among_the_skipped(folder):
    found = discover([str(folder), f"{folder}/notes.md"])
    assert f"{folder}/notes.md" in found.names
    assert found.skipped == ()


def test_manifests(folder):
    manifest = folder.parent / "models.txt"
    manifest.write_text(f"# two of them\nstore/0002.safetensors\n\n{folder}/sub\nabsent.pt\nno*where.pt\n")
    found = discover([str(manifest)])
    assert names(found, folder) == ["0002.safetensors", "sub/x.npz", "../absent.pt", "../no*where.pt"]


def test_a_manifest_in_a_manifest_is_no_manifest(folder):
    (folder / "inner.txt").write_text("0000.safetensors\n")
    (folder / "outer.txt").write_text("inner.txt\nouter.txt\n")
    assert names(discover([f"{folder}/outer.txt"]), folder) == ["inner.txt", "outer.txt"]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_divide_a_store(tmp_path, count):
    targets = [f"{tmp_path}/{k}.npz" for k in range(50)]
    parts = [discover(targets, shard=(k, count)).names for k in range(count)]
    assert sorted(uri for part in parts for uri in part) == sorted(targets)
    assert all(parts)
    reversed_parts = [discover(targets[::-1], shard=(k, count)).names for k in range(count)]
    assert [set(part) for part in parts] == [set(part) for part in reversed_parts]


def test_skipped_files_are_told_by_one_shard_alone(folder):
    for k in range(20):
        (folder / f"{k}.md").write_text("notes")
    parts = [discover([str(folder)], shard=(k, 3)).skipped for k in range(3)]
    assert sorted(path for part in parts for path, _ in part) == sorted(map(str, folder.glob("*.md")))
    assert sum(bool(part) for part in parts) > 1


@pytest.mark.parametrize("shard", [(1, 1), (-1, 2), (0, 0)])
def test_a_shard_that_does_not_exist(shard):
    with pytest.raises(FleetError, match="the first of four is 0/4"):
        discover([], shard=shard)


def test_nothing_is_one_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="got no files"):
        discover([str(tmp_path / "empty")])
    with pytest.raises(CheckpointError, match="expected files that match"):
        discover([f"{tmp_path}/*.pt"])


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_urls_of_files_folders_and_patterns(memory, folder):
    memory.put(str(folder), "/bucket", recursive=True)
    urls = [f"memory://bucket/{name}" for name in ALL]
    found = discover(["memory://bucket"])
    assert [uri.replace(":///", "://") for uri in found.names] == urls
    assert [path.rsplit("/")[-1] for path, _ in found.skipped] == ["notes.md"]
    found = discover(["memory://bucket/*.safetensors"])
    assert [uri.replace(":///", "://") for uri in found.names] == urls[:3]
    assert len(discover([f"file://{folder}/sub/x.npz"]).names) == 1


def test_directories_and_models_in_shards_behind_a_url_are_one_each(memory, tmp_path):
    stores.write(tmp_path / "store" / "model", stores.leaves())
    stores.sharded(tmp_path / "store" / "large", stores.leaves())
    stores.write(tmp_path / "store" / "a.npz", stores.leaves())
    memory.put(str(tmp_path / "store"), "/bucket", recursive=True)
    found = discover(["memory://bucket/"])
    assert [uri.rpartition("bucket/")[2] for uri in found.names] == ["a.npz", "large", "model"]
    assert found.skipped == ()


def test_a_model_in_two_formats_behind_a_url_is_one_and_the_other_is_named(memory, tmp_path):
    for name in ("model.safetensors", "alone/model.safetensors"):
        stores.write(tmp_path / "store" / name, stores.leaves())
    for name in ("pytorch_model.bin", "config.json", "alone/pytorch_model.bin"):
        (tmp_path / "store" / name).write_text("{}")
    memory.put(str(tmp_path / "store"), "/bucket", recursive=True)
    found = discover(["memory://bucket/"])
    there = [uri.rpartition("bucket/")[2] for uri in found.names]
    assert there == ["alone/model.safetensors", "alone/pytorch_model.bin", "model.safetensors"]
    reasons = {path.rpartition("/")[2]: reason for path, reason in found.skipped}
    assert reasons.keys() == {"pytorch_model.bin", "config.json"}
    assert reasons["pytorch_model.bin"].startswith("by its name the same model as model.safetensors")


def test_urls_in_a_manifest_are_checkpoints_and_nobody_asks_for_them_yet(tmp_path, monkeypatch):
    """A line of a manifest is one checkpoint: a hundred thousand of them must not be looked up one by one."""
    manifest = tmp_path / "models.txt"
    manifest.write_text("memory://bucket/a.safetensors\ngs://bucket/orbax\nhf://owner/name\nmemory://bucket/*.npz\n")
    monkeypatch.setattr(fsspec.core, "url_to_fs", None)
    assert discover([str(manifest)]).names == (
        "memory://bucket/a.safetensors", "gs://bucket/orbax", "hf://owner/name",
        "memory://bucket/*.npz",
    )  # fmt: skip


def test_a_url_that_cannot_be_reached_is_one_error():
    with pytest.raises(CheckpointError, match="nosuch"):
        discover(["nosuch://bucket"])


def test_networks_in_memory_have_names(folder):
    network = stores.model().network(stores.model().shapes())
    assert discover(network).names == ("network 0",)
    found = discover({"step 1": network, "step 2": suspects.load(network, name="other")})
    assert found.names == ("step 1", "step 2")
    assert [model.load().name for model in found.models] == ["step 1", "step 2"]
    assert discover([folder / "0000.safetensors", network]).names == (f"{folder}/0000.safetensors", "network 1")


MANIFEST = """
[[model]]
path = "store/0001.safetensors"
arch = "mlp:hidden=8"
mean = 0.5
std = [0.25]
labels = [2, 0, 1]

[[model]]
path = "https://example.org/model.npz"
apply = "own_model_of_a_manifest:apply"
input = [4, 4, 1]
"""


def test_models_with_options_of_their_own(folder):
    (folder.parent / "own_model_of_a_manifest.py").write_text("def apply(variables, images):\n    return images\n")
    (folder.parent / "models.toml").write_text(MANIFEST)
    default = ModelOptions(arch="resnet20")
    found = discover([folder, folder.parent / "models.toml"], options=default)
    assert found.names == (*(f"{folder}/{name}" for name in ALL), "https://example.org/model.npz")
    chosen = {model.name: model.options for model in found.models}
    assert chosen[f"{folder}/0000.safetensors"] == default
    assert chosen[f"{folder}/0001.safetensors"] == ModelOptions(
        arch=stores.MLP, mean=(0.5,), std=(0.25,), labels=(2, 0, 1)
    )
    own = chosen["https://example.org/model.npz"]
    assert (own.apply_fn(None, 3), own.input_shape, own.arch) == (3, (4, 4, 1), None)
    assert len({one.key for one in chosen.values()}) == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model", "in TOML"), ("[model]\npath = 'x'", "[[model]] entries"), ("[[model]]", "expected a path"),
        ("[[model]]\npath = 'x'\nmodel = 'y'", "expected keys among"),
        ("[[model]]\npath = 'x'\nmean = 'y'", "expected numbers"),
        ("[[model]]\npath = 'x'\narch = 'resnet2O'", "resnet20"),
        ("[[model]]\npath = 'x'\napply = 'nosuchmodule:f'", "can be imported"),
        ("[[model]]\npath = 'x'\ninit = 'json:loads'", "apply together with init"),
    ],
)  # fmt: skip
def test_a_manifest_that_makes_no_sense_is_one_error(tmp_path, text, told):
    (tmp_path / "models.toml").write_text(text)
    with pytest.raises((CheckpointError, ArchitectureError), match=re.escape(told)):
        discover(tmp_path / "models.toml")
