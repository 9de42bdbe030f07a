"""The plan of the reference population, and one tiny network through training, search and report."""

import dataclasses
import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "experiments"))
import reference_plan
import reference_training
import universal_reference
from reference_plan import KINDS, REGIMES, STRUCTURES, TASKS

PLAN = reference_plan.plan()


def test_the_plan_is_the_same_every_time_and_numbered():
    assert reference_plan.plan() == PLAN
    assert [one.index for one in PLAN] == list(range(len(PLAN)))
    assert sum(one.kind is None for one in PLAN) == sum(one.kind is not None for one in PLAN) == 128
    # Numbers that were drawn when the plan was fixed: rows of the result refer to them.
    assert [(one.structure.task, one.structure.family, one.regime, one.kind) for one in PLAN[:7:2]] == [
        ("mnist", "vit-tiny-4", "standard", "blended"),
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
    assert {**again, **dict.fromkeys(timed)} == {**json.loads(lines[0]), **dict.fromkeys(timed)}
