"""States of NNX models with Dropout, as users save and bind them: the random streams are in nobody's way."""

import jax
import numpy as np
import pytest
from flax import nnx
from orbax import checkpoint as ocp

import jaxguard
from jaxguard import suspects
from jaxguard.fleet.executors import Stream
from jaxguard.fleet.local import Local, Settings
from jaxguard.suspects import ModelOptions
from jaxguard.types import Network, Verdict

INPUT = (4, 4, 3)


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(6, 6, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = self.drop(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))
        for block in self.blocks:
            x = nnx.relu(block(x))
        return self.head(x)


GRAPH, STATE = nnx.split(Net(nnx.Rngs(0)))
PARTS, WEIGHTS, REST = nnx.split(Net(nnx.Rngs(0)), (nnx.Param, nnx.BatchStat), ...)


def whole(state, images):
    return nnx.merge(GRAPH, state)(images)


def weights_alone(state, images):
    return nnx.merge(PARTS, state, REST)(images)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("nnx") / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, STATE)
    return str(folder)


WAYS = {
    "the whole state": (whole, lambda: STATE),
    "the weights": (weights_alone, lambda: WEIGHTS),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_state_of_orbax_binds_to_its_model(way, path):
    apply_fn, init_fn = WAYS[way]
    images = np.random.default_rng(0).normal(size=(2, *INPUT)).astype(np.float32)
    suspect = suspects.load(path, apply_fn=apply_fn, init_fn=init_fn, input_shape=INPUT)
    np.testing.assert_allclose(suspect.network(images), whole(STATE, images), rtol=1e-5)
    assert set(suspect.checkpoint.left_out.values()) == {"random number state"}
    assert not any("rngs" in name for name in suspect.checkpoint.leaves)
    (repaired, _) = jaxguard.repair(suspect, "clp", jax.random.key(0), options={"u": 0.5})
    assert repaired.network(images).shape == (2, 3)


def test_every_executor_scores_it(path):
    apply_fn, init_fn = WAYS["the whole state"]
    options = ModelOptions(apply_fn=apply_fn, init_fn=init_fn, input_shape=INPUT)
    found = []
    for executor in (Local(), Stream()):
        with executor.run([path], Settings(options)) as results:
            (record,) = results.records
        assert not record.error
        found.append(record.features["weights"].values)
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_the_same_network_from_memory_scores_the_same(path):
    (live,) = jaxguard.scan(Network(STATE, whole, INPUT)).findings
    options = ModelOptions(apply_fn=whole, init_fn=lambda: STATE, input_shape=INPUT)
    (stored,) = jaxguard.scan(path, options=options).findings
    assert live.verdict is stored.verdict is Verdict.INCONCLUSIVE
    np.testing.assert_allclose(live.z, stored.z, rtol=1e-5)
    (bare,) = jaxguard.scan(path).findings  # without its function: by names and shapes
    assert bare.verdict is Verdict.INCONCLUSIVE and set(bare.left_out.values()) == {"random number state"}
