"""Answers to noise: a model with a planted shortcut to one class, invariances, and what cannot be asked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard import models, surgery
from jaxguard.errors import DataError
from jaxguard.graph import channel_graph
from jaxguard.scores import responses
from tests.zoo import randomise

RNG = np.random.default_rng(0)
SHAPE = (8, 8, 1)


def linear(variables, images):
    return images.reshape(len(images), -1) @ variables["w"] + variables["b"][None]


def linear_graph(weights):
    variables = {"w": jnp.asarray(weights, jnp.float32), "b": jnp.zeros(weights.shape[1])}
    return channel_graph(linear, variables, jax.ShapeDtypeStruct((1, *SHAPE), np.float32)), variables


@functools.cache
def cnn():
    model = models.build("cnn:width=0.5", num_classes=5, input_shape=SHAPE)
    variables = randomise(model.shapes())
    return channel_graph(model.apply_fn, variables, jax.ShapeDtypeStruct((1, *SHAPE), np.float32)), variables


def rows(graph, variables):
    found = responses.class_responses(graph, variables)
    return dict(zip(responses.QUANTITIES, found, strict=True))


def test_noise_is_the_same_for_all_models_of_a_shape_and_lies_in_range():
    images = responses.noise_images((12, 10, 3))
    assert images.shape == (responses.IMAGES, 12, 10, 3) and images.dtype == np.float32
    assert images.min() >= 0 and images.max() <= 1
    responses.noise_images.cache_clear()
    np.testing.assert_array_equal(responses.noise_images((12, 10, 3)), images)
    brightness = sorted({round(float(mean), 1) for mean in images.mean((1, 2, 3))})
    assert brightness[0] == pytest.approx(0.3, abs=0.11) and brightness[-1] == pytest.approx(0.5, abs=0.11)
    assert not np.allclose(images[0], images[6])


def test_answers_of_a_linear_model_are_those_by_hand():
    weights = RNG.normal(size=(64, 4)).astype(np.float32)
    graph, variables = linear_graph(weights)
    found = rows(graph, variables)
    images = responses.noise_images(SHAPE)
    gradients = (weights - weights.mean(1, keepdims=True)).T
    np.testing.assert_allclose(found["pull"], np.linalg.norm(gradients, axis=1), rtol=1e-4)
    logits = images.reshape(-1, 64) @ weights
    np.testing.assert_allclose(found["none, logit"], logits.mean(0) - logits.mean(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found["none, probability"].sum(), 1, rtol=1e-5)
    for label, gradient in enumerate(gradients):
        moved = np.clip(images.reshape(-1, 64) + responses.STEP * 8 * gradient / np.linalg.norm(gradient), 0, 1)
        after = moved @ weights
        expected = (after[:, label] - after.mean(1)).mean()
        np.testing.assert_allclose(found["step, logit"][label], expected, rtol=1e-3)
        promise = np.where(gradient > 0, gradient * (1 - images.mean(0).ravel()), -gradient * images.mean(0).ravel())
        best = np.argsort(-promise)[:4]  # 6.25 % of 64 pixels
        patched = images.reshape(-1, 64).copy()
        patched[:, best] = gradient[best] > 0
        after = patched @ weights
        np.testing.assert_allclose(
            found["6.2 % set, logit"][label], (after[:, label] - after.mean(1)).mean(), rtol=1e-3, atol=1e-5
        )


def test_a_class_that_four_pixels_lead_to_stands_out():
    weights = RNG.normal(size=(64, 10)) / 8
    clean = rows(*linear_graph(weights))
    weights[[54, 55, 62, 63], 3] = 4.0
    planted = rows(*linear_graph(weights))
    for name in ("pull", "6.2 % set, probability", "6.2 % set, logit"):
        assert planted[name].argmax() == 3
        assert planted[name].std() > 1.5 * clean[name].std()


def test_order_of_channels_does_not_matter():
    graph, variables = cnn()
    changed = variables
    for group in graph.groups:
        if group.permutable:
            changed = surgery.permute(changed, group, RNG.permutation(group.size))
    ours, theirs = responses.response_features(graph, variables), responses.response_features(graph, changed)
    assert ours.shape == (len(responses.NAMES),) and np.isfinite(ours).all()
    np.testing.assert_allclose(theirs, ours, rtol=2e-2, atol=2e-3)


def test_order_of_classes_does_not_matter():
    weights, order = RNG.normal(size=(64, 6)).astype(np.float32), RNG.permutation(6)
    ours = responses.response_features(*linear_graph(weights))
    theirs = responses.response_features(*linear_graph(weights[:, order]))
    np.testing.assert_allclose(theirs, ours, rtol=1e-2, atol=1e-3)


def test_a_constant_model_has_no_asymmetry():
    found = dict(zip(responses.NAMES, responses.response_features(*linear_graph(np.zeros((64, 4)))), strict=True))
    assert all(np.isfinite(list(found.values())))
    assert found["response: none, probability: mean"] == pytest.approx(0.25)
    assert {value for name, value in found.items() if name.endswith((": std", ": high", ": skewness"))} == {0.0}


def test_inputs_that_are_no_images_are_refused():
    variables = {"w": jnp.eye(4)}
    graph = channel_graph(lambda variables, vectors: vectors @ variables["w"], variables, jnp.zeros((1, 4)))
    with pytest.raises(DataError, match=r"model of images \[H, W, C\], got one of inputs \(4,\)"):
        responses.response_features(graph, variables)
