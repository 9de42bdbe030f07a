import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard.inversion import counters, drawings

SHAPE = (12, 12, 3)


@pytest.mark.parametrize("seed", [0, 5_000_000_007])
def test_random_numbers_are_those_of_jax(seed):
    with jax.enable_x64():  # else JAX cuts large seeds down to 32 bits
        whole = jax.random.key(seed)
    keys = jax.random.split(whole, 3)
    ours = counters.split(counters.key_of(seed), 3)[:, 0]
    assert (ours == np.asarray(jax.random.key_data(keys))).all()

    def of_jax(draw_fn):
        return np.asarray(jax.vmap(draw_fn)(keys))

    assert (counters.bits(ours, 5) == of_jax(lambda key: jax.random.bits(key, (5,)))).all()
    assert (counters.uniform(ours, (3, 2)) == of_jax(lambda key: jax.random.uniform(key, (3, 2)))).all()
    assert (counters.integers(ours, 6, 40) == of_jax(lambda key: jax.random.randint(key, (), 6, 40))).all()
    normal = of_jax(lambda key: jax.random.normal(key, (50,)))
    np.testing.assert_allclose(counters.normal(ours, (50,)), normal, atol=3e-5)  # approximations of erfinv differ


def test_drawings_are_images_that_differ_and_come_back():
    one, two = (drawings.draw(seed, 40, SHAPE) for seed in (0, 1))
    assert one.shape == (40, *SHAPE) and one.min() >= 0 and one.max() <= 1
    assert (one[:20] == drawings.draw(0, 40, SHAPE)[:20]).all()
    assert np.abs(one - two).max() > 0.5
    assert len({image.tobytes() for image in one}) == 40
    assert (one.std((1, 2)).max(-1) > 0.02).all()  # none is blank


def test_a_disc_is_where_it_was_drawn(monkeypatch):
    # By hand from the same random numbers: the last leaf lies over all others.
    monkeypatch.setattr(drawings, "LEAVES", (2, 3))
    keys = counters.split(counters.key_of(3), 20)[:, 0]
    made = drawings._dead_leaves(keys, SHAPE)
    _, key_ground, key_place, key_radius, key_colour, key_form = counters.split(keys, 6)
    rows, columns = np.mgrid[:12, :12]
    seen = 0
    for k, picture in enumerate(made):
        (down, across), form = 12 * counters.uniform(key_place, (2, 2))[k, 1], counters.uniform(key_form, (2, 3))[k, 1]
        if form[0] < 0.5:
            radius = 6 * counters.uniform(key_radius, (2,))[k, 1] ** 2.2 + 1.2
            is_disc = (rows - down) ** 2 + (columns - across) ** 2 < radius**2
            assert ((picture == counters.uniform(key_colour, (2, 3))[k, 1]).all(-1) == is_disc).all()
            seen += 1
    assert seen >= 2 and np.isin(made[:, 0, 0], counters.uniform(key_ground, (1, 1, 3))[:, 0, 0]).any()


def test_grey_images_are_strokes_on_black_more_often_than_not():
    grey = drawings.draw(0, 60, (16, 16, 1))
    dark = np.median(grey, axis=(1, 2, 3)) < 1e-3
    assert 0.4 < dark.mean() < 0.8
    assert jnp.asarray(grey).max() > 0.5
