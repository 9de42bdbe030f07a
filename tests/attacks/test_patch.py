import numpy as np
import pytest

from jaxguard import attacks
from jaxguard.errors import DataError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("mask_shape", [(4, 6), (4, 6, 1), (4, 6, 3)])
@pytest.mark.parametrize("pattern_shape", [(4, 6), (4, 6, 1), (4, 6, 3)])
def test_stamp_follows_the_formula_pixel_by_pixel(mask_shape, pattern_shape):
    images = RNG.uniform(size=(2, 4, 6, 3))
    mask, pattern = RNG.uniform(size=mask_shape), RNG.uniform(size=pattern_shape)
    stamped = attacks.patch(mask, pattern, target=0).stamp(images)
    wide_mask, wide_pattern = (np.broadcast_to(a.reshape(4, 6, -1), (4, 6, 3)) for a in (mask, pattern))
    for n, i, j, c in np.ndindex(images.shape):
        expected = images[n, i, j, c] * (1 - wide_mask[i, j, c]) + wide_pattern[i, j, c] * wide_mask[i, j, c]
        assert abs(float(stamped[n, i, j, c]) - expected) < 1e-6


def test_badnets_is_a_patch():
    images = RNG.uniform(size=(2, 8, 8, 1)).astype(np.float32)
    mask = np.zeros((8, 8))
    mask[5:, 5:] = 1
    ours = attacks.patch(mask, np.ones((8, 8)), target=0, name="white square")
    np.testing.assert_array_equal(ours.stamp(images), attacks.badnets().stamp(images))
    assert ours.name == "white square"


def test_errors():
    mask = np.zeros((4, 4))
    with pytest.raises(DataError, match=r"got \(4, 4, 1\) and \(4, 5, 1\)"):
        attacks.patch(mask, np.zeros((4, 5)), target=0)
    with pytest.raises(DataError, match=r"got \(4, 4, 2\) and \(4, 4, 3\)"):
        attacks.patch(np.zeros((4, 4, 2)), np.zeros((4, 4, 3)), target=0)
    with pytest.raises(DataError, match="crop or transpose"):
        attacks.patch(np.zeros((1, 4, 4, 1)), mask, target=0)
    with pytest.raises(DataError, match="pattern in"):
        attacks.patch(mask, mask + 255, target=0)
    with pytest.raises(DataError, match=r"mask in .* got nan"):
        attacks.patch(mask * np.nan, mask, target=0)
    with pytest.raises(DataError, match=r"got \(5, 4, 1\) for a mask \(4, 4, 1\)"):
        attacks.patch(mask, mask, target=0).stamp(np.zeros((1, 5, 4, 1)))
    with pytest.raises(DataError, match="resize the trigger"):
        attacks.patch(np.zeros((4, 4, 3)), mask, target=0).stamp(np.zeros((1, 4, 4, 1)))
