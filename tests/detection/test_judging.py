"""Verdicts: p-values by counting, error rates by simulation, and what is said where nothing can be."""

import numpy as np
import pytest
from references import TRIGGER_NAMES, Judged, fleet, power, record, with_hash, with_look, with_triggers
from scipy import stats

from jaxguard import conformal
from jaxguard.detection.calibration import calibrate
from jaxguard.detection.combination import FITTED, Combination
from jaxguard.detection.judging import EACH, SEARCHED, judge, references
from jaxguard.detection.profile import CohortProfile, Profile, ReferenceScores, Stage
from jaxguard.detection.records import Record
from jaxguard.errors import DataError
from jaxguard.types import Verdict

ONE = np.ones(1)


def line(clean: list[float], backdoored: list[float] = ()) -> Profile:
    """One feature, two folds: the score is `x` by the one and `x + 1` by the other."""
    combinations = tuple(
        Combination(FITTED, ONE.astype(bool), 0 * ONE, 100 * ONE, 100 * ONE[None], shift) for shift in (0.0, 1.0)
    )
    known = (
        ReferenceScores(
            tuple(f"{name}{k:02}" for k in range(len(scores))), np.arange(len(scores)) % 2, np.array(scores, float)
        )
        for name, scores in (("c", clean), ("b", backdoored))
    )
    return Profile({"line": CohortProfile("line", ("weights",), Stage(("x",), combinations, *known), None)})


def at(*places: float, sha256: str = "") -> list[Record]:
    return [record("line", sha256, [x], names=("x",)) for x in places]


def test_each_reference_is_compared_by_the_model_of_its_fold():
    # Even references 0, 2, ..., 18 face x; odd ones 1, 3, ..., 19 face x + 1.
    profile = line([float(k) for k in range(20)])
    found = Judged(at(20, 17, 9.5, 0, -2), profile)
    # 17: of the even 18, of the odd 19. 9.5: five even, five odd from 10.5 on. 0: all even, all odd. -2: all.
    assert found.p_values.tolist() == [1 / 21, 3 / 21, 11 / 21, 1.0, 1.0]
    assert found.scores.tolist() == [20.5, 17.5, 10.0, 0.5, -1.5]
    assert np.allclose(found.q_values, [5 / 21, 7.5 / 21, 55 / 63, 1, 1])
    assert set(found.stages) == {"first"}


def test_a_reference_is_compared_with_the_others():
    profile = line([float(k) for k in range(25)], [30.0, 3.0])
    records = [at(99.0, sha256=name)[0] for name in ("c24", "c23", "c00", "b00", "b01")]
    found = Judged(records, profile, control=EACH)
    assert found.scores.tolist() == [24, 23, 0, 30, 3]
    assert found.p_values.tolist() == [1 / 25, 2 / 25, 1, 1 / 26, 23 / 26]
    assert found.verdicts[0] == Verdict.SUSPECTED
    assert found.reasons[0].startswith("it is one of the references, compared with the others: none of 24 references")
    assert found.reasons[3].startswith("it is known to be backdoored, and scored here by a model that was not fitted")


def test_nineteen_references_are_too_few_for_one_of_them():
    profile = line([float(k) for k in range(19)])
    found = Judged([*at(99), *at(99, sha256="c18")], profile, control=EACH)
    assert found.verdicts == (Verdict.SUSPECTED, Verdict.INCONCLUSIVE)
    assert found.reasons[1] == "it is one of the references, and 18 others are fewer than 19"
    assert np.isnan(found.p_values[1])


def test_a_lone_one_among_many_is_out_of_reach():
    profile = line([float(k) for k in range(24)])
    innocent = at(*[-9.0] * 199)
    (alone,) = Judged(at(99), profile).verdicts
    found = Judged([*innocent, *at(99)], profile)
    each = Judged([*innocent, *at(99)], profile, control=EACH)
    assert alone == each.verdicts[-1] == Verdict.SUSPECTED
    assert found.p_values[-1] == 1 / 25
    assert found.verdicts == (*[Verdict.NO_EVIDENCE] * 199, Verdict.INCONCLUSIVE)
    assert found.reasons[-1] == (
        "none of 24 references scores as high; judged alone it would be suspected (p = 0.04), but among 200 "
        "checkpoints that many are by chance (q = 1); no p-value is smaller with 24 references, 3,999 could tell"
    )
    # As many as it says do tell, and one fewer do not.
    assert 200 * conformal.p_values([99], np.zeros(3999))[0] <= 0.05 < 200 * conformal.p_values([99], np.zeros(3998))[0]


