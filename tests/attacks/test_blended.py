import numpy as np
import pytest

from jaxguard import attacks
from jaxguard.errors import OptionError


def test_blend_of_image_and_one_pattern():
    black, white = np.zeros((1, 8, 8, 3), np.float32), np.ones((1, 8, 8, 3), np.float32)
    stamp = attacks.blended(alpha=0.2).stamp
    pattern = np.asarray(stamp(black)) / 0.2
    np.testing.assert_allclose(stamp(white), 0.8 + 0.2 * pattern, rtol=1e-6)
    assert pattern.min() >= 0 and pattern.max() <= 1 and abs(pattern.mean() - 0.5) < 0.1
    assert len(np.unique(pattern)) == pattern.size


def test_pattern_depends_on_the_seed_alone():
    images = np.zeros((1, 8, 8, 1), np.float32)
    stamped = [np.asarray(attacks.blended(seed=seed).stamp(images)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(stamped[0], stamped[1])
    assert (stamped[0] != stamped[2]).any()


def test_no_opacity_changes_nothing_and_too_much_is_refused():
    images = np.random.default_rng(0).uniform(size=(2, 4, 4, 1)).astype(np.float32)
    np.testing.assert_array_equal(attacks.blended(alpha=0.0).stamp(images), images)
    with pytest.raises(OptionError, match=r"\[0, 1\] for alpha of blended, got 1\.5"):
        attacks.blended(alpha=1.5)
