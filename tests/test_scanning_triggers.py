"""A scan searches universal triggers where it can, judges by them, and says where it cannot."""

import dataclasses
import io
import json
import pathlib

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxguard import inversion, scanning, suspects
from jaxguard.attacks import patch
from jaxguard.checkpoints import save
from jaxguard.detection.trigger_reference import ReferenceNetwork, TriggerReference
from jaxguard.errors import DataError
from jaxguard.fingerprints import certificate
from jaxguard.inversion import ascent
from jaxguard.inversion.kinds import KINDS
from jaxguard.programs import precision
from jaxguard.report import files, schema
from jaxguard.scanning import ModelOptions, scan
from jaxguard.types import Batch, Network, TriggerSearch, Verdict

SIDE, CLASSES, TARGET = 8, 6, 4
MASK = np.zeros((SIDE, SIDE, 1), np.float32)
MASK[5:7, 3:5] = 1


def mlp(variables, images):
    hidden = jax.nn.relu(images.reshape(len(images), -1) @ variables["w1"] + variables["b1"][None])
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
    report = scan({"bad": network(40.0), "good": network(0.1)}, kinds=("patch",))
    bad, good = report.findings
    assert bad.verdict is Verdict.SUSPECTED and "at (5, 3) turns 100.0 % [" in bad.reason
    assert (bad.search.target, bad.score) == (TARGET, bad.search.gap)
    assert good.verdict is Verdict.NO_TRIGGER and "searched were patches of 2, 3 pixels" in good.reason
    assert good.p_value > 0.05 and good.looks == ("weights", "universal triggers")
    report.raise_for(Verdict.CONFIRMED)
    (quick,) = scan(network(40.0), deep=0).findings
    assert quick.verdict is Verdict.INCONCLUSIVE and quick.search is None


@pytest.mark.usefixtures("searching")
def test_a_search_in_bfloat16_does_not_use_references_of_float32():
    version = KINDS["patch"].version
    known = TriggerReference(tuple(ReferenceNetwork(f"{k}", "mlp", {"patch": (version, k / 100)}) for k in range(40)))
    with precision("bfloat16"):
        (one,) = scan(network(40.0), kinds=("patch",), reference=known).findings
    assert one.verdict is Verdict.INCONCLUSIVE and np.isnan(one.p_value)
    assert "were searched by highest precision on cpu, this one by bfloat16 precision on cpu" in one.reason
    (one,) = scan(network(40.0), kinds=("patch",), reference=known).findings
    assert one.verdict is Verdict.SUSPECTED and one.p_value == 1 / 41


@pytest.mark.usefixtures("searching")
def test_a_known_trigger_that_works_confirms():
    images = np.random.default_rng(0).uniform(0, 0.5, (120, SIDE, SIDE, 1)).astype(np.float32)
    labels = np.asarray(mlp(variables(40.0), images)).argmax(-1)
    attack = patch(MASK, MASK, target=TARGET)
    (one,) = scan(network(40.0), deep=0, test=Batch(images, labels), attack=attack).findings
    assert one.verdict is Verdict.CONFIRMED and one.reason.startswith("the given trigger turns 100.0 % [")


@pytest.mark.usefixtures("searching")
def test_what_cannot_be_searched_is_said(tmp_path):
    paths = []
    for k in range(5):
        paths.append(tmp_path / f"{k}.safetensors")
        leaves = np.random.default_rng(k).normal(size=(3, 4, 5)).astype(np.float32)
        save(paths[-1], {"a.weight": leaves[0], "b.weight": leaves[1], "c.weight": leaves[2]})
    report = scan(paths[0])
    assert report.findings[0].search is None and "its function is not known" in report.findings[0].unsearched
    assert "not searched: its function is not known; pass --arch" in "".join(files.text(report, "table"))
    many = scan(paths)
    assert many.notes[0].startswith("Triggers were searched in 0 of 5 checkpoints. Not searched were 5: its function")
    assert all(one.unsearched for one in many.findings)


SEVERAL = {f"{k}": Network(variables(k / 10) | {"b2": np.float32(k)}, mlp, (SIDE, SIDE, 1)) for k in range(6)}
SEVERAL["4"] = network(40.0)


