"""Exponents by hand, and the function unchanged on every network of the zoo."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxguard import models
from jaxguard.defenses.protocol import relative_change
from jaxguard.graph import channel_graph
from jaxguard.theft import Network, TheftError, permutation, rescaling, symmetries

KEY = jax.random.key(3)
RIGID = {"remat", "scanned_layers"}
"""Networks in which nothing is positively homogeneous."""


@functools.cache
def network(name):
    """The same function for every test, so that it is compiled once."""
    apply_fn, variables, images = zoo.ZOO[name]()
    return Network(variables, apply_fn, graph=channel_graph(apply_fn, variables, images)), images


@functools.partial(jax.jit, static_argnums=0)
def logits(apply_fn, variables, images):
    return apply_fn(variables, images)


def assert_same_function(apply_fn, ours, theirs, images):
    ours, theirs = (np.asarray(logits(apply_fn, variables, images)) for variables in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def places_of(apply_fn, shapes, images, pinned=()):
    """`{group: ({(path, axis): exponent}, J)}`, exponents of one-dimensional symmetries, the first nonzero one 1."""
    variables = {name: jnp.ones(shape) for name, shape in shapes.items()}
    found = {}
    for one in symmetries(channel_graph(apply_fn, variables, images), pinned):
        first = one.exponents[0][np.flatnonzero(np.abs(one.exponents[0]) > 1e-9)[0]]
        row = (one.exponents[0] / first).round(6) + 0.0
        keyed = {(place.path, place.axis): float(value) for place, value in zip(one.places, row, strict=True) if value}
        found[one.name] = (keyed, len(one.exponents))
    return found


@pytest.mark.parametrize("name", zoo.ZOO)
def test_rescaling_leaves_the_logits_and_moves_the_weights(name):
    owner, images = network(name)
    if name in RIGID:
        with pytest.raises(TheftError, match="expected hidden channels whose scale cancels out, came none"):
            rescaling(owner, key=KEY)
        return
    copy, report = rescaling(owner, key=KEY, factor=8.0)
    assert_same_function(owner.apply_fn, copy.variables, owner.variables, images)
    assert max(relative_change(owner.variables, copy.variables).values()) > 0.5
    assert "hidden channels in" in report.notes[0]


@pytest.mark.parametrize("name", ["cnn", "preactresnet18", "vgg11", "densenet", "vit"])
def test_every_direction_is_a_symmetry(name):
    """Also one by one, and for running statistics, which rescaling leaves alone."""
    owner, images = network(name)
    rng, variables = np.random.default_rng(0), dict(owner.variables)
    leaves = dict(zip(owner.graph.program.paths, jax.tree.leaves(variables), strict=True))
    found = symmetries(owner.graph)
    assert found
    for one in found:
        assert np.linalg.matrix_rank(one.exponents) == len(one.exponents)
        for exponents in one.exponents:
            factors = rng.uniform(0.5, 2.0, one.size)
            for place, exponent in zip(one.places, exponents, strict=True):
                along = np.ones(leaves[place.path].shape[place.axis])
                along[place.positions] = factors**exponent
                shape = [-1 if axis == place.axis else 1 for axis in range(leaves[place.path].ndim)]
                leaves[place.path] = leaves[place.path] * along.reshape(shape).astype(np.float32)
    scaled = jax.tree.unflatten(jax.tree.structure(variables), [leaves[p] for p in owner.graph.program.paths])
    assert_same_function(owner.apply_fn, scaled, owner.variables, images)


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
        return activation(x @ v["w1"] + v["b1"]) @ v["w2"] + v["b2"]

    found = places_of(mlp, {"w1": (2, 3), "b1": (3,), "w2": (3, 4), "b2": (4,)}, jnp.ones((1, 2)))
    expected = ({("b1", 0): 1, ("w1", 1): 1, ("w2", 0): -1}, 1)
    assert found == ({"w1": expected} if homogeneous else {})


def test_a_square_is_measured_in_squares():
    mlp = lambda v, x: jnp.square(x @ v["w1"]) @ v["w2"]  # noqa: E731
    found = places_of(mlp, {"w1": (2, 3), "w2": (3, 4)}, jnp.ones((1, 2)))
    assert found == {"w1": ({("w1", 1): 1, ("w2", 0): -2}, 1)}


def test_a_gate_by_its_own_channels():
    mlp = lambda v, x: ((x @ v["a"]) * jax.nn.relu(x @ v["b"])) @ v["c"]  # noqa: E731
    found = places_of(mlp, {"a": (2, 3), "b": (2, 3), "c": (3, 4)}, jnp.ones((1, 2)))
    assert found["a"][1] == 2  # either factor, the third kernel over the product of both


def test_what_is_compared_with_a_channel_scales_with_it():
    mlp = lambda v, x: jnp.maximum(x @ v["w1"], v["floor"]) @ v["w2"]  # noqa: E731
    found = places_of(mlp, {"w1": (2, 3), "floor": (3,), "w2": (3, 4)}, jnp.ones((1, 2)))
    assert found == {"w1": ({("floor", 0): 1, ("w1", 1): 1, ("w2", 0): -1}, 1)}


def test_normalised_channels_have_no_scale_of_their_own():
    def model(v, x):
        h = x @ v["w1"]
        return (h / (jnp.linalg.norm(h, axis=-1, keepdims=True) + 1e-6) * v["scale"]) @ v["w2"]

    found = places_of(model, {"w1": (2, 3), "scale": (3,), "w2": (3, 4)}, jnp.ones((1, 2)))
    assert found == {"w1": ({("scale", 0): 1, ("w2", 0): -1}, 1)}


def test_a_recurrent_kernel_scales_on_both_sides():
    """The kernel of a layer that is used twice is scaled by c on its outputs and 1 / c on its inputs."""
    relu = jax.nn.relu
    model = lambda v, x: relu(relu(x @ v["in"]) @ v["loop"]) @ v["loop"] @ v["out"]  # noqa: E731
    found = places_of(model, {"in": (2, 3), "loop": (3, 3), "out": (3, 4)}, jnp.ones((1, 2)))
    assert found == {"in": ({("in", 1): 1, ("loop", 0): -1, ("loop", 1): 1, ("out", 0): -1}, 1)}


@pytest.mark.parametrize("spec", ["cnn:width=0.25", "wideresnet-10-1:width=0.25"])
def test_a_copy_is_the_owner_in_training_mode_too(spec):
    model = models.build(spec, num_classes=10, input_shape=(8, 8, 3))
    owner, images = Network.of(model, zoo.randomise(model.shapes())), zoo.images(8, 8, 3)
    copy, _ = rescaling(owner, key=KEY)
    changed = relative_change(owner.variables, copy.variables)
    assert changed and not any(path.startswith("batch_stats") for path in changed)
    (ours, after), (theirs, _) = (jax.jit(model.train_fn)(net.variables, images) for net in (copy, owner))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert jax.tree.structure(after) == jax.tree.structure(owner.variables)


def test_factors_stay_within_their_bounds_and_reach_far():
    model = models.build("mlp:hidden=256", num_classes=4, input_shape=(2, 2, 1))
    owner = Network.of(model, zoo.randomise(model.shapes()))
    copy, _ = rescaling(owner, key=KEY, factor=4.0)
    ratio = np.asarray(copy.variables["params"]["fc1"]["bias"] / owner.variables["params"]["fc1"]["bias"])
    assert 1 / 4 <= ratio.min() < 1 / 3 and 3 < ratio.max() <= 4
    assert 0.3 < np.mean(ratio > 1) < 0.7


@pytest.mark.parametrize("factor", [0.5, np.inf, np.nan])
def test_factors_out_of_range_are_refused(factor):
    with pytest.raises(TheftError, match="finite factor >= 1"):
        rescaling(network("mlp")[0], key=KEY, factor=factor)


def test_a_flattened_map_bears_its_channels_name():
    """Its positions are a group of their own at the same place."""

    def model(v, x):
        h = jnp.broadcast_to(jax.nn.relu(x @ v["w1"])[:, None], (len(x), 5, 3))
        return h.reshape(len(x), -1) @ v["w2"]

    found = places_of(model, {"w1": (2, 3), "w2": (15, 4)}, jnp.ones((1, 2)))
    assert found == {"w1": ({("w1", 1): 1, ("w2", 0): -1}, 1)}


def test_what_cannot_be_rescaled_is_named():
    _, report = rescaling(network("vit")[0], key=KEY)
    assert report.notes[1] == "No factor cancels out in Dense_1, Dense_3."  # before GELU


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
    owner, images = network("resnet20")
    copy, _ = permutation(rescaling(owner, key=KEY)[0], key=KEY)
    assert_same_function(owner.apply_fn, copy.variables, owner.variables, images)


def test_graph_and_key_are_asked_for():
    owner, _ = network("mlp")
    for theft in (permutation, rescaling):
        with pytest.raises(TheftError, match="expected a key"):
            theft(owner)
        with pytest.raises(TheftError, match=r"expected a channel graph, came None in owner\.graph"):
            theft(Network(owner.variables, owner.apply_fn), key=KEY)
