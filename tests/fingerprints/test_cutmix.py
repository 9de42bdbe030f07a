import jax
import numpy as np
import pytest

from jaxguard.errors import FingerprintError, OptionError
from jaxguard.fingerprints.cutmix import cutmix


def numbered(count, size=32):
    """Images whose every pixel is the image's number."""
    return np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None, None], (count, size, size, 3)).copy()


def pasted(mixed):
    """Bool `[N, H, W]`, where another image shows."""
    return mixed[..., 0] != np.arange(len(mixed))[:, None, None]


def bounds(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def test_each_image_gets_one_solid_box_of_one_other_image():
    images = numbered(50)
    before = images.copy()
    mixed = cutmix(images, jax.random.key(0))
    np.testing.assert_array_equal(images, before)
    assert (mixed == mixed[..., :1]).all()
    seen = pasted(mixed)
    for image, mask in zip(mixed[..., 0], seen, strict=True):
        if mask.any():
            top, bottom, left, right = bounds(mask)
            assert mask[top:bottom, left:right].all()
            assert len(np.unique(image[mask])) == 1
    assert seen.any((1, 2)).mean() > 0.8  # few boxes are too small to be seen
    shares = seen.mean((1, 2))
    assert len(np.unique(shares)) > 20


def test_no_image_is_its_own_partner_and_each_is_one_once():
    mixed = cutmix(numbered(40), jax.random.key(1), side=0.5)
    partners = [np.unique(image[mask]).item() for image, mask in zip(mixed[..., 0], pasted(mixed), strict=True)]
    assert sorted(partners) == list(range(40))


def test_areas_are_those_of_a_uniform_lambda():
    shares = pasted(cutmix(numbered(2000, size=16), jax.random.key(2)))
    # Of a side s whose centre is uniform, s - s^2 / 4 lies inside on average, and s^2 = 1 - lambda is uniform.
    side = np.sqrt(np.linspace(0, 1, 10_001))
    expected = np.mean((side - side**2 / 4) ** 2)
    assert shares.mean() == pytest.approx(expected, rel=0.15)


def test_corner_boxes_are_the_authors():
    """32 pixels, a box of int(32 * 0.2) = 6: centres in {0..5, 27..31}, so that 3 to 6 pixels a side remain."""
    seen, origins = set(), set()
    for seed in range(60):
        mask = pasted(cutmix(numbered(2), jax.random.key(seed), side=0.2, corner=True, one_box=True))
        np.testing.assert_array_equal(mask[0], mask[1])
        top, bottom, left, right = bounds(mask[0])
        seen |= {bottom - top, right - left}
        origins |= {(top, bottom), (left, right)}
    assert seen <= {3, 4, 5, 6}
    allowed = {(max(c - 3, 0), min(c + 3, 32)) for c in (*range(6), *range(27, 32))}
    assert origins <= allowed
    assert len(origins) > 8


def test_one_box_is_the_same_for_all_and_many_are_not():
    one = pasted(cutmix(numbered(20), jax.random.key(3), side=0.4, one_box=True))
    assert (one == one[0]).all()
    assert one.any()
    many = pasted(cutmix(numbered(20), jax.random.key(3), side=0.4))
    assert len({mask.tobytes() for mask in many}) > 10


def test_the_same_key_gives_the_same_images():
    images = numbered(10)
    first, again, other = (cutmix(images, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("bad", [{"alpha": 0.0}, {"side": 0.0}, {"side": 1.5}])
def test_options_out_of_range(bad):
    with pytest.raises(OptionError, match=f"for {next(iter(bad))} of cutmix, got {next(iter(bad.values()))}"):
        cutmix(numbered(4), jax.random.key(0), **bad)


def test_one_image_cannot_be_mixed():
    with pytest.raises(FingerprintError, match="got 1 in cutmix"):
        cutmix(numbered(1), jax.random.key(0))
