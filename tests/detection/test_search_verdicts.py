import json

import numpy as np
import pytest
from scipy import stats

from jaxguard.detection import search_verdicts, trigger_reference
from jaxguard.detection.trigger_reference import TriggerReference
from jaxguard.errors import DataError
from jaxguard.inversion import margins
from jaxguard.inversion.kinds import KINDS
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
    return TriggerSearch((row,), problem=problem, source="100 clean images", shape=(32, 32, 3), **known)


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


def test_reference_networks_decide_where_there_are_any():
    reference = TriggerReference({f"{k:02x}": k / 10 for k in range(39)} | {"ab": 99.0}, (0, 0), "")
    one = judged(STRONG, reference)  # its own hash, ab, is not compared with itself
    assert one.p_value == 1 / 40 and one.verdict is Verdict.SUSPECTED
    assert "p = 0.025 among 39 reference networks, p = " in one.reason
    few = TriggerReference({f"{k:02x}": 0.1 for k in range(9)}, (0, 0), "")
    assert judged(STRONG, few).verdict is Verdict.INCONCLUSIVE  # no p-value below 0.1


def test_among_several_networks_the_adjusted_p_value_decides():
    searches = {0: UNSURE, 1: WEAK}
    rate = UNSURE.p_class * 1.5  # enough for it alone, not among two
    together = search_verdicts.judge([SUSPECT] * 3, searches, None, alpha=rate)
    each = search_verdicts.judge([SUSPECT] * 3, searches, None, alpha=rate, is_each=True)
    assert [one.verdict for one in together] == [Verdict.INCONCLUSIVE, Verdict.NO_TRIGGER, Verdict.INCONCLUSIVE]
    assert each[0].verdict is Verdict.SUSPECTED
    assert together[0].q_value == pytest.approx(2 * UNSURE.p_class) and together[2] is SUSPECT


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


def document(**changes):
    rows = [{"sha256": "aa", "gap": 0.3}, {"sha256": "bb", "gap": None}, {"sha256": "cc", "gap": 0.7}]
    return {"schema": trigger_reference.SCHEMA, "search": KINDS["patch"].version, "networks": rows} | changes


def test_a_reference_file_is_read_and_networks_without_a_gap_are_left_out(tmp_path):
    path = tmp_path / "reference.json"
    assert trigger_reference.load(path) is None
    path.write_text(json.dumps(document(power={"found": 52, "of": 60})))
    known = trigger_reference.load(path)
    assert known.gaps == {"aa": 0.3, "cc": 0.7} and known.power == (52, 60) and len(known.digest) == 64
    assert known.p_value(0.5) == (2 / 3, 2)
    path.write_text(json.dumps(document(search=KINDS["patch"].version + 1)))
    assert trigger_reference.load(path) is None  # gaps of another search do not compare


@pytest.mark.parametrize(
    "text", ["{", "[]", json.dumps(document(schema="other")), json.dumps(document(networks=[{"gap": 1}]))]
)
def test_a_damaged_reference_file_is_one_error(tmp_path, text):
    path = tmp_path / "reference.json"
    path.write_text(text)
    with pytest.raises(DataError, match="expected a reference of schema"):
        trigger_reference.load(path)
