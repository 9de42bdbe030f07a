from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from jaxguard.detection import search_verdicts
from jaxguard.detection.trigger_reference import Rates, ReferenceNetwork, TriggerReference
from jaxguard.inversion import margins
from jaxguard.types import Finding, KindResult, Metrics, Provenance, TriggerRow, TriggerSearch, Verdict

SUSPECT = Finding(Provenance("m.npz", "ab"), Verdict.INCONCLUSIVE, "no reference profile", looks=("weights",))


def found(margin, hits, problem="", num_classes=None, **more):
    number = len(margin)
    row = TriggerRow(
        "patch",
        3.0,
        np.arange(number),
        np.array(margin, float),
        np.array(hits),
        np.full(number, 80),
        {"corners": np.tile([29, 28], (number, 1)), "pixels": np.ones((number, 3, 3, 3), np.float32)},
        "a 3x3 patch at (29, 28)",
    )
    known = {"gap": row.gap, "p_class": margins.class_p_value([row]), "label": "patches of 3 pixels of edge"} | more
    known = {"results": (KindResult("patch", problem=problem, **known),), "num_classes": num_classes or number}
    return TriggerSearch(
        (row,), problem=problem, source="100 procedural images", shape=(32, 32, 3), reached=1.0, **known
    )


STRONG = found([4.0, -1, -1.2, -0.9, -1.1, -0.8], [79, 8, 8, 8, 8, 8])
WEAK = found([-0.6, -1, -1.2, -0.9, -1.1, -0.8], [20, 8, 8, 8, 8, 8])
UNSURE = found([2.2, -1, 0.2, -0.9, -1.1, 0.3], [70, 8, 30, 8, 8, 20])


def judged(search, reference=None, **settings):
    (one,) = search_verdicts.judge([SUSPECT], {0: search}, reference, **({"alpha": 0.05} | settings))
    return one


def test_a_class_far_ahead_whose_trigger_works_is_suspected_in_one_sentence():
    one = judged(STRONG)
    low, high = stats.binomtest(79, 80).proportion_ci(0.95, method="exact")
    assert one.verdict is Verdict.SUSPECTED
    assert one.reason.startswith(
        f"a 3x3 patch at (29, 28) turns 98.8 % [{100 * low:.1f}, {100 * high:.1f}] of 80 held-out images into class 0, "
        "the next class reaches 10 %; p = "
    )
    assert "among its own classes, as there are no reference networks" in one.reason
    assert (one.score, one.p_value) == (STRONG.gap, STRONG.p_class) and one.p_value < 0.01
    assert one.looks == ("weights", "universal triggers") and one.search is STRONG


def test_a_trigger_that_works_on_few_images_is_none_however_far_it_leads():
    assert judged(found([4.0, -1, -1.2, -0.9, -1.1, -0.8], [40, 8, 8, 8, 8, 8])).verdict is Verdict.NO_TRIGGER


def test_without_a_lead_no_trigger_is_found_and_what_was_searched_is_named():
    one = judged(WEAK)
    assert one.verdict is Verdict.NO_TRIGGER
    assert one.reason.startswith("searched were patches of 3 pixels of edge for all 6 classes; a 3x3 patch")
    some = judged(found([-0.6, -1, -1.2, -0.9, -1.1, -0.8], [20, 8, 8, 8, 8, 8], num_classes=100))
    assert "for 6 of 100 classes" in some.reason


def test_a_doubtful_lead_with_a_working_trigger_is_inconclusive():
    one = judged(UNSURE)
    assert 0.05 < one.p_value <= 0.2
    assert one.verdict is Verdict.INCONCLUSIVE and "does not stand out far enough" in one.reason


def test_a_network_of_which_nothing_can_be_said_is_inconclusive_with_the_reason():
    one = judged(found([4.0, -1, -1, -1, -1], [80] * 5, problem="it answers all images alike"))
    assert one.verdict is Verdict.INCONCLUSIVE and np.isnan(one.score) and np.isnan(one.p_value)
    assert one.reason == "no statement on triggers: it answers all images alike"
    undefined = judged(found([4.0, -1, -1, -1, -np.inf], [80] * 5, gap=5.0))
    assert undefined.verdict is Verdict.INCONCLUSIVE and "margin of a class is undefined" in undefined.reason


