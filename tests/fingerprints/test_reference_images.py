import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard.errors import FingerprintError
from jaxguard.fingerprints import reference_images
from jaxguard.fingerprints.protocol import Probes
from jaxguard.fingerprints.sac import sac

RNG = np.random.default_rng(0)
IMAGES, REFERENCES = RNG.random((12, 4, 4, 1)), RNG.random((5, 4, 4, 1))


def embedder(seed, size=7):
    weights = np.random.default_rng(seed).normal(size=(16, size))
    return lambda images: np.asarray(images).reshape(len(images), -1) @ weights


def cosine(left, right):
    return (left @ right.T) / np.linalg.norm(left, axis=1)[:, None] / np.linalg.norm(right, axis=1)


def test_embeddings_become_cosines_to_the_references():
    embed_fn = embedder(0)
    found = reference_images.from_embeddings(embed_fn, REFERENCES)(IMAGES)
    np.testing.assert_allclose(found, cosine(embed_fn(IMAGES), embed_fn(REFERENCES)), atol=1e-6)


def test_similarities_are_asked_pair_by_pair_in_one_call():
    embed_fn, calls = embedder(1), []

    def similarity_fn(left, right):
        calls.append(len(left))
        return np.diag(cosine(embed_fn(left), embed_fn(right)))

    found = reference_images.from_similarities(similarity_fn, REFERENCES)(IMAGES)
    assert calls == [60]
    np.testing.assert_allclose(found, reference_images.from_embeddings(embed_fn, REFERENCES)(IMAGES), atol=1e-6)


def test_sample_correlation_of_verifiers_knows_a_copy_of_another_embedding_size():
    """A copy whose embeddings are rotated into more dimensions has the owner's similarities."""
    owner = embedder(0)
    rotation = np.linalg.qr(RNG.normal(size=(9, 7)))[0]
    models = [owner, lambda images: owner(images) @ rotation.T, embedder(5)]
    outputs = jnp.stack([reference_images.from_embeddings(embed_fn, REFERENCES)(IMAGES) for embed_fn in models])
    method, probes = sac(variant="normal", num_probes=12), Probes(IMAGES)
    signatures = method.signature_fn(probes, outputs)
    distances = method.distance_fn(probes, signatures[0], signatures)
    assert distances[1] < 1e-6
    assert distances[2] > 0.01


@pytest.mark.parametrize("references", [REFERENCES[:1], REFERENCES[0]])
def test_references_must_be_two_images(references):
    for make in (reference_images.from_embeddings, reference_images.from_similarities):
        with pytest.raises(FingerprintError, match="at least two reference images"):
            make(embedder(0), references)


def test_answers_of_another_shape_are_named():
    with pytest.raises(FingerprintError, match=r"embeddings \[17, D\].*got shape \(17, 4, 4, 1\)"):
        reference_images.from_embeddings(lambda images: images, REFERENCES)(IMAGES)
    with pytest.raises(FingerprintError, match=r"similarities \[60\].*got shape \(60, 4, 4, 1\)"):
        reference_images.from_similarities(lambda left, right: left - right, REFERENCES)(IMAGES)
