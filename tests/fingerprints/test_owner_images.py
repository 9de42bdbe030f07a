import jax
import numpy as np
import pytest

from jaxguard.errors import FingerprintError
from jaxguard.fingerprints import owner_images
from jaxguard.fingerprints.protocol import Owner
from jaxguard.types import Batch, Network

COUNT, CLASSES = 40, 5


def brightest(variables, images):
    return variables * images.reshape(len(images), -1)


def owner(labels=None):
    """An owner whose class of image `n` is `n % 5`; every third label says otherwise."""
    truth = np.arange(COUNT) % CLASSES
    images = np.eye(CLASSES, dtype=np.float32)[truth].reshape(COUNT, CLASSES, 1, 1)
    images *= np.linspace(0.5, 1, COUNT, dtype=np.float32)[:, None, None, None]  # tells them apart
    given = np.where(np.arange(COUNT) % 3 == 0, (truth + 1) % CLASSES, truth) if labels is None else labels
    return Owner(Network(1.0, brightest, (CLASSES, 1, 1)), Batch(images, given))


def find(whose, number=100, seed=0, **options):
    return owner_images.misclassified(whose, number, jax.random.key(seed), method="test", **options)


def places(mistakes, whose):
    return [int(np.flatnonzero((whose.data.images == image).all((1, 2, 3))).item()) for image in mistakes.images]


def test_all_mistakes_with_the_classes_that_were_given():
    whose = owner()
    found = find(whose)
    assert sorted(places(found, whose)) == list(range(0, COUNT, 3))
    assert found.answers.tolist() == [place % CLASSES for place in places(found, whose)]
    assert found.found == 14
    assert owner_images.notes(found, 14) == ()
    assert "misclassifies 14 images, fewer than 15;" in owner_images.notes(found, 15)[0]


def test_a_draw_is_of_different_images_and_repeats_by_key():
    whose = owner()
    first, again, other = (find(whose, 10, seed=seed) for seed in (0, 0, 1))
    assert len(set(places(first, whose))) == 10
    assert first.found == 14
    np.testing.assert_array_equal(first.images, again.images)
    assert places(first, whose) != places(other, whose)


def test_surrogates_must_be_wrong_as_well_whatever_they_say():
    whose = owner()
    labels = whose.data.labels
    surrogates = np.stack([(labels + 1) % CLASSES, (labels + 2) % CLASSES])
    surrogates[0, :12] = labels[:12]  # right about the mistakes 0, 3, 6, 9
    found = find(whose, surrogates=surrogates)
    assert sorted(places(found, whose)) == list(range(12, COUNT, 3))
    with pytest.raises(FingerprintError, match="the owner and all of 2 surrogates get wrong, got 10 among 40"):
        find(whose, surrogates=surrogates, least=11)


def test_too_few_mistakes_are_counted():
    with pytest.raises(FingerprintError, match="at least 15 images that the owner gets wrong, got 14 among 40"):
        find(owner(), least=15)
    with pytest.raises(FingerprintError, match="got 0 among 40"):
        find(owner(np.arange(COUNT) % CLASSES), least=1)


def test_outputs_that_are_nan_are_no_mistakes():
    whose = owner()
    broken = Owner(whose.network.with_variables(np.float32(np.nan)), whose.data)
    with pytest.raises(FingerprintError, match="got 0 among 40"):
        find(broken, least=1)


def test_what_the_owner_must_have():
    whose = owner()
    with pytest.raises(FingerprintError, match="got none in test"):
        find(Owner(whose.network))
    with pytest.raises(FingerprintError, match=r"got 40 images, labels \(3,\)"):
        find(owner(np.zeros(3, int)))
    with pytest.raises(FingerprintError, match=r"surrogates' classes \[M, 40\].*got shape \(40,\)"):
        find(whose, surrogates=np.zeros(COUNT, int))
    with pytest.raises(FingerprintError, match=r"got shape \(2, 39\)"):
        find(whose, surrogates=np.zeros((2, 39), int))
