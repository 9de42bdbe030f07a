"""Which entries of a file are the model's: one rule for all formats."""

import struct

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch_bytes as handmade
from flax.training.train_state import TrainState
from orbax import checkpoint as ocp

from jaxguard import checkpoints
from jaxguard.errors import CheckpointError, UnsupportedError

W, V, X = (handmade.tensor(stored=handmade.storage(key)) for key in "012")
CONTENT = {key: struct.pack("<6f", *range(first, first + 6)) for key, first in (("0", 0), ("1", 10), ("2", 20))}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Dense(3, name="mu")(x)))


def written(path, program, content=CONTENT):
    path.write_bytes(handmade.zipped(program, content))
    return path


def test_one_train_state_gives_the_same_leaves_in_every_format(tmp_path):
    params = Net().init(jax.random.key(0), jnp.ones((1, 4)))["params"]
    state = TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3)).replace(step=jnp.array(7))
    (tmp_path / "x.msgpack").write_bytes(flax.serialization.to_bytes(state))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", state)
    flat = checkpoints.flatten(flax.serialization.to_state_dict(state))
    np.savez(tmp_path / "x.npz", **flat)
    checkpoints.save(tmp_path / "x.safetensors", flat)
    expected = checkpoints.flatten({"params": params})
    for name in ("x.msgpack", "orbax", "x.npz", "x.safetensors"):
        checkpoint = checkpoints.load(tmp_path / name)
        found = checkpoint.read_all()
        assert found.keys() == expected.keys(), name
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        # 2 moments of 4 arrays, their count, and the step
        assert sorted(checkpoint.left_out.values()) == ["a counter of the training", *["optimizer state"] * 9], name
        assert all(leaf not in checkpoint.left_out for leaf in expected)


def test_a_layer_of_the_name_of_a_moment_is_a_layer(tmp_path):
    leaves = {f"params/{name}/kernel": np.ones((2, 2), np.float32) for name in ("mu", "logvar", "decoder")}
    checkpoints.save(tmp_path / "x.npz.safetensors", leaves)
    assert checkpoints.load(tmp_path / "x.npz.safetensors").leaves.keys() == leaves.keys()


@pytest.mark.parametrize("key", ["ema", "state_dict_ema", "model_ema", "swa_model"])
def test_averaged_weights_are_named_and_can_be_chosen(key, tmp_path):
    layer = {"conv1.weight": W, "bn.running_mean": X}
    program = handmade.mapping(state_dict=handmade.mapping(**layer), **{key: handmade.mapping(**{"conv1.weight": V})})
    path = written(tmp_path / "x.pt", program)
    raw, average = checkpoints.load(path), checkpoints.load(path, weights="ema")
    assert raw.read("conv1.weight")[0, 0] == 0 and any(key in note for note in raw.notes)
    assert any("an average of the weights" in why for why in raw.left_out.values())
    assert average.read("conv1.weight")[0, 0] == 10 and average.read("bn.running_mean")[0, 0] == 20
    assert list(raw.leaves) == list(average.leaves)
    assert any("1 leaves that it lacks are the raw ones" in note for note in average.notes)
    assert list(checkpoints.load(path, weights=key).leaves) == list(raw.leaves)
    with pytest.raises(CheckpointError, match="expected weights that the file holds"):
        checkpoints.load(path, weights="polyak")


def test_an_average_of_flax_params_keeps_the_names_of_the_params(tmp_path):
    tree = {"params": {"a": {"kernel": np.zeros((2, 2))}}, "ema_params": {"a": {"kernel": np.ones((2, 2))}}}
    checkpoints.save(tmp_path / "x.msgpack", checkpoints.flatten(tree))
    assert checkpoints.load(tmp_path / "x.msgpack").read("params/a/kernel").sum() == 0
    assert checkpoints.load(tmp_path / "x.msgpack", weights="ema").read("params/a/kernel").sum() == 4


def test_losses_metrics_and_counters_beside_a_network_are_left_out(tmp_path):
    names = {"net.conv.weight": W, "criterion.weight": V, "val_acc.correct": X, "n_averaged": X}
    checkpoint = checkpoints.load(written(tmp_path / "x.pt", handmade.mapping(**names)))
    assert list(checkpoint.leaves) == ["net.conv.weight"]
    assert checkpoint.left_out.keys() == {"criterion.weight", "val_acc.correct", "n_averaged"}


def test_one_memory_under_two_names_is_one_leaf(tmp_path):
    names = {"own.weight": W, "model.conv.weight": W, "model.fc.weight": V, "model.fc.bias": X}
    checkpoint = checkpoints.load(written(tmp_path / "x.pt", handmade.mapping(**names)))
    assert list(checkpoint.leaves) == ["model.conv.weight", "model.fc.weight", "model.fc.bias"]
    assert checkpoint.aliases == {"model.conv.weight": ("own.weight",)}


def test_a_folder_of_shards_that_is_not_read_whole_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("__0_0.distcp", "__1_0.distcp"):
        written(tmp_path / "run" / name, handmade.mapping(w=W))
    with pytest.raises(UnsupportedError, match=r"torch.distributed.checkpoint with 2 shards, which is not supported"):
        checkpoints.load(tmp_path / "run")
