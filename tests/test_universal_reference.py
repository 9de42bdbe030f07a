"""The plan of the reference population, and one tiny network through training, search and report."""

import dataclasses
import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "experiments"))
import reference_plan
import reference_report
import reference_training
import universal_reference
from reference_plan import KINDS, REGIMES, STRUCTURES, TASKS

from jaxguard.detection import trigger_reference

PLAN = reference_plan.plan()


def test_the_plan_is_the_same_every_time_and_numbered():
    assert reference_plan.plan() == PLAN
    assert [one.index for one in PLAN] == list(range(len(PLAN)))
    assert sum(one.kind is None for one in PLAN) == sum(one.kind is not None for one in PLAN) == 128
    # Numbers that were drawn when the plan was fixed: rows of the result refer to them.
    assert [(one.structure.task, one.structure.family, one.regime, one.kind) for one in PLAN[:7:2]] == [
        ("mnist", "vit-tiny-7", "standard", "blended"),
        ("mnist", "mlp", "under-trained", None),
        ("digits", "vit-tiny-4", "augmented", None),
        ("mnist", "mlp", "pruned", None),
    ]


@pytest.mark.parametrize("half", ["reference", "judgement"])
def test_both_halves_cover_everything(half):
    ours = [one for one in PLAN if one.half == half]
    clean, backdoored = ([one for one in ours if (one.kind is None) == is_clean] for is_clean in (True, False))
    for part in (clean, backdoored):
        assert {one.structure for one in part} == set(STRUCTURES)
        assert {one.structure.task for one in part} == set(TASKS)
        assert {one.regime for one in part} == set(REGIMES)
    assert {one.kind for one in backdoored} == set(KINDS)
    sizes = {reference_plan.poison_of(one, 10).size for one in backdoored}
    assert sizes == {None, *range(2, 9)}
    families = {one.structure.family for one in ours}
    assert families >= {"mlp", "cnn", "resnet8", "resnet20", "wideresnet-16-1", "vgg11", "vit-tiny-4"}


def test_the_two_of_a_pair_differ_in_what_they_draw():
    for even, odd in zip(PLAN[::2], PLAN[1::2], strict=True):
        assert (even.structure, even.regime, even.kind) == (odd.structure, odd.regime, odd.kind)
    triggers = [tuple(reference_plan.poison_of(one, 10).details.items()) for one in PLAN if one.kind == "crop"]
    assert len(set(triggers)) == len(triggers)
    for one in PLAN:
        if one.kind is not None:
            images = np.zeros((1, *[TASKS[one.structure.task].size] * 2, 3), np.float32)
            assert np.asarray(reference_plan.poison_of(one, 10).attack.stamp(images)).shape == images.shape


@pytest.fixture
def tiny(monkeypatch):
    """A plan of four networks that are trained for a moment."""
    wanted = [(None, "pruned"), (None, "fine-tuned"), ("source-specific", "standard"), ("letter", "standard")]
    structure = dataclasses.replace(STRUCTURES[0], arch="mlp:hidden=16", steps=80, rate=5e-3)
    plan = [reference_plan.Plan(index, structure, regime, kind) for index, (kind, regime) in enumerate(wanted)]
    monkeypatch.setattr(reference_plan, "plan", lambda: plan)
    return plan


