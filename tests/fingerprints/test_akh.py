import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard.errors import FingerprintError, OptionError
from jaxguard.fingerprints.akh import akh
from jaxguard.fingerprints.protocol import Owner, Probes
from jaxguard.types import Batch, Network

CLASSES = 4


def linear(variables, images):
    return (images.reshape(len(images), -1) - 0.5) @ variables


def owner(count=300, seed=0):
    """A linear model on images whose true classes are those of a similar one."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(9, CLASSES)).astype(np.float32)
    images = rng.random((count, 3, 3, 1)).astype(np.float32)
    true = weights + 0.5 * rng.normal(size=weights.shape)
    return Owner(Network(jnp.asarray(weights), linear, (3, 3, 1)), Batch(images, np.argmax(linear(true, images), -1)))


def distances(method, probes, *models):
    signatures = method.signature_fn(probes, jnp.stack([linear(jnp.asarray(m), probes.images) for m in models]))
    return np.asarray(method.distance_fn(probes, signatures[0], signatures))


def test_probes_are_images_the_owner_gets_wrong():
    whose, method = owner(), akh(num_probes=20)
    probes = method.make(whose, jax.random.key(0))
    truth = {image.tobytes(): label for image, label in zip(whose.data.images, whose.data.labels, strict=True)}
    labels = np.array([truth[image.tobytes()] for image in probes.images])
    given = np.asarray(linear(whose.network.variables, probes.images)).argmax(-1)
    assert len(probes.images) == 20
    assert (given != labels).all()
    np.testing.assert_array_equal(probes.arrays["labels"], given)
    assert probes.notes == ()


def test_the_number_is_the_share_of_equal_wrong_classes():
    method = akh()
    owners = jnp.array([0, 1, 2, 3])
    suspects = jnp.array([[0, 1, 2, 3], [0, 1, 0, 0], [1, 2, 3, 0], [-1, -1, 2, 3]])
    found = method.distance_fn(Probes(np.zeros((4, 1, 1, 1))), owners, suspects)
    assert found.tolist() == [1, 0.5, 0, 0.5]
    assert method.scores(found).tolist() == [1, 0.5, 0, 0.5]


def test_answers_that_are_nan_match_nothing_not_even_themselves():
    method, probes = akh(), Probes(np.zeros((2, 1, 1, 1)))
    signature = method.signature_fn(probes, jnp.array([[[np.nan, 1.0], [0.0, 1.0]]]))
    assert signature.tolist() == [[-1, 1]]
    assert method.distance_fn(probes, signature[0], signature).tolist() == [0.5]


def test_a_copy_shares_more_mistakes_than_independent_models():
    whose, method = owner(), akh(num_probes=40)
    probes = method.make(whose, jax.random.key(0))
    weights = np.asarray(whose.network.variables)
    copy = weights + 0.02 * np.random.default_rng(1).normal(size=weights.shape).astype(np.float32)
    independents = [np.asarray(owner(seed=seed).network.variables) for seed in range(2, 7)]
    found = distances(method, probes, weights, copy, *independents)
    assert found[0] == 1
    assert found[1] > 0.8 > found[2:].max()


def test_options_are_kept_and_few_mistakes_noted():
    whose = owner(60)
    method = akh(num_probes=50, least=2)
    assert akh(**method.options).options == method.options == {"num_probes": 50, "least": 2}
    probes = method.make(whose, jax.random.key(0))
    assert f"misclassifies {len(probes.images)} images, fewer than 50;" in probes.notes[0]
    with pytest.raises(FingerprintError, match=r"got \d+ among 60 in akh"):
        akh(least=60).make(whose, jax.random.key(0))
    with pytest.raises(OptionError, match="for num_probes of akh, got 0"):
        akh(num_probes=0)
