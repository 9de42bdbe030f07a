"""Folders with a model in them: the best weights open, the configuration is text, and doubt is one CheckpointError."""

import json
import pathlib

import numpy as np
import pytest

from jaxguard import checkpoints
from jaxguard.errors import CheckpointError

CONFIG = {
    "architectures": ["ResNetForImageClassification"],
    "model_type": "resnet",
    "image_size": 32,
    "id2label": {"0": "cat", "1": "dog"},
    "depths": [2, 2],
    "auto_map": {"AutoModel": "modeling.Evil"},
    "long": "x" * 5000,
}


def leaves(value: float) -> dict[str, np.ndarray]:
    return {"params/w": np.full(3, value, np.float32)}


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(CONFIG))
    (made / "README.md").write_text("# model")
    (made / "modeling.py").write_text("raise SystemExit")
    return made


def test_safetensors_come_first_and_the_configuration_is_metadata(folder):
    checkpoints.save(folder / "flax_model.msgpack", leaves(2))
    assert checkpoints.load(folder).format == "msgpack"
    checkpoints.save(folder / "model.safetensors", leaves(1), metadata={"model_type": "own"})
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02garbage")
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    checkpoint = checkpoints.load(folder)
    assert checkpoint.read("params/w").tolist() == [1, 1, 1]
    assert checkpoint.path == str(folder)
    assert checkpoint.location == folder / "model.safetensors"
    assert checkpoint.sha256 == checkpoints.load(folder / "model.safetensors").sha256
    assert checkpoint.metadata == {
        **{"model_type": "own", "num_labels": "2", "image_size": "32", "depths": "[2, 2]"},
        **{"id2label": '{"0": "cat", "1": "dog"}', "auto_map": '{"AutoModel": "modeling.Evil"}'},
        **{"architectures": '["ResNetForImageClassification"]', "image_mean": "[0.5, 0.5, 0.5]"},
    }


@pytest.mark.parametrize("name", ["weights.safetensors", "checkpoint", "odd.name.pth"])
def test_the_only_checkpoint_among_other_files_opens(name, folder):
    checkpoints.save(folder / name, leaves(3), format="safetensors")
    (folder / "empty.safetensors").touch()
    (folder / "sub").mkdir()
    assert checkpoints.load(folder).read("params/w").tolist() == [3, 3, 3]


def test_of_several_one_has_to_be_named(folder):
    for name in ("a.safetensors", "b.msgpack"):
        checkpoints.save(folder / name, leaves(1))
    with pytest.raises(CheckpointError, match=r"got 2: 'a\.safetensors', 'b\.msgpack'; pass the file you mean"):
        checkpoints.load(folder)


def test_a_folder_without_weights_says_what_there_is(folder):
    with pytest.raises(CheckpointError, match=r"without a checkpoint in it \('README.md', 'config.json'"):
        checkpoints.load(folder)


def test_shards_of_other_formats_open(folder):
    weight_map = {}
    for number in (1, 2):
        weight_map[f"block{number}/w"] = f"flax_model-{number}.msgpack"
        checkpoints.save(folder / f"flax_model-{number}.msgpack", {f"block{number}/w": np.full(2, number)})
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = checkpoints.load(folder)
    assert {name: leaf.tolist() for name, leaf in checkpoint.read_all().items()} == {
        "block1/w": [1, 1],
        "block2/w": [2, 2],
    }
    assert checkpoint.metadata["model_type"] == "resnet"


def test_shards_of_no_format_are_named(folder):
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-1.bin"}}')
    with pytest.raises(CheckpointError, match=r"1 missing: 'pytorch_model-1\.bin'"):
        checkpoints.load(folder)
    (folder / "pytorch_model-1.bin").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match=r"pytorch_model-1\.bin: expected a shard"):
        checkpoints.load(folder)


def test_weights_that_are_none_are_one_error(folder):
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"model.safetensors: expected a checkpoint .*, got a Git LFS pointer"):
        checkpoints.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json: expected one JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": "' + "x" * 2**22 + '"}', "config.json: expected at most"),
        ('{"a": 1, "a": 2}', "'a' twice"),
    ],
)
def test_a_hostile_configuration_is_one_error(text, message, folder):
    checkpoints.save(folder / "model.safetensors", leaves(1))
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(folder)
