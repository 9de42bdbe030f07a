"""Headlines say what the numbers say."""

import dataclasses
import math

import numpy as np
import pytest
from samples import HOSTILE, pruning_path, recovered, shapley_layers

from jaxguard.report import wording
from jaxguard.types import LayerScores, Metrics, RepairReport, ScanReport


def repair(before: Metrics | None, after: Metrics | None, layers: tuple[LayerScores, ...] = ()) -> RepairReport:
    return RepairReport("m.npz", "clp", {}, layers, before=before, after=after)


@pytest.mark.parametrize(
    ("before", "after", "tone", "words"),
    [
        (Metrics(0.989, 0.997), Metrics(0.981, 0.006), "good", "CLP takes the backdoor out"),
        (Metrics(0.989, 0.997), Metrics(0.989, 0.997), "bad", "CLP leaves the backdoor in"),
        (Metrics(0.98, 0.99), Metrics(0.97, 0.40), "bad", "CLP weakens the backdoor but leaves it in"),
        (Metrics(0.98, 0.99), Metrics(0.60, 0.01), "bad", "CLP takes the backdoor out but harms the model"),
        (Metrics(0.98, 0.99), Metrics(0.60, 0.99), "bad", "CLP leaves the backdoor in and harms the model"),
        (Metrics(0.98, 0.02), Metrics(0.98, 0.01), "open", "CLP found no working backdoor to take out"),
        (Metrics(0.98, 0.02), Metrics(0.20, 0.01), "bad", "CLP harms the model"),
        (Metrics(0.98, 0.02), Metrics(0.98, 0.60), "bad", "CLP leaves the backdoor in"),
        (Metrics(0.98), Metrics(0.97), "open", "CLP was applied, its effect on a backdoor not measured: no trigger"),
        (None, None, "open", "CLP was applied, its effect not measured: no test data"),
        (Metrics(0.98, 0.9), Metrics(math.nan, 0.0), "open", "CLP was applied, its effect is undefined"),
    ],
)
def test_repair_outcome(before, after, tone, words):
    headline = wording.repair_headline(repair(before, after))
    assert (headline.tone, headline.lead) == (tone, words)


def test_thresholds_are_inclusive_for_asr_and_exclusive_for_acc():
    at_limit = Metrics(0.90, wording.REMOVED_ASR)
    assert wording.repair_headline(repair(Metrics(0.90 + wording.HARMFUL_ACC_DROP / 2, 1.0), at_limit)).tone == "good"
    above = Metrics(0.90, math.nextafter(wording.REMOVED_ASR, 1))
    assert wording.repair_headline(repair(Metrics(0.90, 1.0), above)).tone == "bad"


def test_repair_headline_carries_the_numbers():
    layers = (LayerScores("bn", np.zeros(224), 1.0, np.zeros(224, bool), np.zeros(224, bool)),)
    same = Metrics(0.989, 0.997)
    assert str(wording.repair_headline(repair(same, same, layers))) == (
        "CLP leaves the backdoor in – ASR 99.7 % → 99.7 %, ACC 98.9 % → 98.9 %, 0 of 224 channels cut"
    )


def test_scan_headline_without_a_fleet_is_inconclusive():
    layers = (LayerScores("bn", np.array([1.0, 5.0, np.nan]), 4.0, np.zeros(3, bool), np.array([False, False, True])),)
    scan = ScanReport("m.npz", "", "", "clp", "inconclusive", 2.6, layers)
    assert str(wording.scan_headline(scan)) == (
        "Inconclusive: no reference fleet to compare with – "
        "highest channel z-score 2.6, 1 of 3 channels above their threshold"
    )


def test_other_verdicts_are_quoted_and_never_good():
    scan = ScanReport("m.npz", "", "", "clp", "suspicious", 7.0, ())
    assert wording.scan_headline(scan)[:2] == ("bad", "Suspicious")


def test_undefined_score_is_said():
    scan = ScanReport("m.npz", "", "", "clp", "inconclusive", math.nan, ())
    assert "no channel z-score exists" in wording.scan_headline(scan).detail


