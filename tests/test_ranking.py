"""Rates by hand, AUC against scipy's U statistic, thresholds against the p-values they stand for."""

import pathlib
import sys

import numpy as np
import pytest
from scipy import stats

from jaxguard import conformal
from jaxguard.errors import DataError

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "experiments"))
import ranking

RNG = np.random.default_rng(0)


def test_auc_is_the_u_statistic_and_its_interval_holds_it():
    copies, independents = RNG.normal(1, 1, 12), RNG.normal(0, 1, 20)
    found = ranking.roc_auc(copies, independents)
    assert found.value == pytest.approx(stats.mannwhitneyu(copies, independents).statistic / 240)
    assert 0 < found.low < found.value < found.high < 1


def test_auc_s_interval_covers_the_truth():
    truth = stats.norm.cdf(1 / np.sqrt(2))
    inside = 0
    for k in range(200):
        found = ranking.roc_auc(RNG.normal(1, 1, 25), RNG.normal(0, 1, 25), seed=k)
        inside += found.low <= truth <= found.high
    assert inside >= 180


@pytest.mark.parametrize(("count", "alpha"), [(19, 0.05), (39, 0.05), (40, 0.05), (9, 0.3), (18, 0.05)])
def test_the_threshold_is_where_the_p_value_is_alpha(count, alpha):
    references = RNG.normal(size=count)
    threshold = ranking.calibrated_threshold(references, alpha)
    scores = np.concatenate([references, references + 1e-9, [10.0]])
    accused = scores >= threshold
    assert accused.tolist() == (conformal.p_values(scores, references) <= alpha).tolist()


def test_rates_and_f1_by_hand():
    copies, independents = [0.9, 0.8, 0.4], [0.5, 0.3, 0.2, 0.1]
    assert ranking.tpr_at_fpr(copies, independents, 0.0).value == pytest.approx(2 / 3)
    assert ranking.tpr_at_fpr(copies, independents, 0.25).value == 1.0
    assert ranking.f1(copies, independents, 0.45) == pytest.approx(2 / 3)
    assert ranking.f1(copies, independents, 2.0) == 0.0
    none = ranking.rate_above(independents, 0.6)
    assert none.value == none.low == 0.0
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 4))


def test_what_is_refused():
    with pytest.raises(DataError, match="got 0 and 1"):
        ranking.roc_auc([], [1.0])
    with pytest.raises(DataError, match="1 of them NaN"):
        ranking.tpr_at_fpr([np.nan], [1.0])
