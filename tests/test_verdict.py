"""Conformal p-values against counting by hand, their error rate, and how many references they need."""

import numpy as np
import pytest
from scipy import stats

from jaxguard import verdict
from jaxguard.errors import DataError


def test_p_values_count_references_as_high_and_the_suspect_itself():
    references = np.array([3.0, 1.0, 2.0, 2.0])
    assert verdict.p_values([0.0, 1.0, 2.0, 2.5, 9.0], references).tolist() == [1.0, 1.0, 0.8, 0.4, 0.2]


def test_without_references_nothing_is_said():
    assert verdict.p_values([5.0], []).tolist() == [1.0]


def test_innocent_suspects_are_accused_as_often_as_accepted():
    rng = np.random.default_rng(0)
    accused = sum(verdict.p_values(rng.gamma(2, size=1), rng.gamma(2, size=19))[0] <= 0.05 for _ in range(4000))
    assert stats.binomtest(accused, 4000, 0.05).pvalue > 0.01


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.03, 33), (0.5, 1)])
def test_fewest_references(alpha, needed):
    assert verdict.needed_references(alpha) == needed
    assert verdict.p_values([1.0], np.zeros(needed))[0] <= alpha < verdict.p_values([1.0], np.zeros(needed - 1))[0]


@pytest.mark.parametrize(
    ("scores", "references", "name"), [([np.nan], [1.0], "scores"), ([1.0], [np.nan], "references")]
)
def test_no_number_is_no_evidence(scores, references, name):
    with pytest.raises(DataError, match=f"expected {name} that are numbers, came 1 NaN"):
        verdict.p_values(scores, references)