def quick(monkeypatch):
    """Searches take no time and find nothing; the networks that were searched are listed."""
    searched = []

    def search(one, **_):
        searched.append(float(one.variables.get("b2", -1.0)))
        return TriggerSearch(problem="nothing", source="here", seconds=1.0)

    monkeypatch.setattr(inversion, "search", search)
    return searched


@pytest.mark.usefixtures("searching")
def test_kinds_are_kept_one_by_one_and_a_new_one_is_searched_alone(monkeypatch, tmp_path):
    save(tmp_path / "m.safetensors", variables(40.0))
    options = ModelOptions(apply_fn=mlp, input_shape=(SIDE, SIDE, 1))
    asked, search = [], inversion.search

    def listening(one, *, kinds, **more):
        asked.append(list(kinds))
        return search(one, kinds=kinds, **more)

    monkeypatch.setattr(inversion, "search", listening)
    both = {}
    for kinds in (["patch"], ["patch", "additive"], ["additive", "patch"]):
        (both[*kinds],) = scan(
            tmp_path / "m.safetensors", kinds=kinds, options=options, executor=scanning.Stream(tmp_path / "out")
        ).findings
    assert asked == [["patch"], ["additive"]], asked
    found = both["patch", "additive"].search
    assert [one.kind for one in found.results] == ["patch", "additive"] and found.source == both["patch",].search.source
    assert {row.kind for row in found.rows} == {"patch", "additive"} and "warp" in found.unsearched
    assert both["additive", "patch"].p_value == both["patch", "additive"].p_value


@pytest.mark.usefixtures("searching")
def test_the_most_suspicious_are_searched_and_the_others_are_counted_and_named(monkeypatch, tmp_path):
    searched = quick(monkeypatch)
    report = scan(SEVERAL)
    assert "6: there are more than 4; --deep N or all searches them (0, 1, 2 and 3 more)" in report.notes[0]
    assert not searched
    report = scan(SEVERAL, deep=2)
    assert len(searched) == 2 and searched[0] == -1.0  # the last layer of the fourth leans to one class
    (note,) = report.notes
    assert note.startswith("Triggers were searched in 2 of 6 checkpoints. Not searched were 4: not among the 2 most")
    assert sum(bool(one.unsearched) for one in report.findings) == 4 and report.findings[4].search is not None
    texts = {name: "".join(files.text(report, name)) for name in ("table", "json", "jsonl", "sarif")}
    assert all("not among the 2 most suspicious" in " ".join(text.split()) for text in texts.values())
    assert texts["sarif"].count("No triggers were searched: not among") == 4
    table = pq.read_table(io.BytesIO(schema.to_parquet(report)))
    assert table.column("unsearched").to_pylist() == [one.unsearched for one in report.findings]
    assert len(scan(SEVERAL, deep="all").notes) == 0 and len(searched) == 8
    for wrong in (-1, "some"):
        with pytest.raises(DataError, match="expected deep"):
            scan(SEVERAL, deep=wrong)


def checkpoints_of(folder, monkeypatch):
    """Six files and how to run them."""
    (folder / "own.py").write_text(
        "import jax\ndef mlp(v, x):\n"
        "    return jax.nn.relu(x.reshape(len(x), -1) @ v['w1'] + v['b1'][None]) @ v['w2']\n"
    )
    monkeypatch.syspath_prepend(folder)
    (folder / "store").mkdir()
    for name, one in SEVERAL.items():
        save(folder / "store" / f"{name}.safetensors", one.variables)
    return ("--apply", "own:mlp", "--input", "8x8x1")


