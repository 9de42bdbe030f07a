import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxguard.defenses import Data, ep
from jaxguard.defenses.ep import entropy
from jaxguard.errors import DefenseError, OptionError
from jaxguard.graph import channel_graph

VARIABLES = tiny.init(jax.random.key(0))
GRAPH = channel_graph(tiny.apply_fn, VARIABLES, jnp.zeros((1, *tiny.INPUT_SHAPE)))


def test_entropy_of_histograms_by_hand():
    values = np.array([[0, 0, 0, 1.0], [0, 1, 2, 3], [5, 5, 5, 5], [-8, 8, 8, -8]]).T
    # Standardised -.5 and 1.5; -1.16, -.39, .39 and 1.16; -.87 and .87; the grid begins at -1.16.
    one_apart, spread = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)), 0.5 * np.log(2) + 0.5 * np.log(4)
    np.testing.assert_allclose(entropy(values, 1.0), [one_apart, spread, np.nan, np.log(2)], rtol=1e-6)
    assert np.isnan(entropy(np.ones((4, 2)), 1.0)).all()


@pytest.mark.parametrize("bin_width", [0.1, 0.01])
def test_entropy_agrees_with_numpy_histograms_and_ignores_units(bin_width):
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(size=300), rng.uniform(size=300), rng.choice([0.0, 5.0], 300)], 1)
    values[:, 2] += 0.1 * rng.normal(size=300)
    unit = (values - values.mean(0)) / values.std(0, ddof=1)
    edges = np.arange(unit.min(), unit.max() + 2 * bin_width, bin_width)
    found = entropy(values, bin_width)
    for channel in range(3):
        shares = np.histogram(unit[:, channel], edges)[0] / 300
        expected = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
        np.testing.assert_allclose(found[channel], expected, atol=0.02)
    assert found.argmin() == 2
    np.testing.assert_allclose(entropy(values * [3, 0.1, 40] - [1, 2, 3], bin_width), found, atol=0.02)


def planted(poisoned):
    """Channel 3 of the tiny network sees the trigger alone: a bright line across the whole image."""
    kernel = np.array(VARIABLES["params"]["conv"])
    kernel[..., 3] = 0
    kernel[1, :, 0, 3] = 5
    suspect = {**VARIABLES, "params": {**VARIABLES["params"], "conv": jnp.asarray(kernel)}}
    mixed = np.array(tiny.images(120, jax.random.key(1)).images)
    mixed[:poisoned, 3] = 5
    return suspect, np.random.default_rng(0).permutation(mixed)


@pytest.mark.parametrize("form", ["channel", "weight"])
def test_the_channel_of_two_clusters_is_cut(form):
    suspect, mixed = planted(12)
    suspect["params"]["bias"] = jnp.arange(1.0, 9.0)
    repaired, report = ep(tiny.network(suspect), Data(mixed=mixed), u=1.2, form=form)
    (layer,) = report.layers
    assert layer.scores.argmax() == 3 and layer.mask.tolist() == [k == 3 for k in range(8)]
    assert (layer.scores < 0).all()
    np.testing.assert_allclose(layer.threshold, layer.scores.mean() + 1.2 * layer.scores.std(ddof=1), rtol=1e-4)
    np.testing.assert_array_equal(repaired.variables["params"]["scale"], ~layer.mask)
    np.testing.assert_array_equal(repaired.variables["params"]["bias"][3], 0 if form == "channel" else 4)


def test_without_poisoned_images_it_does_not_stand_out():
    suspect, mixed = planted(0)
    _, report = ep(tiny.network(suspect), Data(mixed=mixed), u=1.2)
    assert not report.layers[0].mask.any()


def test_constant_channels_are_left_alone():
    suspect, mixed = planted(12)
    suspect["params"]["conv"] = suspect["params"]["conv"].at[..., 6].set(0)
    _, report = ep(tiny.network(suspect), Data(mixed=mixed), u=1.0)
    assert report.layers[0].undefined.tolist() == [k == 6 for k in range(8)] and not report.layers[0].mask[6]
    assert "1 channels have one value on all 120 images" in report.notes[0]


def test_what_is_missing_or_wrong_is_said():
    mixed = tiny.images(8, jax.random.key(1)).images
    for few, number in ((None, "none"), (mixed[:1], "1")):
        with pytest.raises(DefenseError, match=rf"training set for ep, got {number} \(data\.mixed\)"):
            ep(tiny.network(VARIABLES), Data(mixed=few))
    for name, value in {"u": -1, "bin_width": 0, "batch_size": 0, "layers": "some", "form": "bias"}.items():
        with pytest.raises(OptionError, match=f"for {name} of ep, got {value!r}"):
            ep(tiny.network(VARIABLES), Data(mixed=mixed), **{name: value})
