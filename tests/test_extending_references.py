"""A reference extended by a user's own clean networks, and scans that compare with it; searches are made up."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from jaxguard import extending, inversion, scanning
from jaxguard.checkpoints import save
from jaxguard.cli.app import app
from jaxguard.detection import trigger_reference
from jaxguard.errors import DataError
from jaxguard.inversion.kinds import KINDS
from jaxguard.types import KindResult, TriggerRow, TriggerSearch, Verdict

VERSION = KINDS["patch"].version
APPLY = """
import jax
def apply_fn(variables, images):
    return jax.nn.relu(images.reshape(len(images), -1) @ variables["w"]) @ variables["v"]
"""


def found(network, *, kinds, **_):
    """As far ahead as the first weight says."""
    gap = float(np.asarray(network.variables["w"])[0, 0])
    counts = np.array([79, 2, 2, 2, 2]), np.full(5, 80)
    row = TriggerRow("patch", 3.0, np.arange(5), np.array([gap, 0, 0, 0, 0.0]), *counts, {}, "a 3x3 patch")
    results = tuple(KindResult(kind, KINDS[kind].version, gap, 0.5, label=kind) for kind in kinds)
    return TriggerSearch((row,), results, source="made up", reached=1.0, num_classes=5, shape=(3, 3, 1))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Twenty clean networks and two others, and the options that open them."""
    monkeypatch.setattr(inversion, "search", found)
    monkeypatch.setattr(scanning, "SEARCHES", True)
    monkeypatch.setattr(trigger_reference, "FILE", tmp_path / "none.json")
    (tmp_path / "own_linear_model.py").write_text(APPLY)
    monkeypatch.syspath_prepend(tmp_path)
    for name, gap in [*((f"clean{k:02d}", k / 20) for k in range(20)), ("high", 5.0), ("low", 0.5)]:
        first = gap + np.arange(36, dtype=np.float32).reshape(9, 4) / 1000
        leaves = {"w": first, "v": np.eye(4, 5, dtype=np.float32)}
        save(tmp_path / f"{name}.safetensors", leaves)
    return tmp_path


def invoke(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_own_networks_decide_where_there_are_no_others(files):
    model = ("--apply", "own_linear_model:apply_fn", "--input", "3x3x1")
    clean, out = sorted(files.glob("clean*.safetensors")), files / "own.json"
    made = invoke("calibrate", *clean, "--extend", out, *model)
    assert made.exit_code == 0, made.output
    written = json.loads(out.read_text())
    assert len(written["networks"]) == 20 and written["source"] == {"own": 20}
    assert {one["kinds"]["patch"]["version"] for one in written["networks"]} == {VERSION}
    suspects = files / "high.safetensors", files / "low.safetensors"
    scanned = invoke("scan", *suspects, "--reference", out, *model, "--control", "each", "--json")
    high, low = json.loads(scanned.stdout)["findings"]
    assert (high["verdict"], low["verdict"]) == (Verdict.SUSPECTED, Verdict.NO_TRIGGER), high["reason"]
    assert "among 20 reference networks" in high["reason"] and high["p_value"] == pytest.approx(1 / 21)
    again = invoke("calibrate", *clean, "--extend", out, *model)
    assert "expected a path that is free" in str(again.exception)
    none = invoke("scan", files / "low.safetensors", "--reference", files / "absent.json", *model)
    assert "expected a reference made by" in str(none.exception)


def test_networks_that_cannot_be_searched_extend_nothing(files):
    with pytest.raises(DataError, match="expected clean networks in which triggers can be searched, got none among 1"):
        extending.extend_reference(files / "low.safetensors")
