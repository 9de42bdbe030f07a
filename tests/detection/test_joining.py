"""The joint p-value is small for no larger a share of clean networks than each of the two, however they depend."""

import numpy as np
import pytest
from scipy import stats

from jaxguard.detection.joining import joined

DRAWS = 20_000


def pairs(dependence):
    """p-values of clean networks: each uniform by itself, or conformal by 39 references."""
    rng = np.random.default_rng(0)
    first = rng.random(DRAWS)
    if dependence == "independent":
        return first, rng.random(DRAWS)
    if dependence == "the same":
        return first, first
    if dependence == "opposite":
        return first, 1 - first
    if dependence == "never small together":
        return first, (first + 0.5) % 1
    normal = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], DRAWS)
    conformal = np.ceil(40 * stats.norm.cdf(normal)) / 40
    return conformal[:, 0], conformal[:, 1]


@pytest.mark.parametrize("dependence", ["independent", "the same", "opposite", "never small together", "correlated"])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_the_error_rate_holds_whatever_the_dependence(dependence, alpha):
    first, second = pairs(dependence)
    rate = np.mean([joined(*pair) <= alpha for pair in zip(first, second, strict=True)])
    assert rate <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / DRAWS)


@pytest.mark.parametrize("searched", [0.0, 0.02, 0.04, 0.3])
def test_it_holds_where_only_the_most_suspicious_are_searched(searched):
    for dependence in ("independent", "never small together", "opposite"):
        pairs_ = zip(*pairs(dependence), strict=True)
        rate = np.mean([joined(one, other if one <= searched else np.nan) <= 0.05 for one, other in pairs_])
        assert rate <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / DRAWS)


def test_a_rule_for_independent_p_values_would_not_hold():
    first, second = pairs("the same")
    fisher = stats.chi2.sf(-2 * (np.log(first) + np.log(second)), 4)
    assert np.mean(fisher <= 0.05) > 0.08
