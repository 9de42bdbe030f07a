"""Two stages, one error rate: by counting, and by simulation whoever chooses who is searched."""

import numpy as np
import pytest
from references import TRIGGER_NAMES, Judged, fleet, power, record, triggers_of, weights_of, with_triggers, with_weights

from jaxguard.detection.calibration import calibrate
from jaxguard.detection.combination import FITTED, Combination
from jaxguard.detection.judging import EACH, SEARCHED, references
from jaxguard.detection.profile import CohortProfile, Profile, ReferenceScores, Stage
from jaxguard.detection.records import Record
from jaxguard.types import Verdict

NAMED = {"trigger_names": TRIGGER_NAMES}
LEVELS = np.array([0.05, 0.1, 0.3, 0.6])


def line(first: list[float], search: list[float], backdoored: list[tuple[float, float]] = ()) -> Profile:
    """One feature for each look, one fold: the scores are the features."""
    combinations = [
        (Combination(FITTED, np.eye(n, dtype=bool)[-1], np.zeros(1), np.full(1, 100.0), np.full((1, 1), 100.0)),)
        for n in (1, 2)
    ]

    def scored(name: str, values) -> ReferenceScores:
        return ReferenceScores(
            tuple(f"{name}{k:02}" for k in range(len(values))), np.zeros(len(values), int), np.array(values)
        )

    bad = np.array(backdoored, float).reshape(-1, 2)
    stages = [
        Stage(names, combination, scored("c", clean), scored("b", guilty))
        for names, combination, clean, guilty in zip(
            (("x",), ("first score", "y")), combinations, (first, search), bad.T, strict=True
        )
    ]
    return Profile({"line": CohortProfile("line", ("weights",), *stages)})


def at(x: float, y: float | None = None, sha256: str = "") -> Record:
    return record("line", sha256, [x], None if y is None else [y], names=("x",), trigger_names=("y",))


def judged(records, profile, **more):
    return Judged(records, profile, trigger_names=("y",), **more)


# Twenty references: by weights 0 to 19, mean 9.5, by the search the same backwards and times ten. In units of weights,
# seen from the mean, a reference k counts by the higher one of k - 9.5 and 9.5 - k - SPREAD, which is 3.73 - k: the
# first by 3.73, then 2.73, 1.73, 0.73, -0.27, -1.27, -2.27, -2.5, -1.5, -0.5, 0.5, ..., 9.5.
RISING, FALLING = [float(k) for k in range(20)], [190.0 - 10 * k for k in range(20)]
SPREAD = (399 / 12) ** 0.5  # the standard deviation of 0 to 19


def test_the_higher_of_both_looks_counts_for_references_and_suspects_alike():
    profile = line(RISING, FALLING)
    found = judged([at(20), at(18.2), at(9.5), at(0), at(0, 200), at(18.2, 0), at(9.5, 182)], profile)
    seen = [10.5, 8.7, 0, -9.5, 10.5 - SPREAD, 8.7, 8.7 - SPREAD]
    assert np.allclose(found.scores * SPREAD, seen)
    # Above 0 are 14 to 19 and 10 to 13 and 0 to 3; above 4.73 are 15 to 19; above 2.93 are 13 to 19 and 0.
    assert np.allclose(found.p_values * 21, [1, 2, 15, 21, 6, 2, 9])
    assert found.stages == (*["first"] * 4, *["search"] * 3)
    # Where nobody is searched, by the weights alone.
    alone = Judged([at(8.5), at(8.5, 999.0)], profile)
    assert np.allclose(alone.p_values * 21, [12, 12])


def test_a_reference_is_compared_with_the_others_by_what_was_seen_of_it():
    profile = line(RISING, FALLING, [(25, 30), (5, 195)])
    records = [at(0, sha256="c00"), at(0, 190, sha256="c00"), at(5, sha256="b01"), at(5, 195, sha256="b01")]
    found = judged(records, profile)
    # By its weights c00 is the lowest; with the search only 14 to 19 are above its 3.73, and above the 4.23 of b01.
    assert np.allclose(found.p_values, [20 / 20, 7 / 20, 21 / 21, 7 / 21])
    assert found.reasons[1].startswith("it is one of the references, compared with the others: 6 of 19 references")


def test_the_power_of_each_look_is_told():
    profile = line(RISING, FALLING, [(25, 30), (5, 255), (9, 120), (5, 260)])
    assert [power(profile, searched=searched) for searched in (False, True)] == [0.25, 0.75]
    assert references(profile)[0].power == 0.25
    for search, says in ((None, "25 %"), (90, "75 %")):
        (reason,) = judged([at(9, search)], profile).reasons
        assert says in reason
    assert [one.cohort for one in references(profile)] == ["line", "line" + SEARCHED]
    assert [len(one.scores) for one in references(profile)] == [20, 20]