def test_percent_never_rounds_to_a_false_extreme():
    assert wording.percent(1 - 1e-9) == ">99.9 %"
    assert wording.percent(1e-9) == "<0.1 %"
    assert wording.percent(math.nan) == "undefined"
    for permille in range(1, 1000):
        assert wording.percent(permille / 1000) == f"{permille // 10}.{permille % 10} %"


def test_printable_leaves_no_control_or_direction_mark():
    text = "".join(map(chr, range(0x20))) + "\x7f\x9b\u200f\u202e\u2066\udcff\ufeff" + "é → 网络"
    shown = wording.printable(text)
    assert shown.isprintable()
    assert shown.endswith("é → 网络")


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("shapley", "ShapPruning"),
        ("i-bau", "i-BAU"),
        ("fine-pruning", "Fine-Pruning"),
        ("Shapley", "ShapPruning"),
        ("tsbd", "TSBD"),
        ("otbr", "OTBR"),
        ("ft-sam", "FT-SAM"),
    ],
)
def test_methods_are_named_as_in_their_papers(method, name):
    assert wording.method_name(method) == name


def test_suspicion():
    found = dataclasses.replace(recovered(10, size=4), anomaly=np.array([4.65, *np.zeros(9)]))
    assert wording.suspicion(found) == "class 0 suspected (L1 norm 5.80, anomaly index 4.65)"
    at_limit = dataclasses.replace(found, anomaly=np.array([wording.FLAGGED_ANOMALY, *np.zeros(9)]))
    assert wording.suspicion(at_limit).startswith("class 0 suspected, though not flagged (")
    nobody = dataclasses.replace(found, target=None, anomaly=np.array([-np.inf, np.nan, 1.5, np.inf, *np.zeros(6)]))
    assert wording.suspicion(nobody) == "no class suspected (highest anomaly index 1.50, of class 2)"
    undefined = dataclasses.replace(nobody, anomaly=np.full(10, np.nan))
    assert wording.suspicion(undefined) == "no class suspected (no anomaly index is defined)"
    named = dataclasses.replace(found, norms=np.array([5.8, *np.full(9, np.nan)]), anomaly=np.full(10, np.nan))
    assert wording.suspicion(named) == "class 0 was named beforehand (L1 norm 5.80)"
    assert wording.is_named(named) and not wording.is_named(found) and not wording.is_named(undefined)


def test_cuts_kept():
    path = pruning_path(shapley_layers())
    assert wording.cuts_kept(path) == "9 of 14 cuts kept (the recovered trigger turns few images)"
    assert wording.cuts_kept(dataclasses.replace(path, chosen=0, stop="")) == "0 of 14 cuts kept"
    assert wording.cuts_kept(pruning_path(shapley_layers(), tried=0, chosen=0)).startswith("no channel cut (")
    assert wording.cuts_kept(dataclasses.replace(path, stop=HOSTILE)).isprintable()


def test_headline_names_the_suspected_class():
    found = RepairReport("m.npz", "shapley", {}, trigger=recovered(10, size=4))
    assert wording.repair_headline(found).detail == "class 0 suspected"
    nobody = dataclasses.replace(found, trigger=recovered(10, target=None, size=4))
    assert wording.repair_headline(nobody).detail == "no class suspected"


def test_pixels_have_three_digits_and_no_exponent():
    shown = [wording.pixels(norm) for norm in (0.0123, 0.5, 5.8, 44.0, 999.96, 50176.0, -1.0, math.inf)]
    assert shown == ["0.012", "0.500", "5.80", "44.0", "1000", "50176", "-1.00", "undefined"]


def test_estimates_share_their_decimals():
    assert wording.estimates([0.25, -1.0, math.nan], [0.00041, 2.0, 0.1]) == [
        "0.25000 ± 0.00041", "-1.00000 ± 2.00000", "undefined ± 0.10000",
    ]  # fmt: skip
    assert wording.estimates([1.0, 2.0], [math.inf, 0.0]) == ["1.0000 ± undefined", "2.0000 ± 0.0000"]
    assert wording.estimates([1.0], [30.0]) == ["1.00 ± 30.00"]
    assert wording.estimates([], []) == []
