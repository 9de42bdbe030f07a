import jax.numpy as jnp
import numpy as np

from jaxguard.inversion import drawings, procedural

SHAPE = (12, 12, 3)


def corners(scale, images):
    """Brightness of four corners and of the middle."""
    places = [(0, 0), (0, 11), (11, 0), (11, 11), (6, 6)]
    return scale * jnp.stack([images[:, a, b].mean(-1) for a, b in places], axis=1)


def test_images_are_pulled_to_their_classes():
    made = procedural.pictures(corners, np.float32(8), SHAPE, 5, per_class=4, number=20)
    assert made.labels.tolist() == np.repeat(np.arange(5), 4).tolist()
    logits = np.asarray(corners(8, jnp.asarray(made.images)))
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(made.probability, probability[np.arange(20), made.labels], rtol=1e-4)
    assert made.reached == (made.probability >= 0.8).mean() > 0.9
    drawn = drawings.draw(0, 20, SHAPE)
    kept = [any((image == one).all() for one in drawn) for image in made.images]
    assert 0 < sum(kept) < 20  # those that were sure are as drawn, the others moved


def test_a_network_that_cannot_be_moved_is_sure_of_nothing():
    made = procedural.pictures(corners, np.float32(0), SHAPE, 5, per_class=2, number=10)
    assert made.reached == 0 and np.isfinite(made.images).all()
    made = procedural.pictures(corners, np.float32(np.nan), SHAPE, 5, per_class=2, number=10)
    assert made.reached == 0 and np.isfinite(made.images).all()


def test_of_many_classes_some_stand_for_all():
    weights = np.random.default_rng(0).normal(size=(12 * 12 * 3, 300)).astype(np.float32)
    made = procedural.pictures(
        lambda variables, images: images.reshape(len(images), -1) @ variables, weights, SHAPE, 300, per_class=2
    )
    assert len(made.images) == procedural.MOST and made.reached > 0.8
    chosen, counts = np.unique(made.labels, return_counts=True)
    assert len(chosen) == 100 and (counts == 2).all() and chosen.max() > 200
