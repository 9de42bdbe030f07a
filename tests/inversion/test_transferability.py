import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxguard import inversion
from jaxguard.inversion import transferability
from jaxguard.types import Network

PLANTED = np.array([[1, 0], [1, 1]], np.float32)


def halves(strength, images):
    """The brighter half; and `strength` for class 1 where a square looks like `PLANTED`."""
    sides = 9 * jnp.stack([images[:, :, :4, 0].mean((1, 2)), images[:, :, 4:, 0].mean((1, 2))], axis=1)
    alike = 1 - jnp.abs(images[:, 5:7, 3:5, 0] - PLANTED[None]).max((1, 2))
    return sides.at[:, 1].add(strength * jnp.maximum(alike - 0.4, 0))


@pytest.fixture(scope="module")
def searched():
    return {strength: inversion.search(Network(np.float32(strength), halves, (8, 8, 1))) for strength in (40, 0)}


def test_one_of_two_classes_is_told_by_a_trigger_that_one_image_lends_to_another(searched):
    found, plain = searched[40], searched[0]
    assert found.problem == plain.problem == ""
    assert found.target == 1 and found.gap > 0.5 and found.p_class < 0.01
    assert found.leading.label.endswith("patch at (5, 3)") and found.interval[0] > 0.5
    assert found.leading.judged.tolist() == [28, 28]  # 128 images, 16 to search on, 28 of each class with a patch
    assert plain.gap < 0.5 and plain.p_class > 0.5
    assert "no other triggers were searched" in found.left_out[0]
    mask = found.trigger.mask
    assert mask.sum() == found.leading.size**2 and mask[5:7, 3:5].all()


def test_the_estimate_is_half_where_one_of_two_triggers_is_the_larger():
    # Triggers along one line: the larger one turns the image of the smaller one, never the other way round.
    sizes = np.random.default_rng(0).permutation(12)
    assert transferability.estimate(sizes[:, None] > sizes[None]) == (0.5, 1.0)
    assert transferability.estimate(~np.eye(12, dtype=bool)) == (1.0, 2.0**-6)
    assert transferability.estimate(np.zeros((12, 12), bool)) == (0.0, 1.0)


def test_the_standard_error_is_the_jackknife_s():
    pairs = np.random.default_rng(1).uniform(size=(9, 9)) < 0.7
    np.fill_diagonal(pairs, val=False)
    value, p_value = transferability.estimate(pairs)
    assert value == pairs.sum() / 72
    left = [np.delete(np.delete(pairs, k, 0), k, 1).sum() / 56 for k in range(9)]  # by hand: one image less each time
    error = np.sqrt(8 / 9 * np.square(left - np.mean(left)).sum())
    assert p_value == pytest.approx(max(2.0**-4, stats.t.sf((value - 0.5) / error, 8)))


def test_few_images_of_other_classes_allow_no_statement():
    images = np.random.default_rng(2).uniform(0, 0.4, size=(40, 8, 8, 1)).astype(np.float32)
    images[:, :, :4] += 0.5
    images[:7, :, 4:] += 0.55  # all but seven images are of class 0
    found = inversion.search(Network(np.float32(0), halves, (8, 8, 1)), images=images)
    assert "(not for class 0: too few images are of others)" in found.label
    assert found.leading.judged[0] == 0 and found.leading.judged[1] > 0