def test_networks_are_trained_once_and_resumed(tiny, tmp_path, monkeypatch, capsys):
    rows = tmp_path / "rows.jsonl"

    def run(*arguments):
        command = ["x", *arguments, "--out", str(tmp_path / "out"), "--rows", str(rows)]
        monkeypatch.setattr(sys, "argv", command)
        universal_reference.main()
        return universal_reference.read(rows)

    assert list(run("--train", "--first", "1")) == [0]
    assert list(run("--train", "--shard", "1/2")) == [0, 2, 3]
    assert list(run("--train", "--shard", "0/2")) == [0, 2, 3, 1]
    assert "failed:" not in capsys.readouterr().out
    found = run("--train")
    assert len(rows.read_text().splitlines()) == 4
    assert all(0.3 < row["acc"] <= 1 for row in found.values())
    assert "asr" not in found[0] and found[3]["failed"] == (found[3]["asr"] < 0.8)
    assert found[2]["asr_elsewhere"] < found[2]["asr"] and found[2]["trigger"]["sources"]
    assert len({row["sha256"] for row in found.values()}) == 4
    model, variables, _ = reference_training.trained(tiny[0], "")
    kernels = [np.asarray(layer["kernel"]).ravel() for layer in variables["params"].values()]
    assert np.mean(np.concatenate(kernels) == 0) == pytest.approx(reference_training.PRUNED, abs=0.01)
    assert model.spec == found[0]["architecture"]
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join(lines[1:]) + "\n")  # a row that was lost: the same network is trained again
    again = run("--train")[0]
    timed = ("seconds", "cpu_seconds")
    assert {**again, **dict.fromkeys(timed)} == {**json.loads(lines[0]), "searched": {}, **dict.fromkeys(timed)}


def row(index, gap, *, attack=None, hits=(90, 10), **more):
    """As the search writes it: classes 3 and 4, of which 3 leads."""
    margin = [None, None] if gap is None else [gap, 0.0]
    size = {"size": 3.0, "classes": [3, 4], "margin": margin, "hits": list(hits), "judged": [100, 100]}
    searched = {"version": 1, "gap": gap, "problem": "", "cpu_seconds": 2.0, "sizes": [size]}
    searched |= {"file_sha256": f"file {index}", "p_class": 0.5}
    half = "judgement" if index % 2 else "reference"
    known = {"data": "digits", "classes": 10, "shape": [16, 16, 1], "architecture": "mlp:hidden=16", "acc": 0.9}
    known |= {"regime": "standard", "cpu_seconds": 1.0, "sha256": "", "attack": attack}
    if attack:
        known |= {"target": 3, "failed": False, "asr": 0.9, "size": 3}
    return {"index": index, "half": half, **known, "searched": {"patch": searched}, **more}


def test_report_counts_by_hand():
    """20 references with gaps of 0 to 0.95: at 0.05 only a gap above all of them is suspected."""
    rows = [row(2 * k, k / 20) for k in range(20)]
    rows += [row(1, 0.5), row(3, 1.5), row(5, 1.5, hits=(55, 10)), row(7, None)]  # 55 of 100 may be less than a half
    rows += [
        row(101, 2.0, attack="crop"),
        row(103, 2.0, attack="crop", target=4),
        row(105, 0.4, attack="letter", size=8),
    ]
    rows += [row(107, 3.0, attack="letter", failed=True), row(100, 3.0, attack="letter")]
    found = reference_report.summary({one["index"]: one for one in rows})
    assert (found["references"], found["trained"], found["attack_failed"]) == (20, 29, [107])
    (rates,), (shipped,) = found["rates"], found["shipped"]
    assert rates["kinds"] == {"patch": 1} and (rates["references"], shipped["references"]) == (20, 23)
    assert shipped["false_alarms"]["count"] == 0  # two of 1.5, of which each is as high as the other
    assert shipped["power"]["count"] == 2
    assert (rates["false_alarms"]["networks"], rates["false_alarms"]["count"]) == (4, 1)
    # Clopper and Pearson for 1 of 4, by hand: 1 - 0.975^(1/4), and p of 0.025 = (1 - p)^4 + 4 p (1 - p)^3.
    assert rates["false_alarms"]["ci95"] == pytest.approx([0.0063, 0.8059], abs=1e-4)
    assert (rates["power"]["networks"], rates["power"]["count"], rates["target_found"]["count"]) == (3, 2, 2)
    assert rates["inconclusive"] == {"clean": 1, "backdoored": 0}
    # Pairs of the clean gaps 0.5, 1.5, 1.5, none and the backdoored 2, 2, 0.4: nine of twelve in order.
    assert rates["auc"] == pytest.approx(9 / 12, abs=1e-4)
    assert rates["power_at_0.05_false_alarms"]["count"] == 2  # above all clean ones
    assert rates["power_by"]["attack"]["crop"]["rate"] == 1 and rates["power_by"]["attack"]["letter"]["rate"] == 0
    assert rates["power_by"]["trigger size"].keys() == {"3", "8"}
    assert "| patch | 20 | 1 of 4 | 2 of 2 | 0 of 1 | 2 of 3 | 0.75 |" in reference_report.tables(found)


