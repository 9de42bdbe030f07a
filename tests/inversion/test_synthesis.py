import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import zoo
from flax import linen as nn

from jaxguard import models, training
from jaxguard.errors import DataError, JaxguardError
from jaxguard.graph import channel_graph
from jaxguard.inversion import synthesise
from jaxguard.inversion.synthesis import _distances

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def trained():
    batch = tiny.images(256, jax.random.key(0))
    result = training.fit(tiny.train_fn, tiny.init(jax.random.key(1)), batch, KEY, steps=80, batch_size=64)
    return channel_graph(tiny.apply_fn, result.variables, batch.images), result.variables


# ---------------------------------------------------------------- what enters a BatchNorm


def entering(module, variables, images):
    """Mean and variance of what each BatchNorm is called with, by its path: Flax's own word."""
    seen = {}

    def listen(next_fn, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
            x = np.asarray(args[0], np.float64)
            seen["/".join(context.module.path)] = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return next_fn(*args, **kwargs)

    with nn.intercept_methods(listen):
        module.apply(variables, images)
    return seen


@pytest.mark.parametrize("spec", ["preactresnet18:width=0.125", "wideresnet-16-1:width=0.5", "vgg11:width=0.125"])
def test_begin_is_what_the_batch_norm_is_given(spec):
    model = models.build(spec, num_classes=10, input_shape=(32, 32, 3))
    variables, images = zoo.randomise(model.shapes()), zoo.images(32, 32, 3)
    graph = channel_graph(model.apply_fn, variables, images)
    expected = entering(model.module, variables, images)
    assert len(graph.affines) == len(expected) > 5
    program = graph.program_at(images)
    values = program.evaluate({**graph.leaves(program, variables), program.images: images})
    for affine in graph.affines:
        mean, var = expected[affine.name]
        array = values[affine.begin]
        assert [array.shape[k] for k in affine.begin_axes] == [affine.channels]
        others = tuple(k for k in range(array.ndim) if k not in affine.begin_axes)
        np.testing.assert_allclose(array.mean(others), mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(array.var(others), var, rtol=1e-3, atol=1e-4)


def test_begin_lies_behind_the_layers_own_bias():
    def apply_fn(v, x):
        b, mean, var, scale, bias = (v[name][None] for name in ("b", "mean", "var", "scale", "bias"))
        x = x @ v["w"] + b
        x = (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias
        return jax.nn.relu(x) @ v["head"]

    shapes = {"w": (5, 4), "head": (4, 3)} | dict.fromkeys(("b", "mean", "var", "scale", "bias"), (4,))
    variables = zoo.randomise({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()})
    images = zoo.images(5)
    graph = channel_graph(apply_fn, variables, images)
    program = graph.program_at(images)
    (affine,) = graph.affines
    values = program.evaluate({**graph.leaves(program, variables), program.images: images})
    w, b = (np.asarray(variables[name]) for name in "wb")
    np.testing.assert_allclose(values[affine.begin], images @ w + b, rtol=1e-5)
    leaves = {path: variables[path] for path in program.paths}
    x = np.asarray(values[affine.begin], np.float64)
    by_hand = (x.mean(0) - variables["mean"]) ** 2 / variables["var"] + (x.var(0) / variables["var"] - 1) ** 2
    np.testing.assert_allclose(_distances(affine, values, leaves), by_hand, rtol=1e-4)


def test_begin_of_channels_first_images():
    def apply_fn(v, x):
        x = jax.lax.conv_general_dilated(x, v["w"], (1, 1), "SAME")
        mean, var, scale, bias = (v[name][None, :, None, None] for name in ("mean", "var", "scale", "bias"))
        x = (x - mean) * jax.lax.rsqrt(var + 1e-5) * scale + bias
        return jax.nn.relu(x).mean((2, 3)) @ v["head"]

    shapes = {"w": (4, 3, 3, 3), "head": (4, 3)} | dict.fromkeys(("mean", "var", "scale", "bias"), (4,))
    variables = zoo.randomise({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()})
    images = zoo.images(3, 8, 8)
    graph = channel_graph(apply_fn, variables, images)
    program = graph.program_at(images)
    (affine,) = graph.affines
    values = program.evaluate({**graph.leaves(program, variables), program.images: images})
    x = np.asarray(jax.lax.conv_general_dilated(images, variables["w"], (1, 1), "SAME"), np.float64)
    expected = (x.mean((0, 2, 3)) - variables["mean"]) ** 2 / variables["var"]
    expected += (x.var((0, 2, 3)) / variables["var"] - 1) ** 2
    assert affine.begin_axes == (1,)
    np.testing.assert_allclose(_distances(affine, values, dict(variables)), expected, rtol=1e-4)


# ---------------------------------------------------------------- the images


def test_images_reach_their_labels_and_look_right_to_the_batch_norms(trained):
    graph, variables = trained
    labels = np.tile(np.arange(tiny.NUM_CLASSES), 6)
    made = synthesise(graph, variables, KEY, labels=labels, steps=120)
    assert made.images.shape == (24, *tiny.INPUT_SHAPE)
    assert made.images.min() >= 0 and made.images.max() <= 1
    assert made.success > 0.95 and made.norms == 1
    assert made.success == (np.asarray(tiny.apply_fn(variables, made.images)).argmax(-1) == labels).mean()
    assert made.distances.shape == (120,)
    assert made.distances[-1] < 0.05 * made.distances[0]
    assert made.source == "24 synthesised images (1 BatchNorms matched)"
    np.testing.assert_array_equal(made.labels, labels)


def test_the_statistics_term_is_what_brings_them_near(trained):
    graph, variables = trained
    labels = np.tile(np.arange(tiny.NUM_CLASSES), 6)
    matched, free = (
        synthesise(graph, variables, KEY, labels=labels, steps=60, statistics=weight) for weight in (10.0, 0.0)
    )
    assert matched.distances[0] == free.distances[0]
    assert matched.distances[-1] < 0.2 * free.distances[-1]


def test_the_same_key_gives_the_same_images(trained):
    graph, variables = trained
    one, same, other = (
        synthesise(graph, variables, key, labels=np.arange(4), steps=3).images for key in (KEY, KEY, jax.random.key(6))
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_smoothness_weighs():
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3)), jnp.float32)
    graph = channel_graph(lambda w, x: x.reshape(len(x), -1) @ w, weights, jnp.zeros((1, 8, 8, 1)))
    rough, smooth = (
        synthesise(graph, weights, KEY, labels=np.arange(3), steps=100, total_variation=weight).images
        for weight in (0.0, 5.0)
    )
    assert np.abs(np.diff(smooth, axis=1)).mean() < 0.5 * np.abs(np.diff(rough, axis=1)).mean()


def test_a_model_without_batch_norm_says_so():
    weights = jnp.eye(4)
    graph = channel_graph(lambda w, x: x.reshape(len(x), -1) @ w, weights, jnp.zeros((1, 2, 2, 1)))
    made = synthesise(graph, weights, KEY, labels=np.arange(4), steps=50)
    assert made.norms == 0 and np.isnan(made.distances).all()
    assert "no BatchNorm to match" in made.source
    assert made.success == 1


def test_a_broken_model_is_named(trained):
    graph, variables = trained
    broken = {**variables, "params": {**variables["params"], "linear": variables["params"]["linear"] * np.nan}}
    with pytest.raises(JaxguardError, match="expected a finite loss, got nan at step 0"):
        synthesise(graph, broken, KEY, labels=np.arange(4), steps=2)


@pytest.mark.parametrize("labels", [[], [4], [-1], [[0]]])
def test_labels_the_model_does_not_have_are_refused(trained, labels):
    with pytest.raises(DataError, match=r"labels \[B\] in \[0, 4\)"):
        synthesise(*trained, KEY, labels=np.array(labels, int))


@pytest.mark.parametrize("change", [{"steps": 0}, {"statistics": -1.0}, {"total_variation": -1.0}, {"l2": -1.0}])
def test_settings_out_of_range_are_refused(trained, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        synthesise(*trained, KEY, labels=np.arange(4), **change)
