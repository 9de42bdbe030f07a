"""Files with left-out entries and tied tensors: what is written back, and what is said to be lost."""

import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard import checkpoints, repairs, scanning, suspects
from jaxguard.fleet.executors import Stream
from jaxguard.fleet.local import Local, Settings
from jaxguard.suspects import ModelOptions
from tests.checkpoints import torch_bytes

RNG = np.random.default_rng(0)
WIDTH = 6


def tensor(key: str, *shape: int) -> bytes:
    strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    return torch_bytes.tensor(shape, strides, stored=torch_bytes.storage(key, int(np.prod(shape))))


@pytest.fixture
def tied(tmp_path):
    """Two layers of one memory, an optimizer's state and an odd tensor beside them."""
    model = torch_bytes.mapping(
        **{"first.weight": tensor("0", WIDTH, WIDTH), "again.weight": tensor("0", WIDTH, WIDTH)},
        **{"head.weight": tensor("1", 3, WIDTH), "scales": torch_bytes.tensor(
            (2,), (1,), stored=torch_bytes.storage("2", 2, "torch ComplexDoubleStorage"))},
    )  # fmt: skip
    state = torch_bytes.mapping(exp_avg=tensor("3", WIDTH), exp_avg_sq=tensor("4", WIDTH))
    content = [RNG.normal(size=WIDTH * WIDTH), RNG.normal(size=3 * WIDTH), None, np.ones(WIDTH), np.ones(WIDTH)]
    storages = {
        str(key): bytes(32) if values is None else struct.pack(f"<{len(values)}f", *values)
        for key, values in enumerate(content)
    }
    program = torch_bytes.mapping(model=model, optimizer=torch_bytes.mapping(state=state))
    path = tmp_path / "tied.pt"
    path.write_bytes(torch_bytes.zipped(program, storages))
    return path


def apply_fn(variables, images):
    hidden = jax.nn.relu(images @ variables["first.weight"].T)
    hidden = jax.nn.relu(hidden @ variables["again.weight"].T)
    return hidden @ variables["head.weight"].T


def init_fn():
    shapes = {"first.weight": (WIDTH, WIDTH), "again.weight": (WIDTH, WIDTH), "head.weight": (3, WIDTH)}
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("init", [None, init_fn], ids=["as in the file", "a tree"])
def test_tied_tensors_are_edited_once_and_both_names_carry_the_edit(tied, tmp_path, init):
    suspect = suspects.load(tied, apply_fn=apply_fn, init_fn=init, input_shape=(WIDTH,))
    assert suspect.checkpoint.aliases == {"first.weight": ("again.weight",)}
    network = suspect.require_network()
    images = RNG.normal(size=(4, WIDTH)).astype(np.float32)
    raw = suspect.checkpoint.read_all()
    expected = apply_fn(raw | {"again.weight": raw["first.weight"]}, images)
    np.testing.assert_allclose(network(images), expected, rtol=1e-5)

    first, head = network.variables["first.weight"], network.variables["head.weight"]
    edited = suspect.with_variables({"first.weight": first.at[2].set(0.0), "head.weight": head})
    lost = suspects.save(edited, tmp_path / "out.safetensors")
    after = checkpoints.load(tmp_path / "out.safetensors").read_all()
    assert after.keys() == {"first.weight", "again.weight", "head.weight"}
    np.testing.assert_array_equal(after["first.weight"], after["again.weight"])
    assert not after["again.weight"][2].any() and after["again.weight"][1].any()
    np.testing.assert_allclose(edited.network(images), apply_fn(after, images), rtol=1e-5)
    (sentence,) = lost
    assert sentence.startswith("Not written, as it was left out when the checkpoint was read: ")
    assert "optimizer" in sentence and "'scales' (a tensor of type" in sentence


def test_tied_layers_are_scored_once_by_every_executor(tied):
    options = ModelOptions(apply_fn=apply_fn, input_shape=(WIDTH,))
    records = []
    for executor in (Local(), Stream()):
        with executor.run([str(tied)], Settings(options)) as found:
            records += found.records
    local, stream = records
    assert not local.error and not stream.error
    np.testing.assert_allclose(local.features["weights"].values, stream.features["weights"].values, rtol=1e-5)
    (finding,) = scanning.scan(str(tied), options=options).findings
    assert sum(one.state == "scored" for one in finding.leaves) == 1
    assert finding.aliases == {"first.weight": ("again.weight",)}


def test_a_repair_of_a_file_with_leftovers_says_what_it_lost(jaxguard, tmp_path, monkeypatch, tied):
    (tmp_path / "tied_model.py").write_text(
        "import jax\n"
        "def apply(v, x):\n"
        "    h = jax.nn.relu(x.reshape(x.shape[0], -1) @ v['first.weight'].T)\n"
        "    return jax.nn.relu(h @ v['again.weight'].T) @ v['head.weight'].T\n"
    )
    monkeypatch.chdir(tmp_path)
    given = ("--apply", "tied_model:apply", "--input", "1x2x3", "--set", "u=1.0")
    code, out, err = jaxguard("repair", "tied.pt", *given, "--out", "out.safetensors", "--json")
    assert code == 0, err
    assert "Not written, as it was left out" in out and "may be a part of the model: 'scales'" in out
    before, after = checkpoints.load("tied.pt").read_all(), checkpoints.load("out.safetensors").read_all()
    np.testing.assert_array_equal(after["first.weight"], after["again.weight"])
    assert (after["first.weight"] != before["first.weight"]).any()


def test_what_is_whole_is_written_whole(tmp_path):
    checkpoints.save(tmp_path / "in.safetensors", {"a.weight": np.ones((WIDTH, WIDTH), np.float32)})
    suspect = suspects.load(tmp_path / "in.safetensors", apply_fn=lambda v, x: x @ v["a.weight"], input_shape=(WIDTH,))
    assert suspects.save(suspect, tmp_path / "out.safetensors") == ()
    assert repairs.relative_change(suspect.network.variables, suspect.network.variables) == {}
