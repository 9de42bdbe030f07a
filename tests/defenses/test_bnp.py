import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import tiny
import zoo

from jaxguard.activations.preactivations import Moments, moments
from jaxguard.defenses import Data, bnp
from jaxguard.defenses.bnp import divergence
from jaxguard.errors import OptionError, UnscorableError
from jaxguard.graph import channel_graph, pairing
from jaxguard.types import Batch

VARIABLES = tiny.init(jax.random.key(0))
GRAPH = channel_graph(tiny.apply_fn, VARIABLES, jnp.zeros((1, *tiny.INPUT_SHAPE)))
CLEAN = tiny.images(40, jax.random.key(1))
DATA = Data(CLEAN)


@pytest.mark.parametrize(("m1", "v1", "m2", "v2"), [(0, 1, 0, 1), (0.3, 0.5, -1, 2), (2, 3, 1, 0.7)])
def test_the_divergence_is_an_integral(m1, v1, m2, v2):
    p, q = scipy.stats.norm(m1, v1**0.5), scipy.stats.norm(m2, v2**0.5)
    expected, _ = scipy.integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -25, 25, limit=200)
    both = [Moments(np.array([m], float), np.array([v], float)) for m, v in ((m1, v1), (m2, v2))]
    np.testing.assert_allclose(divergence(*both), expected, atol=1e-6)
    twice = divergence(*both, log_factor=1.0)
    np.testing.assert_allclose(twice, expected + 0.5 * np.log(v2 / v1), atol=1e-6)


def recorded(extra=None, channel=0):
    """The tiny network with the clean images' own statistics, one channel's but for a shift in mean and variance."""
    (found,) = moments(GRAPH, VARIABLES, CLEAN.images, pairing.layers(GRAPH))
    mean, var = found.mean.copy(), found.var.copy()
    if extra:
        mean[channel], var[channel] = mean[channel] + extra[0], var[channel] * extra[1]
    stats = {"mean": jnp.asarray(mean, jnp.float32), "var": jnp.asarray(var, jnp.float32)}
    return {**VARIABLES, "batch_stats": stats}, found


@pytest.mark.parametrize("form", ["channel", "weight"])
def test_the_channel_with_other_statistics_is_cut(form):
    suspect, found = recorded(extra=(0.7, 1.5), channel=5)
    suspect["params"] = {**suspect["params"], "bias": jnp.arange(1.0, 9.0)}
    repaired, report = bnp(tiny.network(suspect), DATA, u=2.0, form=form)
    (layer,) = report.layers
    v = found.var[5]
    expected = 0.5 * np.log(1.5) + (v + 0.49) / (2 * 1.5 * v) - 0.5
    np.testing.assert_allclose(layer.scores[5], expected, rtol=1e-3)
    np.testing.assert_allclose(np.delete(layer.scores, 5), 0, atol=1e-5)
    np.testing.assert_allclose(layer.threshold, layer.scores.mean() + 2 * layer.scores.std(ddof=1), rtol=1e-4)
    assert layer.mask.tolist() == [False] * 5 + [True] + [False] * 2
    np.testing.assert_array_equal(repaired.variables["params"]["scale"], ~layer.mask)
    np.testing.assert_array_equal(repaired.variables["params"]["bias"][5], 0 if form == "channel" else 6)


def test_nothing_is_cut_where_nothing_differs():
    """In a layer of eight no z-score exceeds 7 / sqrt(8) = 2.47, so that u = 3 cuts nothing at all."""
    for suspect, u in ((recorded()[0], 1e3), (recorded(extra=(9, 9))[0], 3.0)):
        repaired, report = bnp(tiny.network(suspect), DATA, u=u)
        assert not report.layers[0].mask.any() and report.notes == ()
        np.testing.assert_array_equal(repaired.variables["params"]["scale"], suspect["params"]["scale"])


def test_channels_that_do_not_vary_are_left_alone():
    suspect, _ = recorded(extra=(0, 0), channel=2)
    _, report = bnp(tiny.network(suspect), DATA, u=1.0)
    assert report.layers[0].undefined.tolist() == [k == 2 for k in range(8)] and not report.layers[0].mask[2]
    assert "1 channels do not vary" in report.notes[0]


def test_layers_without_records_are_compared_with_mixed_images():
    apply_fn, variables, _ = zoo.case("preactresnet18:width=0.125")
    images = np.random.default_rng(2).uniform(size=(6, 32, 32, 3)).astype(np.float32)
    network, data = zoo.network(apply_fn, variables, images), Data(Batch(images, np.zeros(6, np.int32)))
    _, report = bnp(network, data)
    # Three shortcuts and the last convolution have no norm of their own.
    normed = [layer.name for layer in report.layers]
    assert len(normed) == 16 and all(" -> " in name for name in normed)
    assert "have no running statistics and were left alone" in report.notes[0]
    _, report = bnp(network, data, layers="norms")
    assert [layer.name for layer in report.layers] == normed and report.notes == ()
    _, report = bnp(network, Data(data.clean, images))
    others = [layer for layer in report.layers if layer.name not in normed]
    assert len(others) == len(report.layers) - 16 > 0 and report.notes == ()
    for layer in others:  # the same images on both sides
        np.testing.assert_allclose(layer.scores, 0, atol=1e-6)


def test_what_is_missing_or_wrong_is_said():
    apply_fn, variables, images = zoo.case("mlp")
    with pytest.raises(UnscorableError, match=r"running statistics, got none among 2; bnp .* data\.mixed"):
        bnp(zoo.network(apply_fn, variables, images), Data(Batch(images, np.arange(3))))
    for name, value in {"u": -1, "log_factor": 0, "batch_size": 0, "layers": "some", "form": "bias"}.items():
        with pytest.raises(OptionError, match=f"for {name} of bnp, got {value!r}"):
            bnp(tiny.network(VARIABLES), DATA, **{name: value})
