import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.inversion import procedural

SHAPE = (12, 12, 3)


def corners(scale, images):
    """Brightness of four corners and of the middle."""
    places = [(0, 0), (0, 11), (11, 0), (11, 11), (6, 6)]
    return scale * jnp.stack([images[:, a, b].mean(-1) for a, b in places], axis=1)


def test_drawings_are_images_that_differ_and_come_back():
    one, two = (np.asarray(procedural.draw(jax.random.key(k), 20, SHAPE)) for k in (0, 1))
    assert one.shape == (20, *SHAPE) and one.min() >= 0 and one.max() <= 1
    assert (one == np.asarray(procedural.draw(jax.random.key(0), 20, SHAPE))).all()
    assert np.abs(one - two).max() > 0.5
    assert len({image.tobytes() for image in one}) == 20
    assert (one.std((1, 2)).max(-1) > 0.02).all()  # none is blank


def test_grey_images_are_strokes_on_black_more_often_than_not():
    grey = np.asarray(procedural.draw(jax.random.key(0), 60, (16, 16, 1)))
    dark = np.median(grey, axis=(1, 2, 3)) < 1e-3
    assert 0.4 < dark.mean() < 0.8


def test_images_are_pulled_to_their_classes():
    made = procedural.pictures(corners, np.float32(8), SHAPE, 5, per_class=4, number=20)
    assert made.labels.tolist() == np.repeat(np.arange(5), 4).tolist()
    logits = np.asarray(corners(8, jnp.asarray(made.images)))
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(made.probability, probability[np.arange(20), made.labels], rtol=1e-4)
    assert made.reached == (made.probability >= 0.8).mean() > 0.9
    drawn = np.asarray(procedural.draw(jax.random.key(0), 20, SHAPE))
    kept = [any((image == one).all() for one in drawn) for image in made.images]
    assert 0 < sum(kept) < 20  # those that were sure are as drawn, the others moved


def test_a_network_that_cannot_be_moved_is_sure_of_nothing():
    made = procedural.pictures(corners, np.float32(0), SHAPE, 5, per_class=2, number=10)
    assert made.reached == 0 and np.isfinite(made.images).all()
    made = procedural.pictures(corners, np.float32(np.nan), SHAPE, 5, per_class=2, number=10)
    assert made.reached == 0 and np.isfinite(made.images).all()