def test_of_two_classes_the_transferability_decides_without_references():
    row = TriggerRow("transferability", 3.0, np.arange(2), np.array([0.9, 0.1]), np.array([30, 2]), np.full(2, 32), {})
    for value, p_value, verdict in ((0.9, 1e-4, Verdict.SUSPECTED), (0.4, 1.0, Verdict.NO_TRIGGER)):
        results = (KindResult("transferability", gap=value, p_class=p_value, label="the smallest patch of each image"),)
        one = judged(TriggerSearch((row,), results, num_classes=2), references({"00": 0.1}))
        assert one.verdict is verdict and one.score == value and one.notes == ()
        assert f"expected transferability {value:.2f}, above 1/2 with p = {p_value:.2g}" in one.reason


def references(gaps, **more):
    networks = [ReferenceNetwork(key, "cnn:width=0.5", {"patch": (1, gap)}) for key, gap in gaps.items()]
    return TriggerReference(tuple(networks), **more)


def test_reference_networks_decide_where_there_are_any():
    reference = references({f"{k:02x}": k / 10 for k in range(39)} | {"ab": 99.0})
    one = judged(STRONG, reference)  # its own hash, ab, is not compared with itself
    assert one.p_value == 1 / 40 and one.verdict is Verdict.SUSPECTED and one.search.lead == "patch"
    assert "p = 0.025 among 39 reference networks, p = " in one.reason
    assert one.reason.endswith("how often that errs on strangers was not measured for these kinds of triggers")
    few = references({f"{k:02x}": 0.1 for k in range(9)})
    assert judged(STRONG, few).verdict is Verdict.INCONCLUSIVE  # no p-value below 0.1


def test_the_rates_on_strangers_stand_beside_the_verdict():
    rates = Rates(0.05, {"patch": 1}, (2, 60), {"badnets": (9, 10), "blended": (1, 8)})
    reference = references({f"{k:02x}": k / 10 for k in range(39)}, rates=(rates,))
    told = "the rule at 5 % suspected 2 of 60 clean ones and found badnets 9 of 10, blended 1 of 8"
    assert told in judged(STRONG, reference).reason and told in judged(WEAK, reference).reason


def test_the_family_of_a_suspect_is_counted_among_the_references():
    reference = references({f"{k:02x}": k / 10 for k in range(39)})
    for architecture, told in (("cnn:width=1", "39 of them cnn"), ("resnet18", "none of them resnet18")):
        suspect = replace(SUSPECT, provenance=Provenance("m.npz", "ab", architecture=architecture))
        (one,) = search_verdicts.judge([suspect], {0: STRONG}, reference, alpha=0.05)
        assert f"among 39 reference networks ({told})" in one.reason


def test_kinds_that_no_reference_was_searched_for_and_silent_ones_are_named():
    reference = references({f"{k:02x}": k / 10 for k in range(39)})
    (patch,) = STRONG.results
    more = KindResult("warp", gap=50.0), KindResult("noise", problem="all classes flip", label="noise of 8/255")
    one = judged(replace(STRONG, results=(patch, *more)), reference)
    assert one.p_value == 1 / 40 and one.search.lead == "patch"
    assert one.notes == (
        "No statement by noise of 8/255: all classes flip.",
        "Not judged: warp; no reference network was searched for it as it is now.",
    )
    other = references({"00": 0.1})
    alone = judged(replace(STRONG, results=(replace(patch, version=2),)), other)
    assert alone.p_value == STRONG.p_class and "no reference network was searched for the same triggers" in alone.reason


def test_among_several_networks_the_adjusted_p_value_decides():
    searches = {0: UNSURE, 1: WEAK}
    rate = UNSURE.p_class * 1.5  # enough for it alone, not among two
    suspects = [replace(SUSPECT, provenance=Provenance(name, name)) for name in ("ab", "cd", "ef")]
    together = search_verdicts.judge(suspects, searches, None, alpha=rate)
    each = search_verdicts.judge(suspects, searches, None, alpha=rate, is_each=True)
    assert [one.verdict for one in together] == [Verdict.INCONCLUSIVE, Verdict.NO_TRIGGER, Verdict.INCONCLUSIVE]
    assert each[0].verdict is Verdict.SUSPECTED
    assert together[0].q_value == pytest.approx(2 * UNSURE.p_class) and together[2] is suspects[2]