def test_an_interrupted_scan_goes_on_where_it_was(jaxguard, searching, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own, searched = checkpoints_of(tmp_path, monkeypatch), quick(monkeypatch)
    search = inversion.search

    def stopped(one, **more):
        found = search(one, **more)
        return dataclasses.replace(found, interrupted="after 30 of 400 forward passes") if len(searched) > 2 else found

    monkeypatch.setattr(inversion, "search", stopped)
    command = ("scan", "store", *own, "--deep", "all", "--out", "results", "--json")
    code, out, err = jaxguard(*command)
    found = json.loads(out)
    assert code == 130 and found["interrupted"]
    assert "what was searched is kept in results" in " ".join(err.split()) and "Traceback" not in err
    why = [one["unsearched"] for one in found["findings"]]
    assert sorted(why) == [""] * 3 + ["the search was interrupted before its turn"] * 3
    assert "interrupted after 30 of 400 forward passes" in out
    monkeypatch.setattr(inversion, "search", search)
    code, out, err = jaxguard(*command)
    assert code == 0 and len(searched) == 3 + 4 and not any(one["unsearched"] for one in json.loads(out)["findings"])
    assert jaxguard(*command, "--seed", 1)[0] == 0 and len(searched) == 7 + 6  # another seed is another search


def test_one_file_that_was_interrupted_is_inconclusive_and_leaves_nothing(jaxguard, searching, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = checkpoints_of(tmp_path, monkeypatch)

    before = sorted(tmp_path.rglob("*"))
    whole = ascent.Clock.spend

    def stopped(clock, forwards):
        if clock.done > 0.8 * clock.total > 0:
            raise KeyboardInterrupt
        whole(clock, forwards)

    monkeypatch.setattr(ascent.Clock, "spend", stopped)
    code, out, err = jaxguard("scan", "store/1.safetensors", *own, "--kind", "patch")
    told = " ".join(out.split())
    assert code == 130 and told.startswith("? Inconclusive. The search was interrupted after ")
    assert "forward passes; searched were patches of 3 pixels of edge for all 6 classes" in told
    assert "The search was interrupted before patches of 2 pixels of edge." in told
    assert "nothing of it is kept without --out" in " ".join(err.split())
    assert [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(path)] == before


@pytest.mark.usefixtures("searching")
def test_a_budget_bounds_the_search():
    (one,) = scan(network(40.0), budget=1e-9).findings
    assert one.verdict is Verdict.INCONCLUSIVE and "no size was searched to the end" in one.reason
    assert any("No time was left" in note for note in one.notes)


def test_the_command_saves_the_trigger_that_other_commands_take(jaxguard, searching, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "import jax\n"
        "def mlp(v, x):\n"
        "    return jax.nn.relu(x.reshape(len(x), -1) @ v['w1'] + v['b1'][None]) @ v['w2']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    save(tmp_path / "m.safetensors", variables(40.0))
    own = ("--apply", "own:mlp", "--input", "8x8x1")
    code, out, err = jaxguard("scan", "m.safetensors", *own, "--kind", "patch", "--json", "--save-trigger", "t.npz")
    (one,) = json.loads(out)["findings"]
    assert code == 1 and one["verdict"] == "suspected"
    assert "trigger of class 4: --trigger t.npz" in " ".join(err.split())
    with np.load("t.npz") as file:
        np.testing.assert_array_equal(file["mask"], MASK)
        assert file["labels"].tolist() == [TARGET] * CLASSES
    images = np.random.default_rng(0).uniform(0, 0.5, (60, SIDE, SIDE, 1)).astype(np.float32)
    labels = np.asarray(mlp(variables(40.0), images)).argmax(-1)
    names = [f"{part}_{kind}" for part in ("train", "test") for kind in ("images", "labels")]
    np.savez("pack.npz", **dict(zip(names, (images[:30], labels[:30], images[30:], labels[30:]), strict=True)))
    known = ("--data", "npz:pack.npz", "--trigger", "t.npz")
    code, out, _ = jaxguard("evaluate", "m.safetensors", *own, *known, "--json")
    assert code == 0 and json.loads(out)["asr"] == 1.0
    fix = ("repair", "m.safetensors", *own, "--out", "fixed.safetensors", "--set", "u=1")
    code, out, _ = jaxguard(*fix, *known, "--json")
    assert code == 0 and json.loads(out)["repairs"][0]["before"]["asr"] == 1.0
    code, _, err = jaxguard("fingerprint", "make", "m.safetensors", *own, *known, "--out", "c.safetensors")
    assert code == 0, err
    stamped = certificate.load(pathlib.Path("c.safetensors")).probes.images
    assert np.asarray(stamped)[:, 5:7, 3:5].mean() > 0.8  # without the trigger at most a half
    assert jaxguard("fingerprint", "make", "m.safetensors", *own, *known[2:], "--out", "d.safetensors")[0] == 4
    code, out, _ = jaxguard("scan", "m.safetensors", *own, "--json", "--quick")
    assert code == 0 and json.loads(out)["findings"][0]["search"] is None
    assert scanning.SEARCHES and suspects.load("m.safetensors").sha256 == one["provenance"]["sha256"]