def test_many_together_are_within_reach():
    # 25 times the smallest p-value, 1 / 25, among 25 to 31: q = 1 / 25 to 31 / 625 <= 0.05; among 32 it is above.
    profile = line([float(k) for k in range(24)])
    for innocent, says in ((6, Verdict.SUSPECTED), (7, Verdict.INCONCLUSIVE)):
        found = Judged([*at(*[-9.0] * innocent), *at(*[99.0] * 25)], profile)
        assert found.verdicts == (*[Verdict.NO_EVIDENCE] * innocent, *[says] * 25)
    # One reference more would do: 32 / (25 * 26) <= 0.05.
    assert found.reasons[-1].endswith("no p-value is smaller with 24 references, 25 could tell")


def test_a_conspicuous_one_above_the_smallest_is_not_told_to_get_more_references():
    profile = line([float(k) for k in range(60)])
    found = Judged([*at(57.5), *at(*[-9.0] * 20)], profile)
    assert found.verdicts[0] == Verdict.INCONCLUSIVE
    assert found.reasons[0].startswith("2 of 60 references score as high; judged alone it would be suspected")
    assert "could tell" not in found.reasons[0]


def test_copies_count_once():
    profile = line([float(k) for k in range(24)])
    copies = [*at(*[-9.0] * 1000, sha256="aa"), *at(*[99.0] * 1000, sha256="bb"), *at(-9.0, sha256="cc")]
    found = Judged(copies, profile)
    assert np.allclose(found.q_values[[0, 1000, 2000]], [1, 3 / 25, 1])
    assert len(set(found.q_values[1000:2000])) == 1


@pytest.mark.parametrize(("count", "repeats"), [(0, 40), (12, 25)])
def test_clean_checkpoints_are_accused_as_rarely_as_accepted(count, repeats):
    rng, rates = np.random.default_rng(3), []
    levels = np.array([0.05, 0.1, 0.3, 0.6])
    for _ in range(repeats):
        profile = calibrate(fleet(rng, 39), fleet(rng, count, shift=1))
        p_values = Judged(fleet(rng, 60), profile).p_values
        rates.append((p_values[:, None] <= levels).mean(0))
    error = np.std(rates, axis=0, ddof=1) / repeats**0.5
    assert (np.mean(rates, axis=0) <= levels + 3 * error).all()
    # Not by saying nothing.
    assert (np.mean(rates, axis=0) >= levels - 0.025 - 3 * error).all()


def test_of_the_references_no_more_are_accused_than_accepted():
    rng = np.random.default_rng(4)
    clean = fleet(rng, 60, triggers=0)
    profile = calibrate(clean, fleet(rng, 20, shift=1, triggers=1))
    p_values = Judged(clean, profile, trigger_names=TRIGGER_NAMES).p_values
    assert sorted(p_values) == pytest.approx(np.arange(1, 61) / 60)


@pytest.mark.parametrize("count", [0, 20])
def test_backdoored_ones_are_found(count):
    rng = np.random.default_rng(5)
    profile = calibrate(fleet(rng, 64), fleet(rng, count, shift=3))
    records = [*fleet(rng, 30), *fleet(rng, 30, shift=3)]
    found = Judged(records, profile)
    accused = np.array(found.verdicts) == Verdict.SUSPECTED
    assert accused[30:].sum() >= 27
    assert accused[:30].sum() <= 4
    assert found.verdicts == Judged(records[::-1], profile).verdicts[::-1]


def test_the_power_is_measured_on_known_ones():
    # With 24 references, p <= 0.05 above the largest only.
    profile = line([float(k) for k in range(24)], [30, 31, 32, 22, np.nan])
    (reference,) = references(profile)
    assert reference.cohort == "line"
    assert reference.power == 0.6
    exact = stats.binomtest(3, 5).proportion_ci()
    assert reference.interval == pytest.approx((exact.low, exact.high))
    assert reference.suspects.tolist() == [30, 31, 32, 22]
    assert references(profile, 0.12)[0].power == 0.8
    assert not any(one.cohort.endswith(SEARCHED) for one in references(profile))
    assert Judged(at(0), profile).reasons == (
        "24 of 24 references score as high; judged alone at alpha 0.05, a backdoor of the known kinds would have been "
        "found in 60 % (15-95) of cases",
    )
    unmeasured = Judged(at(0), line([float(k) for k in range(24)]))
    assert unmeasured.reasons[0].endswith("power not measured: no backdoored references")
    assert np.isnan(references(line([1.0] * 24))[0].power)


