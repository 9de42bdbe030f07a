"""Ownership in words: what is said is what the numbers say, and nobody is acquitted."""

import dataclasses
import math

import numpy as np
import pytest
from samples import HOSTILE, fingerprint_matrix, ownership, ownership_report

from jaxguard.conformal import needed_references, p_values
from jaxguard.errors import DataError
from jaxguard.report import marks, ownership_wording, wording


@pytest.mark.parametrize(
    ("verdict", "tone", "lead"),
    [
        ("copy suspected", "bad", "Copy of m.npz suspected"),
        ("no evidence", "open", "No evidence of a copy of m.npz"),
        ("inconclusive", "open", "Inconclusive: too few models independent of m.npz"),
        ("clean", "open", "Clean"),
    ],
)
def test_only_an_accusation_has_a_colour_of_its_own(verdict, tone, lead):
    one = dataclasses.replace(ownership(1, 0), owner="m.npz")
    found = dataclasses.replace(one.verifications[0], verdict=verdict)
    assert ownership_wording.verification_headline(one, found)[:2] == (tone, lead)
    assert ownership_wording.tone(verdict) == tone


def test_details_carry_rank_and_odds():
    one = dataclasses.replace(ownership(1, 0), references=np.arange(39.0))
    found = dataclasses.replace(one.verifications[0], score=50.0, p_value=1 / 40)
    assert ownership_wording.verification_headline(one, found).detail == (
        "ZEST score 50, higher than all 39 independent models; "
        "an independent model would score as high once in 40 times"
    )
    tied = dataclasses.replace(found, score=20.0, p_value=20 / 40, null_p_value=1e-12)
    assert ownership_wording.verification_headline(one, tied).detail == (
        "ZEST score 20, 19 of 39 independent models score as high; "
        "an independent model would score as high 50 times in 100; "
        "by the method’s own null distribution, chance would do so less than once in a million times"
    )
    alone = dataclasses.replace(one, references=np.zeros(0))
    assert ownership_wording.verification_headline(alone, found).detail == (
        "ZEST score 50, no independent model to compare with"
    )
    single = dataclasses.replace(one, references=np.zeros(1))
    assert "higher than the one independent model;" in ownership_wording.verification_headline(single, found).detail


def test_odds_never_make_a_p_value_smaller():
    for p in np.geomspace(1.1e-6, 1, 500):
        said = ownership_wording.odds(float(p))
        count, _, rest = said.replace(",", "").partition(" ")
        if count == "once":
            assert 1 / int(rest.split()[1]) >= p * (1 - 1e-9), said
        elif count != "always":
            assert int(count) / 100 >= p * (1 - 1e-9), said
    assert ownership_wording.odds(math.nan) == "undefined"


def test_p_values_are_short():
    shown = [ownership_wording.p_value(p) for p in (0.05, 1 / 3, 0.0, math.nan, None)]
    assert shown == ["0.05", "0.33", "<1e-300", "undefined", "–"]


@pytest.mark.parametrize("alpha", [0.2, 0.1, 0.05, 0.01, 1 / 3, 0.07])
@pytest.mark.parametrize("references", [0, 1, 4, 9, 18, 19, 20, 57, 99, 150])
def test_the_bar_is_where_the_p_value_reaches_alpha(alpha, references):
    known = np.random.default_rng(references).normal(size=references)
    one = dataclasses.replace(ownership(1, 0), references=known, alpha=alpha)
    assert ownership_wording.suffices(one) == (references >= needed_references(alpha))
    bar = ownership_wording.threshold(one)
    if not ownership_wording.suffices(one):
        assert math.isnan(bar)
        return
    at, beyond = p_values([bar, np.nextafter(bar, np.inf)], known)
    assert beyond <= alpha < at


def test_references_say_whether_they_suffice():
    one = dataclasses.replace(ownership(1, 0), references=np.arange(19.0))
    assert ownership_wording.references(one) == "19 independent models, scores 0 to 18: p ≤ 0.05 above 18"
    few = dataclasses.replace(one, references=np.arange(1.0))
    assert ownership_wording.references(few) == "1 independent model, score 0: too few for p ≤ 0.05"
    none = dataclasses.replace(one, references=np.zeros(0))
    assert ownership_wording.references(none) == "no independent models: too few for p ≤ 0.05"


