"""What holds for every attack; adding a row to ATTACKS adds it here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard import attacks
from jaxguard.errors import DataError

IMAGES = np.random.default_rng(0).uniform(0.1, 0.9, size=(6, 8, 10, 3)).astype(np.float32)

FACTORIES = {
    **attacks.ATTACKS,
    "patch": lambda **options: attacks.patch(np.eye(8, 10), np.full((8, 10), 0.5), **options),
}


@pytest.fixture(params=sorted(FACTORIES))
def factory(request):
    return FACTORIES[request.param]


def test_stamp_stays_in_range_and_changes_every_image_alike(factory):
    stamp = factory(target=1).stamp
    stamped = np.asarray(stamp(IMAGES))
    assert stamped.shape == IMAGES.shape and stamped.dtype == IMAGES.dtype
    assert stamped.min() >= 0 and stamped.max() <= 1
    assert (stamped != IMAGES).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(stamp(IMAGES[2:]), stamped[2:])


def test_stamp_can_be_compiled_and_mapped(factory):
    stamp = factory(target=1).stamp
    np.testing.assert_allclose(jax.jit(stamp)(IMAGES), stamp(IMAGES), atol=1e-7)
    np.testing.assert_allclose(jax.vmap(stamp)(IMAGES), stamp(IMAGES), atol=1e-7)


def test_labels_all_to_one_and_all_to_all(factory):
    if factory(target=1).sources is not None:
        pytest.skip("works on images of some classes only; see test_source_specific.py")
    labels = jnp.array([0, 3, 9])
    assert factory(target=3).relabel(labels).tolist() == [3, 3, 3]
    assert factory(target=3).target == 3
    all_to_all = factory(target=None, num_classes=10)
    assert all_to_all.relabel(labels).tolist() == [1, 4, 0] and all_to_all.target is None
    with pytest.raises(DataError, match="pass num_classes="):
        factory(target=None)
    with pytest.raises(DataError, match=r"a class in \[0, 10\), got 10"):
        factory(target=10, num_classes=10)
    with pytest.raises(DataError, match="got -1"):
        factory(target=-1)


def test_names_are_those_of_the_table():
    assert {name: build().name for name, build in attacks.ATTACKS.items()} == {name: name for name in attacks.ATTACKS}
