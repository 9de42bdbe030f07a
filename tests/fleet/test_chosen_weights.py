"""Raw or averaged weights: what was chosen is scored by every executor, and a report says that there are others."""

import json

import numpy as np
import pytest
import stores
from stores import CNN

from jaxguard import scanning, suspects
from jaxguard.detection.records import WEIGHTS
from jaxguard.errors import CheckpointError
from jaxguard.fleet.executors import Stream
from jaxguard.fleet.local import Local, Settings
from jaxguard.suspects import ModelOptions, manifest

RAW, EMA = (stores.leaves(seed, CNN) for seed in (0, 1))


@pytest.fixture
def both(tmp_path):
    """A file with raw weights and their average, and one with each alone, of the same names."""
    averaged = {name.replace("params/", "ema_params/"): leaf for name, leaf in EMA.items() if "params/" in name}
    kept = {name: leaf for name, leaf in RAW.items() if "params/" not in name}
    stores.write(tmp_path / "raw.safetensors", RAW)
    stores.write(tmp_path / "ema.safetensors", EMA | kept)
    return str(stores.write(tmp_path / "both.safetensors", RAW | averaged))


@pytest.mark.parametrize(
    ("executor", "weights"),
    [(Local(), None), (Local(), "ema"), (Stream(), None), (Stream(), "raw"), (Stream(), "ema_params")],
)
def test_the_chosen_weights_are_scored_and_the_others_are_named(both, executor, weights):
    is_raw = weights in (None, "raw")
    alone = both.replace("both", "raw" if is_raw else "ema")
    with executor.run([both], Settings(ModelOptions(weights=weights))) as found:
        (record,) = found.records
    with executor.run([alone], Settings()) as found:
        (expected,) = found.records
    assert not record.error and record.provenance.architecture == expected.provenance.architecture == CNN
    np.testing.assert_array_equal(record.features[WEIGHTS].values, expected.features[WEIGHTS].values)
    told = [note for note in record.notes if "averages of the weights (ema_params)" in note]
    taken = [note for note in record.notes if "The averaged weights ema_params were taken" in note]
    assert (len(told), len(taken)) == ((1, 0) if is_raw else (0, 1))
    assert not any("average" in note for note in expected.notes)


def test_executors_say_the_same(both):
    notes = []
    for executor in (Local(), Stream()):
        with executor.run([both], Settings()) as found:
            notes.append(found.records[0].notes)
    assert notes[0] == notes[1]


def test_weights_that_a_file_does_not_hold_are_an_error_of_that_file(both):
    with Stream().run([both, both.replace("both", "raw")], Settings(ModelOptions(weights="ema"))) as found:
        good, bad = found.records
    assert not good.error and "expected weights that the file holds (raw), got no 'ema'" in bad.error
    with pytest.raises(CheckpointError, match="expected weights that the file holds"):
        suspects.load(both, weights="polyak")


def test_a_manifest_chooses_for_each_model(both, tmp_path):
    (tmp_path / "models.toml").write_text('[[model]]\npath = "both.safetensors"\nweights = "ema"\n')
    ((path, options),) = manifest.read(tmp_path / "models.toml")
    assert (path, options.weights) == (both, "ema")
    (finding,) = scanning.scan(str(tmp_path / "models.toml")).findings
    assert any("averaged weights ema_params were taken" in note for note in finding.notes)
    assert {name.split("/")[0] for name in finding.left_out} == {"params"}  # the raw weights, which it replaces
    (tmp_path / "models.toml").write_text('[[model]]\npath = "both.safetensors"\nweights = 3\n')
    with pytest.raises(CheckpointError, match="model 1: expected the name of weights, got 3"):
        manifest.read(tmp_path / "models.toml")


def test_results_of_other_weights_are_results_of_their_own():
    assert Settings(ModelOptions(weights="ema")).key != Settings().key
    assert json.loads(ModelOptions(weights="ema").key)["weights"] == "ema"
