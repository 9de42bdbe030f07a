"""Factors by hand, and the function unchanged on every network of the zoo."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxguard import models
from jaxguard.errors import OptionError
from jaxguard.repairs import relative_change
from jaxguard.theft import THEFTS, TheftError
from jaxguard.types import Network

permutation, rescaling = THEFTS["permutation"], THEFTS["rescaling"]

KEY = jax.random.key(3)
RIGID = {"remat", "scanned_layers"}
"""Networks in which nothing is positively homogeneous."""


@functools.cache
def network(name):
    """The same function for every test, so that it is compiled once."""
    apply_fn, variables, images = zoo.case(name)
    return Network(variables, apply_fn, jax.ShapeDtypeStruct(images.shape[1:], images.dtype)), images


@functools.partial(jax.jit, static_argnums=0)
def logits(apply_fn, variables, images):
    return apply_fn(variables, images)


def assert_same_function(apply_fn, ours, theirs, images):
    ours, theirs = (np.asarray(logits(apply_fn, variables, images)) for variables in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def rescaled(apply_fn, shapes, images):
    """`{leaf: new / old}` of a rescaled model with random weights."""
    variables = zoo.randomise({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()})
    owner = Network(variables, apply_fn, jax.ShapeDtypeStruct(images.shape[1:], images.dtype))
    copy, _ = rescaling(owner, key=KEY)
    return {name: np.asarray(copy.variables[name] / variables[name]) for name in variables}


@pytest.mark.parametrize("name", zoo.ZOO)
def test_rescaling_leaves_the_logits_and_moves_the_weights(name):
    owner, images = network(name)
    if name in RIGID:
        with pytest.raises(TheftError, match="expected hidden channels whose scale cancels out, got none"):
            rescaling(owner, key=KEY)
        return
    copy, report = rescaling(owner, key=KEY, factor=8.0)
    assert_same_function(owner.apply_fn, copy.variables, owner.variables, images)
    assert max(relative_change(owner.variables, copy.variables).values()) > 0.5
    assert "hidden channels in" in report.notes[0]


@pytest.mark.parametrize(
    ("activation", "homogeneous"),
    [
        (jax.nn.relu, True),
        (lambda x: jax.nn.leaky_relu(x, 0.1), True),
        (lambda x: jnp.where(x > 0, x, 0.0), True),
        (lambda x: jnp.maximum(x, 0.5 * x), True),
        (jnp.abs, True),
        (lambda x: x, True),
        (jax.nn.relu6, False),
        (jax.nn.gelu, False),
        (jax.nn.silu, False),
        (jnp.tanh, False),
        (lambda x: x + 1.0, False),
        (lambda x: jnp.where(x > 1.0, x, 0.0), False),
        (jnp.round, False),
        (lambda x: x.astype(jnp.int32).astype(jnp.float32), False),
    ],
)
def test_activations(activation, homogeneous):
    def mlp(v, x):
        return activation(x @ v["w1"] + v["b1"][None]) @ v["w2"] + v["b2"][None]

    shapes = {"w1": (4, 5), "b1": (5,), "w2": (5, 6), "b2": (6,)}
    if not homogeneous:
        with pytest.raises(TheftError, match="expected hidden channels whose scale cancels out, got none among 1"):
            rescaled(mlp, shapes, jnp.ones((1, 4)))
        return
    ratio = rescaled(mlp, shapes, jnp.ones((1, 4)))
    factors = ratio["b1"]
    assert np.ptp(factors) > 0.5
    np.testing.assert_allclose(ratio["w1"], np.tile(factors, (4, 1)), rtol=1e-5)
    np.testing.assert_allclose(ratio["w2"], np.tile(1 / factors[:, None], (1, 6)), rtol=1e-5)
    np.testing.assert_array_equal(ratio["b2"], 1)


def test_normalised_channels_take_the_factor_after_their_norm():
    def model(v, x):
        h = x @ v["w1"]
        return jax.nn.relu(h / (jnp.linalg.norm(h, axis=-1, keepdims=True) + 1e-6) * v["scale"][None]) @ v["w2"]

    ratio = rescaled(model, {"w1": (4, 5), "scale": (5,), "w2": (5, 6)}, jnp.ones((1, 4)))
    np.testing.assert_array_equal(ratio["w1"], 1)
    np.testing.assert_allclose(ratio["w2"], np.tile(1 / ratio["scale"][:, None], (1, 6)), rtol=1e-5)
    assert np.ptp(ratio["scale"]) > 0.5


def test_a_recurrent_kernel_scales_on_both_sides():
    """The kernel of a layer that is used twice is scaled by c on its outputs and 1 / c on its inputs."""
    relu = jax.nn.relu
    model = lambda v, x: relu(relu(x @ v["in"]) @ v["loop"]) @ v["loop"] @ v["out"]  # noqa: E731
    ratio = rescaled(model, {"in": (4, 5), "loop": (5, 5), "out": (5, 6)}, jnp.ones((1, 4)))
    factors = ratio["in"][0]
    np.testing.assert_allclose(ratio["loop"], factors / factors[:, None], rtol=1e-5)
    np.testing.assert_allclose(ratio["out"], np.tile(1 / factors[:, None], (1, 6)), rtol=1e-5)


def test_a_saturation_that_no_image_reaches_is_noticed():
    """Tiny weights keep ReLU6 far from 6; channels are tested at a thousand times their size."""

    def mlp(v, x):
        return jax.nn.relu6(0.01 * (x @ v["w1"])) @ v["w2"]

    with pytest.raises(TheftError, match="got none among 1 groups"):
        rescaled(mlp, {"w1": (4, 5), "w2": (5, 6)}, jnp.ones((1, 4)))


@pytest.mark.parametrize("spec", ["cnn:width=0.25", "wideresnet-10-1:width=0.25"])
def test_a_copy_is_the_owner_in_training_mode_too(spec):
    model = models.build(spec, num_classes=10, input_shape=(8, 8, 3))
    owner, images = model.network(zoo.randomise(model.shapes())), zoo.images(8, 8, 3)
    copy, _ = rescaling(owner, key=KEY)
    changed = relative_change(owner.variables, copy.variables)
    assert changed and not any(path.startswith("batch_stats") for path in changed)
    (ours, after), (theirs, _) = (jax.jit(model.train_fn)(net.variables, images) for net in (copy, owner))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert jax.tree.structure(after) == jax.tree.structure(owner.variables)


def test_factors_stay_within_their_bounds_and_reach_far():
    model = models.build("mlp:hidden=256", num_classes=4, input_shape=(2, 2, 1))
    owner = model.network(zoo.randomise(model.shapes()))
    copy, _ = rescaling(owner, key=KEY, factor=4.0)
    ratio = np.asarray(copy.variables["params"]["fc1"]["bias"] / owner.variables["params"]["fc1"]["bias"])
    assert 1 / 4 <= ratio.min() < 1 / 3 and 3 < ratio.max() <= 4
    assert 0.3 < np.mean(ratio > 1) < 0.7


@pytest.mark.parametrize("factor", [0.5, np.inf, np.nan])
def test_factors_out_of_range_are_refused(factor):
    with pytest.raises(OptionError, match="for factor of rescaling"):
        rescaling(network("mlp")[0], key=KEY, factor=factor)


def test_a_flattened_map_is_read_at_every_position():
    def model(v, x):
        h = jnp.broadcast_to(jax.nn.relu(x @ v["w1"])[:, None], (len(x), 5, 3))
        return h.reshape(len(x), -1) @ v["w2"]

    ratio = rescaled(model, {"w1": (4, 3), "w2": (15, 6)}, jnp.ones((1, 4)))
    np.testing.assert_allclose(ratio["w2"][:, 0], np.tile(1 / ratio["w1"][0], 5), rtol=1e-5)


def test_what_cannot_be_rescaled_is_named():
    _, report = rescaling(network("vit")[0], key=KEY)
    left = ["Dense_1", "Dense_3", *(f"MultiHeadDotProductAttention_{k}/query" for k in range(2))]  # GELU, and softmax
    assert report.notes[1] == f"No factor cancels out in {', '.join(left)}."


# ---------------------------------------------------------------- permutation


@pytest.mark.parametrize("name", zoo.ZOO)
def test_permutation_leaves_the_logits_and_moves_the_weights(name):
    owner, images = network(name)
    copy, report = permutation(owner, key=KEY)
    assert_same_function(owner.apply_fn, copy.variables, owner.variables, images)
    moved = relative_change(owner.variables, copy.variables)
    assert moved and "groups of hidden channels were permuted" in report.notes[0]
    for path in moved:
        before, after = (
            np.asarray(dict(zip(owner.graph.program.paths, jax.tree.leaves(v), strict=True))[path])
            for v in (owner.variables, copy.variables)
        )
        np.testing.assert_array_equal(np.sort(before, axis=None), np.sort(after, axis=None))


def test_disguises_add_up():
    owner, images = network("resnet8")
    copy, _ = permutation(rescaling(owner, key=KEY)[0], key=KEY)
    assert_same_function(owner.apply_fn, copy.variables, owner.variables, images)


def test_a_key_is_needed():
    for theft in (permutation, rescaling):
        with pytest.raises(TheftError, match="expected a key for what"):
            theft(network("mlp")[0])
