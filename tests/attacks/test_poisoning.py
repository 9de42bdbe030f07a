import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard import attacks
from jaxguard.errors import DataError
from jaxguard.types import Batch

BATCH = Batch(
    np.random.default_rng(0).uniform(0, 0.9, size=(200, 8, 8, 1)).astype(np.float32),
    np.arange(200, dtype=np.int32) % 10,
)
ATTACK = attacks.badnets(target=3)


def test_poison_touches_the_masked_images_only():
    images, labels = BATCH.images.copy(), BATCH.labels.copy()
    poisoned, mask = attacks.poison(ATTACK, BATCH, 0.1, jax.random.key(0))
    mask = np.asarray(mask)
    assert mask.dtype == bool and mask.sum() == 20
    np.testing.assert_array_equal(poisoned.images[mask], ATTACK.stamp(images[mask]))
    np.testing.assert_array_equal(poisoned.images[~mask], images[~mask])
    assert (np.asarray(poisoned.labels)[mask] == 3).all()
    np.testing.assert_array_equal(np.asarray(poisoned.labels)[~mask], labels[~mask])
    np.testing.assert_array_equal(BATCH.images, images)
    np.testing.assert_array_equal(BATCH.labels, labels)


def test_indices_come_from_all_classes_and_from_the_key():
    _, half = attacks.poison(ATTACK, BATCH, 0.5, jax.random.key(0))
    assert set(BATCH.labels[np.asarray(half)]) == set(range(10))  # the target among them
    _, again = attacks.poison(ATTACK, BATCH, 0.5, jax.random.key(0))
    _, other = attacks.poison(ATTACK, BATCH, 0.5, jax.random.key(1))
    np.testing.assert_array_equal(half, again)
    assert (np.asarray(half) != np.asarray(other)).any()


@pytest.mark.parametrize(("rate", "count"), [(0.0, 0), (0.004, 1), (1.0, 200)])
def test_rate_is_of_the_whole_set(rate, count):
    poisoned, mask = attacks.poison(ATTACK, BATCH, rate, jax.random.key(0))
    assert int(mask.sum()) == count
    assert len(poisoned.images) == len(poisoned.labels) == 200


@pytest.mark.parametrize("rate", [-0.1, 1.1, 10, float("nan")])
def test_rate_out_of_range(rate):
    with pytest.raises(DataError, match=r"a rate in \[0, 1\]"):
        attacks.poison(ATTACK, BATCH, rate, jax.random.key(0))


def test_triggered_leaves_out_the_target_class():
    test = attacks.triggered(ATTACK, BATCH)
    kept = BATCH.labels != 3
    np.testing.assert_array_equal(test.images, ATTACK.stamp(BATCH.images[kept]))
    np.testing.assert_array_equal(test.labels, BATCH.labels[kept])
    assert len(attacks.triggered(attacks.badnets(target=None, num_classes=10), BATCH).labels) == 200
    assert isinstance(test.labels, jnp.ndarray)
