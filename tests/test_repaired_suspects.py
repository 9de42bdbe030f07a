import jax
import numpy as np
import pytest
import zoo

from jaxguard import checkpoints, data, evaluation, models, repairs, suspects
from jaxguard.attacks import badnets
from jaxguard.environment import environment
from jaxguard.errors import CheckpointError, OptionError


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def suspect():
    model = models.build("cnn:width=0.5", num_classes=10, input_shape=(16, 16, 1))
    return suspects.load(model.network(zoo.randomise(model.shapes())))


def test_repair_measures_before_and_after_and_leaves_the_suspect_alone(suspect, digits):
    copies = jax.tree.map(np.array, suspect.network.variables)
    repaired, report = repairs.repair(
        suspect, "clp", jax.random.key(0), test=digits.test, attack=badnets(), options={"u": 1}
    )
    assert report.before.num_images == report.after.num_images == len(digits.test.labels)
    measured = evaluation.evaluate(suspect.network.with_variables(repaired.network.variables), digits.test, badnets())
    assert report.after == measured
    assert 0 <= report.der <= 1
    jax.tree.map(np.testing.assert_array_equal, copies, suspect.network.variables)
    assert jax.tree.structure(repaired.network) == jax.tree.structure(suspect.network)


def test_without_test_data_nothing_is_measured(suspect):
    _, report = repairs.repair(suspect, "clp", jax.random.key(0))
    assert report.before is report.after is report.der is None


def test_unknown_methods_and_options_are_refused(suspect):
    with pytest.raises(OptionError, match=r"expected a defense \(anp, bnp, clp, .*tsbd\), got 'magic'"):
        repairs.repair(suspect, "magic", jax.random.key(0))
    with pytest.raises(OptionError, match=r"an option of clp \(u, pairing, eps\), got 'epochs'"):
        repairs.repair(suspect, "clp", jax.random.key(0), options={"epochs": 3})


def test_a_model_from_memory_has_no_file_to_go_back_to(suspect, tmp_path):
    with pytest.raises(CheckpointError, match="loaded from a checkpoint"):
        suspects.save(suspect, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_description_that_is_no_json_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, {"a": np.zeros(2, np.float32)}, metadata={suspects.METADATA_KEY: "{"})
    with pytest.raises(CheckpointError, match="expected JSON in the metadata"):
        suspects.load(path)


def test_normalisation_travels_with_the_checkpoint(tmp_path):
    model = models.build("cnn:width=0.25", num_classes=3, input_shape=(16, 16, 1), mean=(0.3,), std=(0.2,))
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, checkpoints.flatten(model.init(jax.random.key(0))), metadata=suspects.description(model))
    assert suspects.load(path).model == model
    other = suspects.load(path, mean=(0.0,)).model
    assert (other.mean, other.std) == ((0.0,), (0.2,))


def test_the_environment_names_what_a_figure_depends_on():
    found = environment(seed=3)
    assert {"date", "python", "jax", "flax", "jaxguard", "device", "machine"} <= found.keys()
    assert found["seed"] == "3"
