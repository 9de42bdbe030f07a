"""Scores from features: against the closed forms, and whatever the features are."""

import numpy as np
import pytest
from scipy.spatial import distance
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from jaxguard.detection import combination
from jaxguard.detection.combination import FITTED, LIMIT, ONE_CLASS, Combination
from jaxguard.errors import DataError

RNG = np.random.default_rng(0)
ALL = np.ones(4, bool)


def test_a_fitted_score_is_a_weighted_sum():
    one = Combination(FITTED, ALL, np.array([1.0, 0, 0, 0]), np.array([2.0, 1, 1, 1]), np.array([[3.0, 0, -1, 0]]), 0.5)
    # 3 * (5 - 1) / 2 - 1 * 2 + 0.5, and infinities at LIMIT.
    assert one.score(np.array([[5.0, 9, 2, 9], [np.inf, 0, 0, 0]])).tolist() == [4.5, 3 * LIMIT + 0.5]


def test_fitted_tells_apart_what_differs():
    shift = np.array([0, 2.5, 0, 0])
    one = combination.fit(RNG.normal(size=(50, 4)), RNG.normal(size=(30, 4)) + shift, ALL)
    scores = one.score(np.concatenate([RNG.normal(size=(200, 4)), RNG.normal(size=(200, 4)) + shift]))
    assert roc_auc_score(np.repeat([0, 1], 200), scores) > 0.93
    assert one.kind == FITTED
    assert np.abs(one.coefficients[0]).argmax() == 1


def test_fitted_minimises_the_balanced_penalised_likelihood():
    clean, guilty = RNG.normal(size=(40, 4)), RNG.normal(size=(12, 4)) + 1
    one = combination.fit(clean, guilty, ALL)
    rows = (np.concatenate([clean, guilty]) - clean.mean(0)) / clean.std(0)
    truth = np.repeat([0.0, 1.0], [40, 12])
    weight = np.repeat([52 / 80, 52 / 24], [40, 12])
    slope = weight * (1 / (1 + np.exp(-rows @ one.coefficients[0] - one.intercept)) - truth)
    assert np.abs(slope @ rows + one.coefficients[0] / combination.STRENGTH).max() < 1e-3
    assert abs(slope.sum()) < 1e-3


@pytest.mark.parametrize(("count", "width"), [(60, 5), (19, 200), (12, 1), (30, 30)])
def test_one_class_is_the_shrunk_mahalanobis_distance(count, width):
    clean = RNG.normal(size=(count, width)) @ RNG.normal(size=(width, width)) + 7
    one = combination.fit_one_class(clean, np.ones(width, bool))
    new = clean.mean(0) + clean.std(0) * RNG.normal(size=(5, width))
    rows = (clean - clean.mean(0)) / clean.std(0)
    inverse = np.linalg.inv(LedoitWolf(assume_centered=True).fit(rows).covariance_)
    expected = [
        distance.mahalanobis(row, np.zeros(width), inverse) / width**0.5 for row in (new - clean.mean(0)) / clean.std(0)
    ]
    assert one.kind == ONE_CLASS
    assert len(one.coefficients) <= min(count, width)
    assert np.allclose(one.score(new), expected, rtol=1e-6)


def test_one_class_survives_copies_of_a_feature():
    clean = np.repeat(RNG.normal(size=(25, 2)), 2, axis=1)
    one = combination.fit_one_class(clean, ALL)
    near, far = one.score(np.array([[0.0, 0, 0, 0], [5, 5, -5, -5]]))
    assert 0 <= near < 1.5 < far < LIMIT


@pytest.fixture(params=[FITTED, ONE_CLASS])
def learned(request) -> Combination:
    clean = RNG.normal(size=(30, 4))
    return combination.fit(clean, clean + 2, ALL) if request.param == FITTED else combination.fit_one_class(clean, ALL)


def test_extremes_do_not_overflow(learned):
    extreme = np.array([[1e308, -1e308, np.inf, 1e308], [-np.inf, 0, 0, 0], [3e38, 3e38, 3e38, 3e38]])
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(learned.score(extreme)).all()


def test_an_undefined_feature_gives_no_score(learned):
    assert np.isnan(learned.score(np.array([[0, np.nan, 0, 0], [0.0, 0, 0, 0]]))).tolist() == [True, False]


@pytest.mark.parametrize("kind", [FITTED, ONE_CLASS])
def test_unusable_and_constant_features_are_never_looked_at(kind):
    clean = RNG.normal(size=(30, 4))
    clean[:, 1], clean[:, 2] = 1e3 + 1e-6 * clean[:, 1], np.nan
    usable = np.array([True, True, False, True])
    one = combination.fit(clean, clean + 2, usable) if kind == FITTED else combination.fit_one_class(clean, usable)
    assert one.usable.tolist() == [True, False, False, True]
    assert np.isfinite(one.score(np.array([[0.0, np.nan, np.nan, 0.0]]))).all()


def test_huge_references_are_dropped():
    clean = RNG.normal(size=(30, 4))
    clean[:, 0] *= 1e300
    assert combination.fit_one_class(clean, ALL).usable.tolist() == [False, True, True, True]


def test_incomplete_backdoored_ones_are_left_out():
    clean = RNG.normal(size=(30, 4))
    guilty = RNG.normal(size=(12, 4)) + 1
    broken = np.full((3, 4), np.nan)
    with_broken = combination.fit(clean, np.concatenate([guilty, broken]), ALL)
    assert np.array_equal(with_broken.coefficients, combination.fit(clean, guilty, ALL).coefficients)
    with pytest.raises(DataError, match="got none among 3"):
        combination.fit(clean, broken, ALL)


def test_copies_of_one_checkpoint_are_no_references():
    with pytest.raises(DataError, match="got 4 constant ones of 20 references"):
        combination.fit_one_class(np.ones((20, 4)), ALL)