def by_profile(p_value, verdict, name="ab"):
    why = f"by the profile {p_value}"
    return Finding(
        Provenance(name, name), verdict, why, score=1.0, p_value=p_value, q_value=p_value, looks=("weights",)
    )


def test_a_profile_and_a_search_are_joined():
    suspects = {
        "by both": (by_profile(0.025, Verdict.SUSPECTED), STRONG),
        "by the search": (by_profile(0.6, Verdict.NO_EVIDENCE), STRONG),
        "by the profile, at a price": (by_profile(0.04, Verdict.SUSPECTED), WEAK),
        "by neither": (by_profile(0.6, Verdict.NO_EVIDENCE), WEAK),
        "in doubt": (by_profile(0.6, Verdict.NO_EVIDENCE), UNSURE),
        "without a statement": (by_profile(0.02, Verdict.SUSPECTED), found([1.0] * 6, [1] * 6, "all alike")),
        "not begun": (by_profile(0.04, Verdict.SUSPECTED), TriggerSearch(problem="no images")),
    }
    judged = {}
    for name, (one, search) in suspects.items():
        (judged[name],) = search_verdicts.judge([one], {0: search}, None, alpha=0.05)
    p_values = [0, 2 * STRONG.p_class, 0.08, 1, 2 * UNSURE.p_class, 0.04, 0.04]
    p_values[0] = 2 * min(0.025, STRONG.p_class)
    assert [one.p_value for one in judged.values()] == pytest.approx(p_values)
    suspected, open_, none = Verdict.SUSPECTED, Verdict.INCONCLUSIVE, Verdict.NO_EVIDENCE
    assert [one.verdict for one in judged.values()] == [suspected] * 2 + [open_, none, open_] + [suspected] * 2
    assert "twice the smaller one of the profile's 0.6 and the search's" in judged["by the search"].reason
    assert judged["by neither"].reason.startswith("by the profile 0.6; a 3x3 patch")
    assert all(one.score == 1.0 and one.search is not None for one in judged.values())


def test_searches_of_some_change_the_rates_of_all():
    fleet = [by_profile(0.02, Verdict.INCONCLUSIVE, "a"), by_profile(0.9, Verdict.NO_EVIDENCE, "b")]
    fleet += [replace(fleet[1]), by_profile(0.5, Verdict.NO_EVIDENCE, "c")]
    p_strong = 2 * STRONG.p_class
    strong = dict.fromkeys((1, 2), STRONG)  # two files of one content
    judged = search_verdicts.judge(fleet, strong, None, alpha=0.05)
    assert [one.verdict.name for one in judged] == ["SUSPECTED"] * 3 + ["NO_EVIDENCE"]
    assert [one.q_value for one in judged] == pytest.approx([0.03, 3 * p_strong, 3 * p_strong, 0.5])
    assert judged[0].reason.endswith("with the searches of others q = 0.03")


def test_a_known_trigger_that_works_on_nearly_all_images_confirms_a_backdoor():
    one = search_verdicts.confirmed(SUSPECT, Metrics(0.97, 0.997, 0.0, 360, 324))
    assert one.verdict is Verdict.CONFIRMED
    assert one.reason.startswith("the given trigger turns 99.7 % [98.3, 100.0] of 324 test images")
    for metrics in (
        Metrics(0.97, 0.8, 0.1, 360, 324),  # works on too few
        Metrics(0.97, 1.0, 0.0, 20, 9),  # measured on too few
        Metrics(0.1, 1.0, 0.0, 360, 324),  # answers everything so
        Metrics(0.97, None, None, 360, 0),
    ):
        assert search_verdicts.confirmed(SUSPECT, metrics) is SUSPECT
    coded = Finding(Provenance("m.pt"), Verdict.CODE_EXECUTION)
    assert search_verdicts.confirmed(coded, Metrics(0.97, 1.0, 0.0, 360, 324)) is coded
