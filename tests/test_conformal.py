"""Conformal p-values against counting by hand, their error rate alone and among many, and the references they need."""

import numpy as np
import pytest
from scipy import stats

from jaxguard import conformal
from jaxguard.errors import DataError


def test_p_values_count_references_as_high_and_the_suspect_itself():
    references = np.array([3.0, 1.0, 2.0, 2.0])
    assert conformal.p_values([0.0, 1.0, 2.0, 2.5, 9.0], references).tolist() == [1.0, 1.0, 0.8, 0.4, 0.2]


def test_without_references_nothing_is_said():
    assert conformal.p_values([5.0], []).tolist() == [1.0]


def test_innocent_suspects_are_accused_as_often_as_accepted():
    rng = np.random.default_rng(0)
    accused = sum(conformal.p_values(rng.gamma(2, size=1), rng.gamma(2, size=19))[0] <= 0.05 for _ in range(4000))
    assert stats.binomtest(accused, 4000, 0.05).pvalue > 0.01


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.03, 33), (0.5, 1)])
def test_fewest_references(alpha, needed):
    assert conformal.needed_references(alpha) == needed
    assert conformal.p_values([1.0], np.zeros(needed))[0] <= alpha < conformal.p_values([1.0], np.zeros(needed - 1))[0]


@pytest.mark.parametrize(
    ("scores", "references", "name"), [([np.nan], [1.0], "scores"), ([1.0], [np.nan], "references")]
)
def test_no_number_is_no_evidence(scores, references, name):
    with pytest.raises(DataError, match=f"expected {name} that are numbers, got 1 NaN"):
        conformal.p_values(scores, references)


def test_adjusted_p_values_are_those_of_benjamini_and_hochberg():
    # p * n / rank, made monotone from the largest down: 0.05, 0.0525 -> 0.0525, 0.065 -> 0.0525, 0.0525, 0.9.
    given = np.array([0.9, 0.01, 0.039, 0.021, 0.042])
    assert np.allclose(conformal.adjusted_p_values(given), [0.9, 0.05, 0.0525, 0.0525, 0.0525])


def test_what_was_not_judged_does_not_count():
    assert np.array_equal(
        conformal.adjusted_p_values([np.nan, 0.02, np.nan, 0.04]), [np.nan, 0.04, np.nan, 0.04], equal_nan=True
    )
    assert conformal.adjusted_p_values([]).shape == (0,)
    assert np.isnan(conformal.adjusted_p_values([np.nan])).all()


def test_false_discoveries_are_as_rare_as_accepted():
    rng, shares = np.random.default_rng(1), []
    for _ in range(400):
        references, is_innocent = rng.normal(size=1999), np.arange(100) < 80
        found = conformal.p_values(rng.normal(size=100) + 3 * ~is_innocent, references)
        accused = conformal.adjusted_p_values(found) <= 0.1
        shares.append((accused & is_innocent).sum() / max(accused.sum(), 1))
        assert (accused & ~is_innocent).any()
    # Expected: 0.1 times the share of the innocent.
    assert abs(np.mean(shares) - 0.08) < 4 * np.std(shares) / 20


def test_a_score_is_no_p_value():
    with pytest.raises(DataError, match=r"expected p-values in \[0, 1\], got -1 to 2.5"):
        conformal.adjusted_p_values([-1, np.nan, 2.5])


def test_power_has_the_exact_interval():
    found, (low, high) = conformal.power([0.05, 0.01, np.nan, 0.06, *[0.001] * 6], alpha=0.05)
    assert found == 0.8
    # Clopper and Pearson by the beta distribution.
    assert np.allclose([low, high], [stats.beta.ppf(0.025, 8, 3), stats.beta.ppf(0.975, 9, 2)])
    nothing, interval = conformal.power([], alpha=0.05)
    assert np.isnan(nothing)
    assert interval == (0, 1)


def gaps(rng, number):
    """Of five kinds of triggers: dependent, each with a unit and a tail of its own, and a fifth of the last missing."""
    common = rng.normal(size=(number, 1))
    drawn = -stats.norm.logsf(0.8 * rng.normal(size=(number, 5)) + 0.6 * common)
    drawn = drawn ** np.array([1, 0.7, 1.3, 1.6, 1]) * np.array([1, 0.01, 10, 1, 100])
    drawn[:, 4] = np.where(rng.random(number) < 0.2, np.nan, drawn[:, 4])
    return drawn


def test_joined_kinds_err_as_often_as_accepted():
    rng = np.random.default_rng(0)
    pools = [gaps(rng, 40) for _ in range(800)]
    found = np.array([conformal.joined(pool[0], pool[1:])[0] for pool in pools if not np.isnan(pool[0, 4])])
    for alpha in (0.05, 0.2):
        assert stats.binomtest(int((found <= alpha).sum()), len(found), alpha, alternative="greater").pvalue > 0.01


def test_joining_kinds_costs_far_less_than_the_smallest_of_their_p_values():
    """A suspect that stands out by the first of four kinds, among 59 references."""
    rng, accused = np.random.default_rng(1), np.zeros(3)
    for _ in range(200):
        pool = gaps(rng, 60)[:, :4]
        suspect, references = pool[0] + [8, 0, 0, 0], pool[1:]
        alone = np.array([conformal.p_values(suspect[[k]], references[:, k])[0] for k in range(4)])
        found = conformal.joined(suspect, references)[0], alone[0], 4 * alone.min()
        accused += np.array(found) <= 0.05
    joined, first, bonferroni = accused / 200
    assert first > 0.98 and joined > 0.7
    assert bonferroni == 0  # four times 1/60: no network can be accused


def test_one_kind_joined_is_its_p_value_and_kinds_without_scores_do_not_count():
    references = np.array([[3.0], [1.0], [2.0], [2.0]])
    for score in (0.0, 1.0, 2.0, 2.5, 9.0):
        assert conformal.joined([score], references)[0] == conformal.p_values([score], references.ravel())[0]
    more = np.concatenate([references, np.full((4, 1), 7.0)], axis=1)
    p_value, heights = conformal.joined([2.5, np.nan], np.concatenate([more, [[np.nan, 9.0]]]))
    assert p_value == 0.4 and heights[0] > 0 and np.isnan(heights[1])
    p_value, heights = conformal.joined([np.nan], references)
    assert np.isnan(p_value) and np.isnan(heights).all()
    assert conformal.joined([1.0], np.zeros((0, 1)))[0] == 1.0
    assert conformal.joined([0.0, 5.0], np.zeros((9, 2)))[0] == 0.1  # no spread at all: the one that differs
