import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxguard import attacks
from jaxguard.errors import DataError
from jaxguard.types import Trigger

IMAGES = np.random.default_rng(0).uniform(size=(3, 6, 5, 3)).astype(np.float32)


def test_a_mask_and_pattern_are_a_patch():
    mask, pattern = np.full((6, 5, 1), 0.25, np.float32), np.ones((6, 5, 3), np.float32)
    attack = attacks.known(Trigger(mask, pattern), target=2)
    np.testing.assert_allclose(attack.stamp(IMAGES), 0.75 * IMAGES + 0.25, rtol=1e-6)
    assert attack.target == 2 and attack.relabel(np.array([0, 1])).tolist() == [2, 2]


def test_a_shift_is_that_of_scipy_and_a_change_is_added_to_it():
    flow = np.random.default_rng(1).uniform(-2, 2, (6, 5, 2)).astype(np.float32)
    places = np.moveaxis(np.stack(np.mgrid[:6, :5], axis=-1) + flow, -1, 0)
    expected = np.stack(
        [[ndimage.map_coordinates(one[..., c], places, order=1, mode="nearest") for c in range(3)] for one in IMAGES]
    )
    stamped = jax.jit(attacks.known(Trigger(flow=flow), target=0).stamp)(IMAGES)
    np.testing.assert_allclose(stamped, np.moveaxis(expected, 1, -1), atol=1e-5)
    both = attacks.known(Trigger(flow=flow, delta=np.full((6, 5, 3), 0.5, np.float32)), target=0)
    np.testing.assert_allclose(both.stamp(IMAGES), np.minimum(stamped + 0.5, 1), atol=1e-6)


@pytest.mark.parametrize("part", [{"delta": np.ones((6, 5, 3))}, {"flow": np.ones((6, 5, 2))}])
def test_images_of_another_size_are_one_error(part):
    with pytest.raises(DataError, match="resize the trigger"):
        attacks.known(Trigger(**part), target=0).stamp(jnp.zeros((1, 5, 5, 3)))


@pytest.mark.parametrize(
    ("labels", "target", "sources"),
    [([2, 2, 2, 2], 2, None), ([0, 3, 2, 3], 3, (1,)), ([1, 2, 3, 0], None, None), ([1, 0, 2, 3], None, (0, 1))],
)
def test_a_trigger_says_itself_what_it_does_to_each_class(labels, target, sources):
    trigger = Trigger(delta=np.full((6, 5, 3), 0.5, np.float32), labels=np.array(labels))
    attack = attacks.known(trigger, target="stored", num_classes=4)
    assert (attack.target, attack.sources) == (target, sources)
    for kind in (np.array, jnp.array):
        assert attack.relabel(kind([3, 1, 0])).tolist() == [labels[3], labels[1], labels[0]]
    np.testing.assert_allclose(attack.stamp(IMAGES), np.minimum(IMAGES + 0.5, 1))
    for wrong in (trigger, Trigger(delta=trigger.delta)):
        with pytest.raises(DataError, match="name a target"):
            attacks.known(wrong, target="stored", num_classes=5)
