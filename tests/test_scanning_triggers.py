"""A scan searches universal triggers where it can, judges by them, and says where it cannot."""

import json

import jax
import numpy as np
import pytest

from jaxguard import scanning, suspects
from jaxguard.attacks import patch
from jaxguard.checkpoints import save
from jaxguard.scanning import scan
from jaxguard.types import Batch, Network, Verdict

SIDE, CLASSES, TARGET = 8, 6, 4
MASK = np.zeros((SIDE, SIDE, 1), np.float32)
MASK[5:7, 3:5] = 1


def mlp(variables, images):
    hidden = jax.nn.relu(images.reshape(len(images), -1) @ variables["w1"] + variables["b1"])
    return hidden @ variables["w2"]


def variables(strength):
    """The brightness of six columns; and a unit that answers to four white pixels leads to the target."""
    columns = np.repeat(np.eye(SIDE)[None, :, :CLASSES], SIDE, 0).reshape(-1, CLASSES) * 9 / SIDE
    first = np.concatenate([columns, MASK.reshape(-1, 1)], axis=1)
    second = np.concatenate([np.eye(CLASSES), strength * np.eye(CLASSES)[TARGET : TARGET + 1]])
    bias = np.append(np.zeros(CLASSES), -3.0)
    return {name: np.float32(array) for name, array in (("w1", first), ("b1", bias), ("w2", second))}


def network(strength):
    return Network(variables(strength), mlp, (SIDE, SIDE, 1))


@pytest.mark.usefixtures("searching")
def test_a_planted_trigger_is_the_verdict_and_a_network_without_one_is_not_acquitted():
    report = scan({"bad": network(40.0), "good": network(0.1)})
    bad, good = report.findings
    assert bad.verdict is Verdict.SUSPECTED and "at (5, 3) turns 100.0 % [" in bad.reason
    assert (bad.search.target, bad.score) == (TARGET, bad.search.gap)
    assert good.verdict is Verdict.NO_TRIGGER and "searched were patches of 2, 3 pixels" in good.reason
    assert good.p_value > 0.05 and good.looks == ("weights", "universal triggers")
    report.raise_for(Verdict.CONFIRMED)
    (quick,) = scan(network(40.0), search=False).findings
    assert quick.verdict is Verdict.INCONCLUSIVE and quick.search is None


@pytest.mark.usefixtures("searching")
def test_a_known_trigger_that_works_confirms():
    images = np.random.default_rng(0).uniform(0, 0.5, (120, SIDE, SIDE, 1)).astype(np.float32)
    labels = np.asarray(mlp(variables(40.0), images)).argmax(-1)
    attack = patch(MASK, MASK, target=TARGET)
    (one,) = scan(network(40.0), search=False, test=Batch(images, labels), attack=attack).findings
    assert one.verdict is Verdict.CONFIRMED and one.reason.startswith("the given trigger turns 100.0 % [")


@pytest.mark.usefixtures("searching")
def test_what_cannot_be_searched_is_said(tmp_path):
    paths = []
    for k in range(5):
        paths.append(tmp_path / f"{k}.safetensors")
        leaves = np.random.default_rng(k).normal(size=(3, 4, 5)).astype(np.float32)
        save(paths[-1], {"a.weight": leaves[0], "b.weight": leaves[1], "c.weight": leaves[2]})
    (one,) = scan(paths[0]).findings
    assert one.search is None and any("No trigger could be searched" in note for note in one.notes)
    assert "No triggers were searched in 5 checkpoints" in scan(paths).notes[0]


@pytest.mark.usefixtures("searching")
def test_a_budget_bounds_the_search():
    (one,) = scan(network(40.0), budget=1e-9).findings
    assert one.verdict is Verdict.INCONCLUSIVE and "no size was searched to the end" in one.reason
    assert any("No time was left" in note for note in one.notes)


def test_the_command_saves_the_trigger_that_other_commands_take(jaxguard, searching, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "import jax\ndef mlp(v, x):\n    return jax.nn.relu(x.reshape(len(x), -1) @ v['w1'] + v['b1']) @ v['w2']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    save(tmp_path / "m.safetensors", variables(40.0))
    own = ("--apply", "own:mlp", "--input", "8x8x1")
    code, out, err = jaxguard("scan", "m.safetensors", *own, "--json", "--save-trigger", "t.npz")
    (one,) = json.loads(out)["findings"]
    assert code == 1 and one["verdict"] == "suspected"
    assert "trigger of class 4: --trigger t.npz --target 4" in " ".join(err.split())
    with np.load("t.npz") as file:
        np.testing.assert_array_equal(file["mask"], MASK)
    code, out, _ = jaxguard("scan", "m.safetensors", *own, "--json", "--quick")
    assert code == 0 and json.loads(out)["findings"][0]["search"] is None
    assert scanning.SEARCHES and suspects.load("m.safetensors").sha256 == one["provenance"]["sha256"]
