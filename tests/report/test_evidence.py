"""What verdicts rest on is said as it was measured."""

import dataclasses
import math

import numpy as np
import pytest
from fleets import NAN, reference
from samples import HOSTILE, fingerprint_matrix, ownership, pruning_path, recovered, shapley_layers

from jaxguard.conformal import needed_references, p_values
from jaxguard.errors import DataError
from jaxguard.inversion import anomaly
from jaxguard.report import evidence
from jaxguard.types import Reference


def test_suspicion():
    found = dataclasses.replace(recovered(10, size=4), anomaly=np.array([4.65, *np.zeros(9)]))
    assert evidence.suspicion(found) == "class 0 suspected (L1 norm 5.80, anomaly index 4.65)"
    at_limit = dataclasses.replace(found, anomaly=np.array([evidence.FLAGGED_ANOMALY, *np.zeros(9)]))
    assert evidence.suspicion(at_limit).startswith("class 0 suspected, though not flagged (")
    nobody = dataclasses.replace(found, target=None, anomaly=np.array([-np.inf, np.nan, 1.5, np.inf, *np.zeros(6)]))
    assert evidence.suspicion(nobody) == "no class suspected (highest anomaly index 1.50, of class 2)"
    undefined = dataclasses.replace(nobody, anomaly=np.full(10, np.nan))
    assert evidence.suspicion(undefined) == "no class suspected (no anomaly index is defined)"
    named = dataclasses.replace(found, norms=np.array([5.8, *np.full(9, np.nan)]), anomaly=np.full(10, np.nan))
    assert evidence.suspicion(named) == "class 0 was named beforehand (L1 norm 5.80)"
    assert evidence.is_named(named) and not evidence.is_named(found) and not evidence.is_named(undefined)


def test_the_threshold_is_the_one_of_the_inversion():
    assert evidence.FLAGGED_ANOMALY == anomaly.FLAGGED


def test_cuts_kept():
    path = pruning_path(shapley_layers())
    assert evidence.cuts_kept(path) == "9 of 14 cuts kept (the recovered trigger turns few images)"
    assert evidence.cuts_kept(dataclasses.replace(path, chosen=0, stop="")) == "0 of 14 cuts kept"
    assert evidence.cuts_kept(pruning_path(shapley_layers(), tried=0, chosen=0)).startswith("no channel cut (")
    assert evidence.cuts_kept(dataclasses.replace(path, stop=HOSTILE)).isprintable()


def test_power_comes_with_its_interval():
    assert evidence.reference(reference("cnn")) == (
        "compared with 64 clean references; 87.5 % of 32 backdoored ones would be suspected "
        "(95 % interval 72.0 to 95.0 %)"
    )  # fmt: skip
    unknown = Reference("cnn", reference("cnn").scores, np.zeros(0), NAN, (NAN, NAN))
    assert evidence.reference(unknown).endswith("how many backdoored networks would be suspected was not measured")
    assert "62.5 to 87.5 %, by cohort," in evidence.power([
        reference("cnn"), dataclasses.replace(reference("vgg"), power=0.625), unknown,
    ])  # fmt: skip


def test_comparisons_carry_rank_and_odds():
    one = dataclasses.replace(ownership(1, 0), references=np.arange(39.0))
    found = dataclasses.replace(one.verifications[0], score=50.0, p_value=1 / 40)
    assert evidence.comparison(one, found) == (
        "ZEST score 50, higher than all 39 independent models; "
        "an independent model would score as high 1 time in 40"
    )  # fmt: skip
    tied = dataclasses.replace(found, score=20.0, p_value=20 / 40, null_p_value=1e-12)
    assert evidence.comparison(one, tied) == (
        "ZEST score 20, 19 of 39 independent models score as high; "
        "an independent model would score as high 50 times in 100; "
        "by the method’s own null distribution, chance would do so less than 1 time in a million"
    )
    alone = dataclasses.replace(one, references=np.zeros(0))
    assert evidence.comparison(alone, found) == "ZEST score 50, no independent model to compare with"
    single = dataclasses.replace(one, references=np.zeros(1))
    assert "higher than the one independent model;" in evidence.comparison(single, found)


@pytest.mark.parametrize("alpha", [0.2, 0.1, 0.05, 0.01, 1 / 3, 0.07])
@pytest.mark.parametrize("references", [0, 1, 4, 9, 18, 19, 20, 57, 99, 150])
def test_the_bar_is_where_the_p_value_reaches_alpha(alpha, references):
    known = np.random.default_rng(references).normal(size=references)
    one = dataclasses.replace(ownership(1, 0), references=known, alpha=alpha)
    assert evidence.suffices(one) == (references >= needed_references(alpha))
    bar = evidence.threshold(one)
    if not evidence.suffices(one):
        assert math.isnan(bar)
        return
    at, beyond = p_values([bar, np.nextafter(bar, np.inf)], known)
    assert beyond <= alpha < at


def test_references_say_whether_they_suffice():
    one = dataclasses.replace(ownership(1, 0), references=np.arange(19.0))
    assert evidence.references(one) == "19 independent models, scores 0 to 18: p ≤ 0.05 above 18"
    few = dataclasses.replace(one, references=np.arange(1.0))
    assert evidence.references(few) == "1 independent model, score 0: too few for p ≤ 0.05"
    none = dataclasses.replace(one, references=np.zeros(0))
    assert evidence.references(none) == "no independent models: too few for p ≤ 0.05"


def test_accusations_by_chance_are_counted_where_they_can_happen():
    assert evidence.accused_by_chance(ownership(20, 60)) == "about 4 of 80 suspects, were all independent"
    assert evidence.accused_by_chance(ownership(1, 4)) == ""
    assert evidence.accused_by_chance(ownership(20, 60, references=5)) == ""


def test_best_suspects_leave_the_owner_out():
    matrix = dataclasses.replace(
        fingerprint_matrix(2, 3),
        owners=("zoo/a.npz", "zoo/b.npz"),
        suspects=("zoo/a.npz", "zoo/b.npz", "zoo/c.npz"),
        scores=np.array([[1.0, 0.25, np.nan], [0.5, 1.0, 0.75]]),
    )
    assert evidence.best_suspects(matrix, 2) == [
        ("a.npz", [("b.npz", "0.250"), ("c.npz", "–")]),
        ("b.npz", [("c.npz", "0.750"), ("a.npz", "0.500")]),
    ]


def test_scores_that_do_not_fit_are_refused():
    wrong = dataclasses.replace(fingerprint_matrix(2, 3), scores=np.zeros((3, 2)))
    with pytest.raises(DataError, match=r"expected scores of shape \(2, 3\)"):
        evidence.best_suspects(wrong, 1)
