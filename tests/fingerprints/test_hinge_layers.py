"""Which ReLUs are found, how deep they lie, and which networks are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxguard.errors import FingerprintError
from jaxguard.fingerprints import hinge_layers
from jaxguard.graph import channel_graph

WEIGHTS = {name: np.eye(6, dtype=np.float32) for name in "abc"}
X = np.zeros((1, 6), np.float32)


def found(apply_fn, weights=WEIGHTS, images=X):
    layers, smooth = hinge_layers.hinge_layers(channel_graph(apply_fn, weights, images))
    return [(layer.name, layer.depth, layer.is_linear, layer.units) for layer in layers], smooth


def in_zoo(name):
    apply_fn, variables, images = zoo.case(name)
    return found(apply_fn, variables, images)


@pytest.mark.parametrize(
    ("name", "count", "first", "third"),
    [
        ("resnet20:width=0.5", 19, ("conv1", 1, True, 8 * 32 * 32), ("layer1_0/conv2", 3, False, 8 * 32 * 32)),
        (
            "wideresnet-16-1:width=0.5",
            13,
            ("conv1", 1, True, 8 * 32 * 32),
            ("block1_layer_0/conv2+conv1", 3, False, 8 * 32 * 32),
        ),
        ("cnn", 6, ("conv1", 1, True, 8 * 16 * 16), ("conv3", 3, False, 16 * 8 * 8)),
    ],
)
def test_relus_of_convolutional_networks(name, count, first, third):
    layers, smooth = in_zoo(name)
    assert len(layers) == count and smooth is None
    assert (layers[0], layers[2]) == (first, third)
    assert [depth for _, depth, _, _ in layers] == list(range(1, count + 1))


@pytest.mark.parametrize("name", ["nnx", "per_example", "standardised"])
def test_relus_of_networks_that_others_write(name):
    layers, smooth = in_zoo(name)
    assert smooth is None and layers[0][1:3] == (1, True)


@pytest.mark.parametrize(
    "relu",
    [
        jax.nn.relu,
        lambda x: jnp.maximum(0.0, x),
        lambda x: jnp.maximum(x, jnp.zeros_like(x)),
        jax.nn.leaky_relu,
        jax.nn.relu6,
        lambda x: jnp.where(x < 0, 0, x),
    ],
)
def test_every_way_to_write_a_relu(relu):
    layers, smooth = found(lambda v, x: relu(x @ v["a"]) @ v["b"])
    assert (layers, smooth) == ([("a", 1, True, 6)], None)


def test_depth_counts_the_relus_on_the_longest_path():
    def model(v, x):
        first = jax.nn.relu(x @ v["a"])
        return jax.nn.relu(first @ v["b"] + x) + jax.nn.relu(x @ v["c"])

    assert found(model)[0] == [("a", 1, True, 6), ("b", 2, False, 6), ("c", 1, True, 6)]


def test_what_is_behind_a_pooling_is_not_linear_in_the_image():
    def model(v, x):
        pooled = (x @ v["a"]).reshape(-1, 3, 2).max(-1)
        return jax.nn.relu(pooled) @ v["b"]

    assert found(model, {"a": WEIGHTS["a"], "b": np.ones((3, 2), np.float32)})[0] == [("a", 1, False, 3)]


@pytest.mark.parametrize("name", ["vit", "mobile", "fused_attention", "scanned_layers", "unet"])
def test_networks_without_piecewise_linear_relus_are_refused(name):
    with pytest.raises(FingerprintError, match=r"expected a network with ReLUs .*, got `\w+` at .* instead"):
        in_zoo(name)


def test_a_smooth_network_is_refused_with_the_place_where_it_is_smooth():
    with pytest.raises(FingerprintError, match=r"got `erf\w*` at .*\.py.*use a fingerprint that needs no ReLU"):
        found(lambda v, x: jax.nn.gelu(x @ v["a"], approximate=False) @ v["b"])
    with pytest.raises(FingerprintError, match="got none at all, a linear model instead"):
        found(lambda v, x: x @ v["a"] @ v["b"])


def test_a_smooth_function_after_relus_is_named():
    layers, smooth = found(lambda v, x: jax.nn.softmax(jax.nn.relu(x @ v["a"]) @ v["b"]))
    assert layers == [("a", 1, True, 6)]
    assert smooth is not None and smooth.startswith("`exp` at ")
    layers, smooth = found(lambda v, x: jax.nn.relu(jax.nn.relu(x @ v["a"]) * jax.nn.relu(x @ v["b"])) @ v["c"])
    assert [name for name, *_ in layers] == ["a", "b"]
    assert smooth is not None and smooth.startswith("`mul` at ")


def test_a_relu_of_a_product_of_two_pixels_or_of_rounded_ones_is_not_found():
    for model in (
        lambda v, x: jax.nn.relu((x @ v["a"]) ** 2) @ v["b"],
        lambda v, x: jax.nn.relu(jnp.round(x @ v["a"])) @ v["b"],
        lambda v, x: jax.nn.relu(1 / (x @ v["a"])) @ v["b"],
    ):
        with pytest.raises(FingerprintError, match="expected a network with ReLUs"):
            found(model)


def test_layers_by_depth():
    apply_fn, variables, images = zoo.case("mlp")
    layers, _ = hinge_layers.hinge_layers(channel_graph(apply_fn, variables, images))
    assert hinge_layers.of_depths(layers, (2, 7)) == {2: (layers[1],)}
    with pytest.raises(FingerprintError, match=r"expected layers among \[1, 2\].*got \(3,\)"):
        hinge_layers.of_depths(layers, (3,))