def with_warp(known, gap):
    """Searched for a second kind."""
    size = {"size": 1.0, "classes": [5, 6], "margin": [gap, 0.0], "hits": [95, 5], "judged": [100, 100]}
    warp = {**known["searched"]["patch"], "version": 3, "gap": gap, "sizes": [size]}
    return {**known, "searched": {**known["searched"], "warp": warp}}


def test_kinds_are_reported_joined_and_alone_on_networks_searched_for_all():
    rows = [with_warp(row(2 * k, k / 20), (7 * k % 20) / 20) for k in range(20)]
    rows += [with_warp(row(1, 0.5), 0.5), row(3, 9.0)]  # the second is not searched for warps yet
    rows += [with_warp(row(101, 5.0, attack="crop"), 0.1), with_warp(row(103, 0.2, attack="letter"), 5.0)]
    found = reference_report.summary({one["index"]: one for one in rows})
    assert (found["searched"], found["complete"]) == ({"patch": 24, "warp": 23}, 23)
    joined, patch, warp = found["rates"]
    counts = [[part["power_by"]["attack"][name]["count"] for name in ("crop", "letter")] for part in found["rates"]]
    assert counts == [[1, 1], [1, 0], [0, 1]]
    assert joined["kinds"] == {"patch": 1, "warp": 3} and (patch["kinds"], warp["kinds"]) == ({"patch": 1}, {"warp": 3})
    assert (
        joined["false_alarms"] == patch["false_alarms"] == {"networks": 1, "count": 0, "rate": 0.0, "ci95": [0, 0.975]}
    )


def test_reference_file_holds_the_clean_networks_of_both_halves(tmp_path):
    rows = [row(2 * k, k / 20) for k in range(19)]
    rows += [row(1, 0.3), row(100, 0.4, attack="crop"), row(101, 2.0, attack="crop"), row(200, None)]
    package = tmp_path / "reference.json"
    reference_report.write({one["index"]: one for one in rows}, tmp_path, package)
    written = json.loads(package.read_text())
    gaps = {one["index"]: one["kinds"]["patch"] for one in written["networks"]}
    assert gaps == {2 * k: {"version": 1, "gap": k / 20} for k in range(19)} | {1: {"version": 1, "gap": 0.3}}
    (rates,) = written["rates"]
    assert rates["power"] == {"crop": {"found": 1, "of": 1}} and rates["false_alarms"] == {"found": 0, "of": 1}
    assert rates["references"] == 20  # the clean one of them is not compared with itself
    assert json.loads((tmp_path / "universal_reference_report.json").read_text())["references"] == 19
    known = trigger_reference.load(package)
    assert known is not None and {one.sha256 for one in known.networks} == {f"file {k}" for k in gaps}
    assert known.rates[0].power == {"crop": (1, 1)}
    package.unlink()
    reference_report.write({one["index"]: one for one in rows[1:]}, tmp_path, package)
    assert not package.exists()  # with 18 references nothing could be suspected


def test_too_few_references_give_no_rates():
    found = reference_report.summary({0: row(0, 0.2)})
    assert "Too few references" in found["note"] and "rates" not in found


def test_rows_of_another_plan_are_refused(tiny, tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"index": 0, "sha256": "", "plan": "another"}) + "\n")
    monkeypatch.setattr(sys, "argv", ["x", "--train", "--out", str(tmp_path / "out"), "--rows", str(rows)])
    with pytest.raises(SystemExit, match="network 0 as it is planned"):
        universal_reference.main()