def test_nineteen_references_are_enough_for_either_look():
    rng = np.random.default_rng(0)
    profile = calibrate(fleet(rng, 19, triggers=0))
    (new,) = fleet(rng, 1, triggers=0)
    by_weights = with_triggers(with_weights(new, np.full(4, 9.0)), None)
    by_search = with_triggers(new, np.full(2, 90.0))
    found = Judged([by_weights, by_search], profile, **NAMED, control=EACH)
    assert found.p_values.tolist() == [1 / 20, 1 / 20]
    assert set(found.verdicts) == {Verdict.SUSPECTED}


def test_a_search_never_acquits():
    rng = np.random.default_rng(1)
    for guilty in (0, 20):
        profile = calibrate(fleet(rng, 40, triggers=0), fleet(rng, guilty, shift=1, triggers=2))
        records = [*fleet(rng, 40, triggers=0), *fleet(rng, 40, shift=2, triggers=-3), *fleet(rng, 40, triggers=3)]
        before = Judged([with_triggers(one, None) for one in records], profile, **NAMED)
        after = Judged(records, profile, **NAMED)
        assert (after.p_values <= before.p_values).all()
        assert (after.p_values < before.p_values).mean() > 0.2
        failed = Judged([with_triggers(one, np.full(2, np.nan)) for one in records], profile, **NAMED)
        assert failed.p_values.tolist() == before.p_values.tolist()


def hidden(rng, count, *, shift=0.0, triggers=0.0):
    """Checkpoints whose two looks see the same thing in part."""
    return [
        with_triggers(with_weights(one, weights_of(one) + common), triggers_of(one) + common)
        for one, common in zip(fleet(rng, count, shift=shift, triggers=triggers), rng.normal(size=count), strict=True)
    ]


@pytest.mark.parametrize(("clean", "guilty", "repeats"), [(19, 0, 60), (39, 12, 25)])
def test_whoever_chooses_who_is_searched_clean_ones_are_accused_as_rarely_as_accepted(clean, guilty, repeats):
    rng = np.random.default_rng(2)
    choices = {
        "those not suspected, the nearest first": lambda before, after: np.argsort(np.argsort(before)) < 30,
        "whoever looks worse for it": lambda before, after: after < before,
    }
    rates = {name: [] for name in ("none", "all", *choices)}
    for _ in range(repeats):
        profile = calibrate(hidden(rng, clean), hidden(rng, guilty, shift=1, triggers=1))
        records = hidden(rng, 60)
        unsearched = [with_triggers(one, None) for one in records]
        before, after = (Judged(one, profile, **NAMED).p_values for one in (unsearched, records))
        found = {"none": before, "all": after}
        for name, chosen_fn in choices.items():
            chosen = chosen_fn(before, after)
            mixed = [
                one if is_chosen else other for one, other, is_chosen in zip(records, unsearched, chosen, strict=True)
            ]
            found[name] = Judged(mixed, profile, **NAMED).p_values
        for name, p_values in found.items():
            rates[name].append((p_values[:, None] <= LEVELS[None] + 1e-12).mean(0))
    for name, rate in rates.items():
        error = np.std(rate, axis=0, ddof=1) / repeats**0.5
        assert (np.mean(rate, axis=0) <= LEVELS + 3 * error).all(), name
        if name in ("all", "whoever looks worse for it"):  # and not by saying nothing
            assert (np.mean(rate, axis=0) >= LEVELS - 1 / (clean + 1) - 3 * error).all(), name


def test_among_many_the_share_of_clean_ones_among_the_suspected_is_as_accepted():
    rng, shares, found = np.random.default_rng(3), [], []
    for _ in range(20):
        profile = calibrate(hidden(rng, 99), hidden(rng, 20, shift=2, triggers=6))
        records = [*hidden(rng, 80), *hidden(rng, 20, shift=2, triggers=6)]
        unsearched = [with_triggers(one, None) for one in records]
        before, after = (Judged(one, profile, **NAMED).p_values for one in (unsearched, records))
        # All clean ones that look worse for it, and half of the others.
        chosen = (after < before) & ((np.arange(100) < 80) | (np.arange(100) % 2 == 0))
        mixed = [one if is_chosen else other for one, other, is_chosen in zip(records, unsearched, chosen, strict=True)]
        suspected = np.array(Judged(mixed, profile, **NAMED, alpha=0.1).verdicts) == Verdict.SUSPECTED
        shares.append(suspected[:80].sum() / max(suspected.sum(), 1))
        found.append(suspected[80:].mean())
    assert np.mean(shares) <= 0.1 + 3 * np.std(shares, ddof=1) / 20**0.5
    assert np.mean(found) > 0.3
