"""What an optimizer keeps is left out by one rule, whatever the format and wherever it is kept."""

import pickle

import jax
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from orbax import checkpoint as ocp

from jaxguard import checkpoints

PARAMS = {
    "conv": {"kernel": np.ones((3, 3, 1, 4), np.float32), "bias": np.zeros(4, np.float32)},
    "mu": {"kernel": np.full((4, 2), 2, np.float32)},  # a layer of the name of a moment
}
MOMENTS = jax.tree.map(lambda leaf: leaf + 5, PARAMS)
ADAM = {"count": np.array(3, np.int32), "mu": MOMENTS, "nu": MOMENTS}


def of_nnx() -> dict:
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    return {"model": nnx.to_pure_dict(nnx.state(model)), "optimizer": nnx.to_pure_dict(nnx.state(optimizer))}


TREES = {
    "TrainState": {"params": PARAMS, "opt_state": {"0": ADAM, "1": {}}, "step": np.array(7)},
    "chain": {"params": PARAMS, "opt_state": {"0": {}, "1": {"0": ADAM, "1": {"count": np.array(3)}}}},
    "multi_transform": {"params": PARAMS, "opt_state": {"inner_states": {"all": {"inner_state": {"0": ADAM}}}}},
    "another name": {"params": PARAMS, "tx": {"0": ADAM}},
    "names of torch": {"params": PARAMS, "train": {"exp_avg": MOMENTS, "exp_avg_sq": MOMENTS}},
    "NNX": of_nnx(),
}
EXPECTED = {name: {"params": tree["params"]} for name, tree in TREES.items() if name != "NNX"}
EXPECTED["NNX"] = TREES["NNX"]["model"]


def as_safetensors(path, tree):
    checkpoints.save(path, checkpoints.flatten(tree), format="safetensors")


def as_npz(path, tree):
    with path.open("wb") as file:
        np.savez(file, **checkpoints.flatten(tree))


def as_msgpack(path, tree):
    path.write_bytes(serialization.msgpack_serialize(jax.tree.map(np.asarray, tree)))


def as_pickle(path, tree):
    path.write_bytes(pickle.dumps(jax.tree.map(np.asarray, tree)))


def as_orbax(path, tree):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(jax.tree.map(np.asarray, tree)))


@pytest.mark.parametrize("write", [as_safetensors, as_npz, as_msgpack, as_pickle, as_orbax])
@pytest.mark.parametrize("name", TREES)
def test_moments_are_no_leaves(name, write, tmp_path):
    write(tmp_path / "x", TREES[name])
    checkpoint = checkpoints.load(tmp_path / "x")
    found, expected = checkpoint.read_all(), checkpoints.flatten(EXPECTED[name])
    assert found.keys() == expected.keys()
    for leaf, values in expected.items():
        np.testing.assert_array_equal(found[leaf], values)
    reasons = {why.split(":")[0] for why in checkpoint.left_out.values()}
    assert "optimizer state" in reasons and reasons <= {"optimizer state", "a counter of the training"}
