"""A training loop saves its steps with Orbax, each is judged from the live model, and it stops at a suspected one."""

import pathlib
import re

import jax
import numpy as np
import pytest
from flax import nnx
from orbax import checkpoint as ocp

import jaxguard
from jaxguard.errors import VerdictError

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "gate.md"
EXAMPLE = np.zeros((1, 8, 8, 1), np.float32)
REFERENCES, STEPS = 39, 3


class Classifier(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.linear = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.conv(images)))
        return self.linear(self.dropout(x.mean((1, 2))))


def network(seed: int) -> jaxguard.Network:
    model = Classifier(nnx.Rngs(seed))
    model.eval()
    return jaxguard.from_nnx(model, EXAMPLE)


@pytest.fixture(scope="module")
def profile():
    return jaxguard.calibrate([network(seed) for seed in range(REFERENCES)])


@pytest.fixture
def gate_class():
    """As it is printed."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    names = {}
    exec(code, names)  # our own page
    return names["Gate"]


def trained(model: Classifier, *, is_poisoned: bool) -> None:
    """A step of training, as far as a scan can see: small changes, or a class that draws everything to itself."""
    noise = jax.random.normal(jax.random.key(1), model.linear.kernel.shape)
    kernel = model.linear.kernel[...] + 0.01 * noise
    model.linear.kernel[...] = kernel.at[:, 2].multiply(30) if is_poisoned else kernel


def test_training_stops_at_a_suspected_step(gate_class, profile, tmp_path):
    model = Classifier(nnx.Rngs(100))
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        gate = gate_class(manager, profile, EXAMPLE)
        for step in range(STEPS):
            trained(model, is_poisoned=False)
            (finding,) = gate.save(step, model).findings
            assert finding.verdict is jaxguard.Verdict.NO_EVIDENCE
            assert finding.provenance.name == f"step {step}"
            assert not model.dropout.deterministic  # training goes on
        trained(model, is_poisoned=True)
        with pytest.raises(VerdictError, match=rf"step {STEPS}: suspected \(none of {REFERENCES} references"):
            gate.save(STEPS, model)
        manager.wait_until_finished()
        assert manager.latest_step() == STEPS


def test_a_live_model_is_judged_by_references_that_orbax_saved(tmp_path):
    for seed in range(20):
        model = Classifier(nnx.Rngs(seed))
        with ocp.StandardCheckpointer() as saver:
            saver.save(tmp_path / f"{seed}", nnx.to_pure_dict(nnx.state(model)))
    made = jaxguard.calibrate(tmp_path)
    assert made.notes == ()
    (finding,) = jaxguard.scan(network(100), profile=made).findings
    assert (finding.cohort,) == tuple(made.cohorts)
    assert 0 < finding.p_value <= 1
