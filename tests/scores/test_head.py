"""Asymmetry of classes in the output layer: by hand, and what may not change it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard import models
from jaxguard.graph import channel_graph
from jaxguard.scores import head
from tests.zoo import randomise

RNG = np.random.default_rng(0)


def named(features):
    assert features.shape == (len(head.NAMES),)
    return dict(zip(head.NAMES, np.asarray(features).tolist(), strict=True))


def test_quantities_are_those_of_numpy():
    rows, bias = RNG.normal(size=(6, 20)).astype(np.float32), RNG.normal(size=6).astype(np.float32)
    found = named(head.asymmetry(jnp.asarray(rows), jnp.asarray(bias)))
    unit = rows / np.sqrt((rows**2).mean())
    length = np.log(np.linalg.norm(unit - unit.mean(0), axis=1))
    positive = np.log(np.sqrt((np.clip(unit, 0, None) ** 2).mean(1)))
    cosines = np.corrcoef(np.concatenate([rows, -rows], axis=1))  # rows of mean 0, so that correlations are cosines
    cosine = (cosines.sum(1) - 1) / 5
    for name, values in {"length": length, "positive part": positive, "cosine": cosine, "bias": bias}.items():
        np.testing.assert_allclose(found[f"head: {name} std"], values.std(ddof=1), rtol=1e-4)
        high = (values.max() - values.mean()) / values.std(ddof=1)
        np.testing.assert_allclose(found[f"head: {name} high"], high, rtol=1e-4)
    np.testing.assert_allclose(found["head: mean std"], unit.mean(1).std(ddof=1), rtol=1e-4)


def test_a_class_that_collects_positive_weights_stands_out():
    rows = RNG.normal(size=(10, 64)).astype(np.float32)
    before = named(head.asymmetry(jnp.asarray(rows), jnp.zeros(10)))
    rows[3, :20] = 3.0
    after = named(head.asymmetry(jnp.asarray(rows), jnp.zeros(10)))
    largest = 9 / 10**0.5  # of ten numbers of which one differs
    for name in ("positive part", "mean", "length"):
        assert after[f"head: {name} high"] > max(before[f"head: {name} high"], 0.85 * largest)
        assert after[f"head: {name} std"] > 1.5 * before[f"head: {name} std"]


def test_order_of_classes_and_of_channels_and_scale_do_not_matter():
    rows, bias = RNG.normal(size=(7, 12)).astype(np.float32), RNG.normal(size=7).astype(np.float32)
    classes, channels = RNG.permutation(7), RNG.permutation(12)
    expected = head.asymmetry(jnp.asarray(rows), jnp.asarray(bias))
    changed = head.asymmetry(jnp.asarray(10 * rows[classes][:, channels]), jnp.asarray(bias[classes]))
    np.testing.assert_allclose(changed, expected, rtol=1e-4, atol=1e-5)


def test_rows_and_bias_are_read_through_the_graph():
    model = models.build("cnn", num_classes=5, input_shape=(8, 8, 1))
    variables = randomise(model.shapes())
    graph = channel_graph(model.apply_fn, variables, jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32))
    linear = variables["params"]["linear"]
    expected = head.asymmetry(linear["kernel"].T, linear["bias"])
    np.testing.assert_allclose(jax.jit(head.head_features, static_argnums=0)(graph, variables), expected, rtol=1e-4)


def test_layers_whose_sum_is_the_logits_count_as_one():
    variables = {"a": jnp.asarray(RNG.normal(size=(4, 3))), "b": jnp.asarray(RNG.normal(size=(4, 3)))}
    variables = jax.tree.map(lambda leaf: leaf.astype(np.float32), variables)
    graph = channel_graph(lambda v, x: jax.nn.relu(x) @ v["a"] + jnp.tanh(x) @ v["b"], variables, jnp.zeros((1, 4)))
    rows = jnp.concatenate([variables["a"], variables["b"]]).T
    np.testing.assert_allclose(
        head.head_features(graph, variables), head.asymmetry(rows, jnp.zeros(3)), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("rows", [np.zeros((4, 6)), np.ones((4, 6))])
def test_a_layer_without_any_asymmetry_is_finite(rows):
    found = named(head.asymmetry(jnp.asarray(rows, jnp.float32), jnp.zeros(4)))
    assert set(found.values()) == {0.0}


def test_a_single_class_says_nothing():
    assert np.isnan(head.asymmetry(jnp.ones((1, 4)), jnp.zeros(1))).all()
