"""Summaries of unordered numbers, against NumPy and SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxguard.kernels.spectrum import distribution, spectrum

RNG = np.random.default_rng(0)


def test_distribution_is_numpys_and_scipys():
    rows = RNG.normal(3, 2, size=(2, 5, 11)).astype(np.float32)
    found = distribution(jnp.asarray(rows))
    std = rows.std(-1, ddof=1)
    ordered = np.sort(rows, axis=-1)
    # SciPy's skewness divides by the deviation with ddof=0.
    skewness = stats.skew(rows, axis=-1) * (10 / 11) ** 1.5
    expected = {
        "mean": rows.mean(-1),
        "std": std,
        "low": (ordered[..., 0] - rows.mean(-1)) / std,
        "high": (ordered[..., -1] - rows.mean(-1)) / std,
        "lead": (ordered[..., -1] - ordered[..., -2]) / std,
        "skewness": skewness,
    }
    assert expected.keys() == found._asdict().keys()
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_order_does_not_matter():
    values = RNG.exponential(size=40).astype(np.float32)
    np.testing.assert_allclose(distribution(jnp.asarray(values[::-1])), distribution(jnp.asarray(values)), rtol=1e-5)
    ours, theirs = spectrum(jnp.asarray(values)), spectrum(jnp.asarray(values[::-1]))
    np.testing.assert_allclose(ours._replace(channel=0), theirs._replace(channel=0), rtol=1e-5)
    assert int(ours.channel) == 39 - int(theirs.channel) == values.argmax()


def test_what_is_not_finite_is_left_out():
    known = np.array([4.0, -1.0, 2.0], np.float32)
    with_holes = np.array([np.nan, 4.0, np.inf, -1.0, 2.0, -np.inf], np.float32)
    np.testing.assert_allclose(distribution(jnp.asarray(with_holes)), distribution(jnp.asarray(known)), rtol=1e-6)
    found = spectrum(jnp.asarray(with_holes))
    assert (int(found.undefined), float(found.largest), int(found.channel)) == (3, 4.0, 1)


def test_equal_numbers_have_no_spread():
    found = distribution(jnp.full(7, 0.1))
    np.testing.assert_allclose(found.mean, 0.1, rtol=1e-6)
    assert [float(part) for part in found[1:]] == [0.0] * 5


def test_two_equal_largest_have_no_lead():
    assert float(distribution(jnp.array([0.0, 1.0, 1.0])).lead) == 0


@pytest.mark.parametrize("values", [[5.0], [5.0, np.nan], [np.nan, np.nan]])
def test_fewer_than_two_numbers_say_nothing(values):
    assert np.isnan(distribution(jnp.array(values))).all()
    assert np.isnan(spectrum(jnp.array(values)).z)