def test_accusations_by_chance_are_told_where_they_can_happen():
    assert ownership_wording.accused_by_chance(ownership(20, 60)) == "about 4 of 80 suspects, were all independent"
    assert ownership_wording.accused_by_chance(ownership(1, 4)) == ""
    assert ownership_wording.accused_by_chance(ownership(20, 60, references=5)) == ""


def test_every_suspect_has_a_headline_where_they_are_few():
    one = ownership(3, 5)
    told = ownership_wording.headlines(ownership_report(one))
    assert [name for name, _ in told] == [found.suspect for found in one.verifications]


def test_of_many_suspects_the_accused_are_told_and_the_rest_counted():
    one = ownership(3, 40, seed=3)
    accused = [found.suspect for found in one.verifications if found.verdict == "copy suspected"]
    told = ownership_wording.headlines(ownership_report(one))
    assert [name for name, _ in told[:-1]] == accused
    assert told[-1][0] == "Copies of runs/owner.safetensors"
    assert told[-1][1][:2] == ("open", f"{43 - len(accused)} more suspects: no evidence")
    many = ownership_wording.headlines(ownership_report(ownership(20, 0)))
    assert len(many) == ownership_wording.MAX_HEADLINES + 1
    assert many[-1][1][:2] == ("bad", "12 more suspects: copy suspected")
    quiet = ownership_wording.headlines(ownership_report(ownership(0, 9, references=2)))
    assert [headline.lead for _, headline in quiet] == ["9 suspects: inconclusive"]


def test_best_suspects_leave_the_owner_out():
    matrix = dataclasses.replace(
        fingerprint_matrix(2, 3),
        owners=("zoo/a.npz", "zoo/b.npz"),
        suspects=("zoo/a.npz", "zoo/b.npz", "zoo/c.npz"),
        scores=np.array([[1.0, 0.25, np.nan], [0.5, 1.0, 0.75]]),
    )
    assert ownership_wording.best_suspects(matrix, 2) == [
        ("a.npz", [("b.npz", "0.250"), ("c.npz", "–")]),
        ("b.npz", [("c.npz", "0.750"), ("a.npz", "0.500")]),
    ]


def test_scores_that_do_not_fit_are_refused():
    wrong = dataclasses.replace(fingerprint_matrix(2, 3), scores=np.zeros((3, 2)))
    with pytest.raises(DataError, match=r"expected scores of shape \(2, 3\)"):
        ownership_wording.best_suspects(wrong, 1)


def test_aligned():
    assert ownership_wording.aligned([-0.0123, -0.0131]) == ["-0.012300", "-0.013100"]
    assert ownership_wording.aligned([12345.6, 0.0]) == ["12346", "0"]
    assert ownership_wording.aligned([0.0, 0.0, math.inf]) == ["0.00", "0.00", "–"]
    assert ownership_wording.aligned([0.5, 1.0], digits=2) == ["0.50", "1.00"]
    assert ownership_wording.aligned([]) == []


@pytest.mark.parametrize(
    ("names", "short"),
    [
        ([], []),
        (["runs/m.npz"], ["runs/m.npz"]),
        (["runs/a.npz", "runs/b.npz"], ["a.npz", "b.npz"]),
        (["runs/a/m.npz", "runs/b/m.npz"], ["a", "b"]),
        (["a/b", "a/b/c", "a"], ["a/b", "a/b/c", "a"]),
        (["/x/m", "https://h/x/m"], ["/x/m", "https://h/x/m"]),
        (["m", "m", "n/m"], ["m", "m", "n/m"]),
        (["", "x"], ["", "x"]),
    ],
)
def test_what_all_paths_share_is_left_out(names, short):
    assert wording.unshared(names) == short
    assert len(set(marks.distinct(names))) == len(set(names))


def test_long_names_that_differ_in_the_middle_are_numbered():
    names = [f"a-very-long-name-of-a-model-{k}-with-a-very-long-end-as-well.npz" for k in range(3)]
    assert marks.distinct(names) == [f"{k}: {marks.shorten(names[0])}" for k in (1, 2, 3)]
    assert all(name.isprintable() for name in marks.distinct([HOSTILE, f"{HOSTILE}2"]))
