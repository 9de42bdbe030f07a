"""Profiles, their similarity and the self-null test against NumPy, scipy and what must not matter."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxguard.fingerprints import hinge_statistics

N, T, M = 30, 25, 4


def answers(seed=0, *shape):
    return np.random.default_rng(seed).normal(size=shape or (N, T, M)).astype(np.float32)


def profiles(array):
    return hinge_statistics.profiles(jnp.asarray(array), T)


def similarity(owner, suspect, statistic=hinge_statistics.profile_similarity):
    return float(statistic(profiles(owner), profiles(suspect)[None])[0])


def test_whole_deltas_are_asked_for():
    asked = hinge_statistics.offsets(T, controls=True)
    assert len(asked) == T + 2 and len(np.unique(asked)) == T + 2
    for whole in range(-4, 5):
        assert np.abs(asked - whole).min() < 1e-12
    assert (hinge_statistics.offsets(T, controls=False) == asked[:T]).all()


def test_profiles_are_residuals_of_a_straight_line():
    given, t = answers(), np.linspace(-3, 3, T)
    for probe in range(3):
        fits = np.polyfit(t, given[probe], 1)
        expected = given[probe] - (fits[0] * t[:, None] + fits[1])
        np.testing.assert_allclose(profiles(given)[probe], expected, atol=1e-5)


def test_constants_trends_and_a_positive_factor_do_not_count():
    given, t = answers(), np.linspace(-3, 3, T)[:, None]
    assert similarity(given, given) == pytest.approx(1, abs=1e-5)
    assert similarity(given, given + 100) == pytest.approx(1, abs=1e-5)
    assert similarity(given, 3 * given + 7 * t) == pytest.approx(1, abs=1e-5)
    assert similarity(given, 1e-20 * given) == pytest.approx(1, abs=1e-5)
    assert similarity(given, -given) == pytest.approx(-1, abs=1e-5)


def test_similarity_is_the_mean_cosine():
    one, other = answers(1), answers(2)
    rows = [np.asarray(profiles(array), np.float64).reshape(N, -1) for array in (one, other)]
    cosines = (rows[0] * rows[1]).sum(1) / np.linalg.norm(rows[0], axis=1) / np.linalg.norm(rows[1], axis=1)
    assert similarity(one, other) == pytest.approx(cosines.mean(), abs=1e-6)
    assert abs(similarity(one, other)) < 0.2


def test_models_that_answer_linearly_agree_with_nothing():
    flat = np.zeros((N, T, M), np.float32)
    for statistic in (hinge_statistics.profile_similarity, hinge_statistics.profile_cka):
        assert similarity(answers(), flat, statistic) == 0
        assert similarity(flat, flat, statistic) == 0


def test_cka_is_numpys_and_takes_other_widths():
    one, wide = answers(1), answers(2, N, T, 7)
    x, y = (np.asarray(profiles(array), np.float64).reshape(N * T, -1) for array in (one, wide))
    expected = np.linalg.norm(x.T @ y) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    assert similarity(one, wide, hinge_statistics.profile_cka) == pytest.approx(expected, rel=1e-4)


def test_cka_does_not_change_with_a_rotation_and_scale_of_the_outputs():
    one, other = answers(1), answers(2)
    rotation, _ = np.linalg.qr(answers(3, M, M))
    before, after = (similarity(one, each, hinge_statistics.profile_cka) for each in (other, 5 * other @ rotation))
    assert after == pytest.approx(before, rel=1e-4)
    assert similarity(one, one @ rotation, hinge_statistics.profile_cka) == pytest.approx(1, abs=1e-4)


def test_second_differences_of_a_parabola_and_of_a_hinge():
    t = hinge_statistics.offsets(T, controls=True)
    both = np.stack([3 * t**2, 5 * np.maximum(t - 2, 0)], axis=1)
    for at, expected in ((0, (6, 0)), (2, (6, 5)), (3, (6, 0)), (-3, (6, 0))):
        found = hinge_statistics.second_differences(both[None], T, at)
        assert found[0] == pytest.approx(np.hypot(*expected))


def test_self_null_is_scipys_wilcoxon_test_over_hinges():
    given = answers(5, 2, N, T + 2, M)
    t = hinge_statistics.offsets(T, controls=True)
    given[1, :, :, 0] += 4 * np.abs(t)
    found = hinge_statistics.self_null(given, T)

    def bend(model, at):
        low, middle, high = (
            given[model][:, np.flatnonzero(np.isclose(t, k))[0]].astype(float) for k in (at - 1, at, at + 1)
        )
        return np.linalg.norm(low - 2 * middle + high, axis=-1)

    for model in range(2):
        beside = np.mean([bend(model, at) for at in (-3, -2, 2, 3)], axis=0)
        expected = stats.wilcoxon(bend(model, 0), beside, alternative="greater").pvalue
        assert found[model] == pytest.approx(expected, rel=1e-9)
    assert found[0] > 0.01
    assert found[1] < 1e-5


def test_a_model_that_bends_nowhere_is_not_accused():
    assert hinge_statistics.self_null(np.zeros((1, N, T + 2, M), np.float32), T).tolist() == [1.0]
