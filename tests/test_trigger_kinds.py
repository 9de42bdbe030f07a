"""The table of kinds of triggers, by hand."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "experiments"))
import trigger_kinds

from jaxguard.inversion.kinds import KINDS


def row(index, gap, *, attack=None, target=None, leads=3, failed=False, problem=""):
    size = {"size": 0.1, "classes": [leads, 7], "margin": [2.0, 1.0], "hits": [90, 10], "judged": [100, 100]}
    weak = {"size": 0.2, "classes": [7, leads], "margin": [9.0, 8.9], "hits": [90, 90], "judged": [100, 100]}
    known = {"version": KINDS["blended"].version, "gap": gap, "problem": problem, "forwards": 10 * index}
    searched = {"blended": known | {"sizes": [size, weak]}}
    return {"index": index, "attack": attack, "target": target, "failed": failed, "searched": searched}


def test_backdoored_networks_are_counted_against_the_largest_clean_gap():
    rows = [row(0, 0.3), row(2, 0.5), row(4, 9.0, problem="it answers all images alike")]
    rows += [row(6, 0.8, attack="blended", target=3), row(8, 0.4, attack="blended", target=7)]
    rows += [row(10, 5.0, attack="blended", target=3, failed=True), row(12, 0.6, attack="all-to-all")]
    rows += [row(14, None, attack="blended", target=3)]
    found = trigger_kinds.summary(rows, ["blended", "warp"])
    blended = found["blended"]
    assert (blended["clean"], blended["largest_clean_gap"], blended["forwards"]) == (2, 0.5, 70)
    assert blended["attacks"]["blended"] == {
        "networks": 3,
        "nothing_said": 1,
        "above_all_clean": 1,
        "at_target": 1,
        "auc": 0.75,  # of the pairs of 0.8 and 0.4 with 0.3 and 0.5, three are in order
        "gaps": {"6": 0.8, "8": 0.4, "14": None},
    }
    assert blended["attacks"]["all-to-all"]["at_target"] == 0  # it leads to no one class
    assert found["warp"]["clean"] == 0 and found["warp"]["largest_clean_gap"] is None
