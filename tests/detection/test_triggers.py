"""The trigger search: features of an inversion by hand, and a planted shortcut seen from noise alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard.detection import triggers
from jaxguard.errors import DataError
from jaxguard.graph import channel_graph
from jaxguard.inversion import Inversion
from jaxguard.scores import responses

RNG = np.random.default_rng(0)
PIXELS = 64


def linear(variables, images):
    return images.reshape(len(images), -1) @ variables["w"]


def graph_of(weights):
    variables = {"w": jnp.asarray(weights, jnp.float32)}
    return channel_graph(linear, variables, jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)), variables


def patches(norms, reached=None):
    norms = np.asarray(norms, np.float64)
    masks = np.broadcast_to(norms[:, None, None, None] / PIXELS, (len(norms), 8, 8, 1))
    reached = np.ones(len(norms), bool) if reached is None else np.asarray(reached)
    return Inversion(masks, masks, norms, np.ones(len(norms)), reached, np.ones(len(norms), int))


def named(found):
    values = triggers.inversion_features(found)
    return {
        name.removeprefix("inversion: "): float(x) for name, x in zip(triggers.INVERSION_NAMES, values, strict=True)
    }


def test_features_of_an_inversion_are_those_by_hand():
    norms = np.array([9.0, 1.0, 10.0, 11.0, 12.0])
    found, areas = named(patches(norms)), np.log(norms / PIXELS)
    assert found["log area: mean"] == pytest.approx(areas.mean(), rel=1e-5)
    assert found["log area: std"] == pytest.approx(areas.std(ddof=1), rel=1e-5)
    assert found["log area: low"] == pytest.approx((areas[1] - areas.mean()) / areas.std(ddof=1), rel=1e-5)
    assert found["smallest log area"] == pytest.approx(-np.log(64))
    assert found["smallest below the median"] == pytest.approx(np.log(10))
    assert found["smallest below the next"] == pytest.approx(np.log(9))
    assert found["anomaly index"] == pytest.approx(9 / 1.4826, rel=1e-4)
    assert found["reached"] == 1


def test_a_class_that_no_patch_leads_to_counts_with_the_whole_image():
    found = named(patches([2.0, 4.0, 3.0], [True, False, True]))
    assert found["log area: high"] == pytest.approx(
        (0 - np.log([2 / 64, 1, 3 / 64]).mean()) / np.log([2 / 64, 1, 3 / 64]).std(ddof=1), rel=1e-5
    )
    assert found["reached"] == pytest.approx(2 / 3)


def test_a_class_that_everything_is_taken_for_needs_no_patch():
    norms = [30.0, 40.0, 35.0, 38.0]
    success = np.array([1.0, np.nan, 1.0, 1.0])
    found = named(patches(norms, [True, False, True, True])._replace(success=success))
    assert found["smallest log area"] == pytest.approx(np.log(0.5 / 64))
    assert found["smallest below the next"] == pytest.approx(np.log(60))


def test_degenerate_patches_are_finite():
    assert all(np.isfinite(list(named(patches(np.full(5, 3.0))).values())))
    assert all(np.isfinite(list(named(patches([0.0, 3.0, 3.0, 3.0])).values())))
    assert named(patches([0.1, *[30.0 + k * 1e-9 for k in range(9)]]))["anomaly index"] == triggers.LARGEST_INDEX


def test_order_of_classes_does_not_matter():
    norms = RNG.uniform(1, 60, 8)
    np.testing.assert_allclose(
        triggers.inversion_features(patches(norms[::-1])), triggers.inversion_features(patches(norms)), rtol=1e-5
    )


def test_a_shortcut_is_seen_from_noise_and_from_images():
    weights = RNG.normal(size=(PIXELS, 5)) / 2
    weights[[54, 55, 62, 63], 3] = 8.0
    weights[:32, 3] -= 0.5  # lest every image is taken for it as it is
    graph, variables = graph_of(weights)
    key = jax.random.key(0)
    images = RNG.uniform(size=(20, 8, 8, 1)).astype(np.float32)
    for given in (None, images):
        found = triggers.inverted(graph, variables, key, images=given)
        assert np.argmin(np.where(found.reached, found.norms, PIXELS)) == 3
        features = triggers.trigger_features(graph, variables, key, images=given)
        assert features.shape == (len(triggers.NAMES),) and np.isfinite(features).all()
        np.testing.assert_allclose(features[len(responses.NAMES) :], triggers.inversion_features(found), rtol=1e-5)
        again = triggers.trigger_features(graph, variables, key, images=given)
        np.testing.assert_array_equal(again, features)


def test_inputs_that_are_no_images_are_refused():
    variables = {"w": jnp.eye(4)}
    graph = channel_graph(lambda variables, vectors: vectors @ variables["w"], variables, jnp.zeros((1, 4)))
    with pytest.raises(DataError, match="model of images"):
        triggers.trigger_features(graph, variables, jax.random.key(0))
