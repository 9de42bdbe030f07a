"""Published methods beside the rule of one file, and the table of outcomes."""

import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "experiments"))
import one_file

from jaxguard.detection.trigger_reference import ReferenceNetwork, TriggerReference
from jaxguard.types import Network


def test_the_largest_margin_of_a_linear_network_is_at_a_corner_of_the_cube():
    weights = np.random.default_rng(0).choice([-1.0, 1.0], size=(9, 3)).astype(np.float32)
    network = Network(weights, lambda w, x: x.reshape(len(x), -1) @ w, (3, 3, 1))
    found = one_file.largest_margins(network, jax.random.key(0))
    corners = np.stack(np.meshgrid(*[[0.0, 1.0]] * 9), axis=-1).reshape(-1, 9) @ weights
    others = [np.delete(corners, c, axis=1).max(1) for c in range(3)]
    assert found == pytest.approx([(corners[:, c] - others[c]).max() for c in range(3)], abs=1e-4)


def test_one_margin_far_above_a_gamma_distribution_is_suspected():
    others = np.random.default_rng(0).gamma(5, size=30)
    assert one_file.gamma_p_value(np.r_[others, 40.0]) < 1e-3
    assert one_file.gamma_p_value(others) > 0.05


def row(model, gap, hits, **more):
    size = {"size": 3.0, "classes": [5, 1], "margin": [gap, 0.0], "hits": [hits, 0], "judged": [100, 100]}
    patch = {"version": 2, "gap": gap, "p_class": 0.5, "problem": "", "reached": 1.0, "sizes": [size]} | more
    known = {"classes": 10, "shape": [8, 8, 3], "arch": "cnn3"}
    return {"model": model, "method": "search", "images": 0, "searched": {"patch": patch}, **known}


def test_outcomes_are_counted_by_label_and_target(monkeypatch):
    networks = [ReferenceNetwork(f"{k}", "cnn", {"patch": (2, k / 40)}) for k in range(39)]
    monkeypatch.setattr(one_file.trigger_reference, "load", lambda: TriggerReference(tuple(networks)))
    target = {"label": "backdoored", "attack": {"target": 5}}
    known = {
        "a": target,
        "b": {**target, "attack": {"target": 1}},
        "c": target,
        "d": {"label": "clean", "attack": None},
    }
    rows = [row("a", 2.0, 98), row("b", 2.0, 98), row("c", 2.0, 0, problem="no"), row("d", 2.0, 98)]
    rows += [{"model": "d", "method": "mm-bd", "images": 0, "p_value": 0.01, "flagged": 3}]
    rows += [{"model": "a", "method": "neural-cleanse", "images": 0, "index": 1.0, "flagged": 5}]
    mm_bd, cleanse, search = one_file.summary(rows, known)
    assert (search["found"], search["backdoored"], search["at_target"]) == (2, 3, 1)
    assert (search["accused"], search["inconclusive"]) == (["d"], ["c"])
    assert mm_bd["accused"] == ["d"] and (cleanse["found"], cleanse["backdoored"]) == (0, 1)
    assert "| search | 0 | 4 | 2 of 3 | 1 | 1 of 1 | 1 |" in one_file.table([search])