def test_searched_ones_are_judged_by_their_search():
    rng = np.random.default_rng(6)
    guilty = fleet(rng, 20, shift=0.5, triggers=4)
    clean = [*fleet(rng, 40, triggers=0), *fleet(rng, 5)]
    profile = calibrate(clean, guilty)
    (new,) = fleet(rng, 1, shift=0.5, triggers=4)
    broken = with_triggers(with_hash(new, ""), [np.nan, 4.0])
    records = [
        new,
        with_triggers(with_hash(new, ""), None),
        broken,
        with_triggers(broken, np.full(2, np.nan)),
        clean[-1],
    ]
    records += [with_triggers(clean[-1], np.zeros(2)), clean[0]]
    found = Judged(records, profile, trigger_names=TRIGGER_NAMES, control=EACH)
    assert found.stages == ("search", "first", "first", "first", "first", "first", "search")
    assert found.verdicts[0] == Verdict.SUSPECTED
    assert found.p_values[1] == found.p_values[2] == found.p_values[3] > found.p_values[0] == 1 / 41
    assert found.reasons[2].startswith("its trigger search is incomplete, so it is judged without: ")
    assert found.p_values[4] == found.p_values[5]
    assert power(profile, searched=False) < 0.7 < power(profile, searched=True)
    assert [len(one.scores) for one in references(profile)] == [45, 40]


def test_few_searched_references_leave_the_weights_to_judge():
    rng = np.random.default_rng(7)
    profile = calibrate([*fleet(rng, 18, triggers=0), *fleet(rng, 10)])
    records = fleet(rng, 2, triggers=9)
    assert profile.cohorts["small"].triggers is not None
    assert Judged(records, profile, trigger_names=TRIGGER_NAMES).stages == ("first", "first")
    assert Judged(records, profile, trigger_names=TRIGGER_NAMES, alpha=0.1).stages == ("search", "search")


def test_an_undefined_feature_is_no_pass():
    profile = calibrate(fleet(np.random.default_rng(8), 30))
    values = ([9.0, np.nan, 9, 9], [np.nan] * 4, None, [np.inf, -np.inf, 1e308, -1e308])
    records = [record("small", "", value) for value in values]
    found = Judged(records, profile, control=EACH)
    assert found.verdicts == (*[Verdict.INCONCLUSIVE] * 3, Verdict.SUSPECTED)
    assert found.reasons[0] == "undefined in it: 1 of 4 features, such as 'b', which all references have"
    assert found.reasons[1] == found.reasons[2] == "nothing in it could be scored"
    assert np.isnan(found.q_values).tolist() == [True, True, True, False]
    assert found.stages[:3] == ("", "", "")


def test_without_references_nothing_is_said():
    rng = np.random.default_rng(9)
    profile = calibrate([*fleet(rng, 18), *fleet(rng, 30, cohort="large")])
    records = [record(cohort, "", np.zeros(4)) for cohort in ("small", "large", "unknown")]
    found = Judged(records, profile)
    assert found.verdicts == (Verdict.INCONCLUSIVE, Verdict.NO_EVIDENCE, Verdict.INCONCLUSIVE)
    assert found.reasons[0] == "its cohort has 18 references, at least 19 are needed at alpha 0.05"
    assert found.reasons[2] == "the reference profile has no checkpoints of its cohort"
    assert Judged(records[:1], profile, alpha=0.1).verdicts == (Verdict.NO_EVIDENCE,)
    other = Judged([with_look(records[1], "weights", "abce", np.zeros(4))], profile)
    assert other.reasons == ("the reference profile was made with other features; calibrate again with this version",)
    alone = Judged(records, None)
    assert set(alone.verdicts) == {Verdict.INCONCLUSIVE}
    assert alone.reasons[0] == "no reference profile: `jaxguard calibrate` makes one"
    assert np.isnan(alone.p_values).all()
    assert Judged([], profile).verdicts == ()


def test_a_fleet_unlike_its_references_is_told():
    profile = line([float(k) for k in range(24)])
    strangers, alike = at(*[99.0] * 6), at(*[-9.0] * 5)
    (note,) = Judged([*strangers, *alike], profile).notes
    assert note.startswith("line: 6 of 11 checkpoints are unlike the references.")
    assert Judged([*strangers, *alike, *at(-9.0)], profile).notes == ()
    assert Judged(strangers, profile).notes == ()


def test_searches_without_names_are_not_counted():
    rng = np.random.default_rng(10)
    profile = calibrate(fleet(rng, 30, triggers=0))
    records = fleet(rng, 1, triggers=9)
    assert Judged(records, profile).stages == ("first",)
    assert Judged(records, profile, trigger_names=TRIGGER_NAMES).stages == ("search",)
    (reason,) = Judged(records, profile, trigger_names=("success", "size")).reasons
    assert "made with other features" in reason
    with pytest.raises(DataError, match=r"expected 2 features, got \(3,\) for [0-9a-f]{64} of small"):
        Judged([with_triggers(records[0], np.ones(3))], profile, trigger_names=TRIGGER_NAMES)


@pytest.mark.parametrize("alpha", [0, 1, -0.1, float("nan")])
def test_an_error_rate_is_a_rate(alpha):
    with pytest.raises(DataError, match=r"expected alpha in \(0, 1\)"):
        judge([], None, alpha=alpha)


def test_an_unknown_control_is_refused():
    with pytest.raises(DataError, match="expected control of 'fdr' or 'each', got 'none'"):
        judge([], None, control="none")
