"""MetaV: one verifier for all probes; its pools and its descent are those of LiteGuard."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stolen_digits as digits
from scipy.special import expit

from jaxguard.errors import FingerprintError, OptionError
from jaxguard.fingerprints.metav import JointVerifier, metav
from jaxguard.fingerprints.protocol import Probes

KEY = jax.random.key(3)
QUICK = {"points": 40, "steps": 150}


def test_confidence_by_hand():
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(3, 4, 2)).astype(np.float32)
    arrays = {"weight1": rng.normal(size=(8, 5)), "bias1": rng.normal(size=5), "weight2": rng.normal(size=(5, 1)),
              "bias2": rng.normal(size=1)}  # fmt: skip
    hidden = np.maximum(outputs.reshape(3, 8) @ arrays["weight1"] + arrays["bias1"], 0)
    expected = expit(hidden @ arrays["weight2"] + arrays["bias2"])
    method = metav(hidden=5, points=4)
    probes = Probes(np.zeros((4, 1, 1, 1), np.float32), {name: np.float32(array) for name, array in arrays.items()})
    found = method.signature_fn(probes, jnp.asarray(outputs))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(method.distance_fn(probes, found[0], found), expected[:, 0], rtol=1e-5)


def test_the_verifier_starts_undecided():
    verifier = JointVerifier(64)
    weights = verifier.init(KEY, 100, 10)
    assert jax.tree.map(jnp.shape, weights) == {
        "weight1": (1000, 64), "bias1": (64,), "weight2": (64, 1), "bias2": (1,)
    }  # fmt: skip
    outputs = jax.random.normal(jax.random.key(1), (50, 100, 10))
    logits = jax.vmap(lambda one: verifier(weights, one))(outputs)
    assert 0.3 < float(logits.std()) < 3


def test_copies_rank_above_networks_it_never_saw():
    copies, (first, second, *unseen) = digits.copies(), digits.independents()
    method = metav(positives=[copies["quantisation"], copies["distillation"]], negatives=[first, second], **QUICK)
    probes = method.make(digits.owner(), KEY)
    assert probes.images.min() >= 0
    assert probes.images.max() <= 1
    assert digits.scores(method, probes, [digits.network()])[0] > 0.95
    copied = digits.scores(method, probes, list(copies.values()))
    assert copied.min() > 0.9
    assert copied.min() > digits.scores(method, probes, unseen).max()
    assert probes.notes[0].startswith("Learned with 3 copies")  # the owner is one of them
    again = method.make(digits.owner(), KEY)
    np.testing.assert_array_equal(probes.images, again.images)
    np.testing.assert_array_equal(probes.arrays["weight1"], again.arrays["weight1"])


def test_it_learns_the_owner_alone_too():
    """One network in each pool: the owner, which is in it anyway."""
    same = [digits.network()]
    method = metav(positives=same, negatives=digits.independents()[:1], **QUICK)
    probes = method.make(digits.owner(), KEY)
    ours, theirs = digits.scores(method, probes, [digits.network(), digits.independents()[0]])
    assert ours > 0.95
    assert theirs < 0.05


def test_options_make_the_method_again():
    method = metav(model=digits.MODEL, hidden=3, space="probs")
    assert metav(**method.options).options == method.options
    assert method.options["model"] == digits.MODEL.spec


@pytest.mark.parametrize("options", [{"hidden": 0}, {"points": 0}, {"verifier_rate": 0.0}, {"positives": []}])
def test_bad_options(options):
    with pytest.raises((FingerprintError, OptionError), match=r"of metav[,;]"):
        metav(**options)
