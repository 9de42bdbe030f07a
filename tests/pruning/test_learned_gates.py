import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxguard.errors import UnscorableError
from jaxguard.graph import channel_graph
from jaxguard.pruning.learned_gates import BatchStatistics, GateGradient, gating, learn, ungated
from jaxguard.types import Batch

KEY = jax.random.key(0)
MODELS = ("mlp", "cnn", "wideresnet", "vit", "mobile", "nnx", "per_example", "fused_attention", "scanned_layers")


@functools.cache
def of(name):
    apply_fn, variables, images = zoo.case(name)
    return apply_fn, variables, images, zoo.graph(name)


def drawn(where, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.uniform(0.2, 1, layer.channels), jnp.float32) for layer in where.layers]


# ---------------------------------------------------------------- gates


@pytest.mark.parametrize("name", MODELS)
def test_gates_in_the_weights_are_the_graphs_gates(name):
    """Wherever a layer is what one producer makes for itself, and none of its leaves is used twice."""
    apply_fn, variables, images, graph = of(name)
    where = gating(graph, "all", "channel")
    own, gates = {}, []
    for layer, gate in zip(where.layers, drawn(where), strict=True):
        producer = graph.producers[layer.sources[0][0]]
        reused = sum(other.kernel == producer.kernel for other in graph.producers) > 1
        is_own = len(layer.sources) == 1 and producer.affine == layer.affine and not reused
        own |= {producer.name: gate} if is_own else {}
        gates.append(gate if is_own else jnp.ones_like(gate))
    gated = where.apply(variables, gates)
    logits, expected = jax.jit(apply_fn), jax.jit(graph.run)(variables, jnp.asarray(images), own)
    scale = max(1, float(np.abs(expected).max()))
    assert own and not np.allclose(expected, logits(variables, images), atol=1e-3 * scale)
    np.testing.assert_allclose(logits(gated, images), expected, atol=2e-5 * scale)
    for ours, theirs in zip(jax.tree.leaves(gated), jax.tree.leaves(variables), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


@pytest.mark.parametrize("form", ["channel", "weight"])
@pytest.mark.parametrize("name", MODELS)
def test_a_closed_gate_is_a_cut(name, form):
    _, variables, _, graph = of(name)
    where = gating(graph, "all", form)
    masks = [np.random.default_rng(k).random(layer.channels) < 0.3 for k, layer in enumerate(where.layers)]
    gated = where.apply(variables, [jnp.asarray(~mask, jnp.float32) for mask in masks])
    for ours, theirs in zip(jax.tree.leaves(gated), jax.tree.leaves(where.cut(variables, masks)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("model", ["standardised", "lora"])
def test_a_computed_kernel_is_gated_by_what_scales_it(model):
    """The gain of a standardised kernel, both terms of an adapter: as gates in the traced program."""
    apply_fn, variables, images, graph = of(model) if model == "standardised" else adapted()
    where = gating(graph, "all", "channel")
    gates = [jnp.linspace(0.25, 0.75, layer.channels) for layer in where.layers]
    producers = [graph.producers[number].name for layer in where.layers for number in layer.uses]
    expected = graph.run(variables, images, dict(zip(producers, gates, strict=True)))
    got = apply_fn(where.apply(variables, gates), images)
    assert not np.allclose(expected, apply_fn(variables, images), rtol=1e-2)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def adapted():
    """A dense layer `w + a @ b` before the head."""

    def apply_fn(v, x):
        return jax.nn.relu(x @ (v["w"] + v["a"] @ v["b"])) @ v["head"]

    shapes = {"w": (3, 4), "a": (3, 2), "b": (2, 4), "head": (4, 2)}
    structs = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    variables = zoo.randomise(structs)
    return apply_fn, variables, zoo.images(3), channel_graph(apply_fn, variables, zoo.images(3))


def norm_then_dense():
    @zoo.usual
    def apply_fn(v, x):
        x = (x @ v["w"] - v["mean"]) / jnp.sqrt(v["var"] + 1e-5) * v["scale"] + v["bias"]
        return (jax.nn.relu(x) @ v["w2"] + v["b2"]) @ v["head"]

    shapes = {"w": (3, 4), "mean": (4,), "var": (4,), "scale": (4,), "bias": (4,), "w2": (4, 5), "b2": (5,)}
    structs = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in (shapes | {"head": (5, 2)}).items()}
    variables = zoo.randomise(structs)
    return variables, channel_graph(apply_fn, variables, zoo.images(3))


@pytest.mark.parametrize(("form", "weight", "bias"), [("channel", 0.625, 0.4375), ("weight", 0.75, 0.875)])
def test_noise_is_relative_to_weight_and_bias(form, weight, bias):
    variables, graph = norm_then_dense()
    where = gating(graph, "all", form)
    assert [layer.channels for layer in where.layers] == [4, 5]
    noise = tuple(tuple(jnp.full(c, number) for c in (4, 5)) for number in (0.25, -0.125))
    gated = where.apply(variables, [jnp.full(4, 0.5), jnp.full(5, 0.5)], noise)
    for name, factor in {"scale": weight, "bias": bias, "w2": weight, "b2": bias}.items():
        np.testing.assert_allclose(gated[name], factor * variables[name], rtol=1e-6)
    for name in ("w", "mean", "var", "head"):
        np.testing.assert_array_equal(gated[name], variables[name])


def test_which_layers_have_gates():
    _, graph = norm_then_dense()
    assert [layer.name for layer in gating(graph, "norms", "channel").layers] == ["w -> scale"]
    with pytest.raises(UnscorableError, match="layers='norms' among"):
        gating(of("mlp")[3], "norms", "channel")


def test_a_norm_without_a_scale_is_named():
    @zoo.usual
    def apply_fn(v, x):
        x = jax.nn.relu((x @ v["w"] - v["mean"]) / jnp.sqrt(v["var"] + 1e-5))
        return jax.nn.relu(x @ v["w2"]) @ v["head"]

    shapes = {"w": (3, 4), "mean": (4,), "var": (4,), "w2": (4, 5), "head": (5, 2)}
    variables = zoo.randomise({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()})
    graph = channel_graph(apply_fn, variables, zoo.images(3))
    assert [layer.name for layer in gating(graph, "all", "channel").layers] == ["w2"]
    (note,) = ungated(graph)
    assert note.startswith("1 layers behind a norm without a scale") and "w -> " in note
    assert ungated(norm_then_dense()[1]) == ()


# ---------------------------------------------------------------- learning


def test_three_steps_of_gates_by_hand():
    rng = np.random.default_rng(3)
    images, labels = rng.normal(size=(6, 2)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2], np.int32)
    v = {"w1": rng.normal(size=(2, 4)).astype(np.float32), "w2": 3 * rng.normal(size=(4, 3)).astype(np.float32)}

    def linear(v, x):
        return (x @ v["w1"]) @ v["w2"]

    graph = channel_graph(linear, v, images)
    where = gating(graph, "all", "channel")
    (found,), curves = learn(
        GateGradient(where, BatchStatistics(lambda v, x: (linear(v, x), v)), alpha=0.5), where.ones(), {"model": v},
        Batch(images, labels), KEY,
        steps=3, batch_size=99, learning_rate=0.4, momentum=0.9, augment=None, progress=None,
    )  # fmt: skip
    m, velocity, hidden = np.ones(4), 0.0, (images @ v["w1"]).astype(np.float64)
    trace = []
    for step in range(3):
        logits = (hidden * m) @ v["w2"]
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        np.testing.assert_allclose(curves["loss"][step], -np.log(p[np.arange(6), labels]).mean(), rtol=1e-5)
        gradient = (((p - np.eye(3)[labels]) / 6 @ v["w2"].T) * hidden).sum(0)
        velocity = 0.9 * velocity + 0.5 * gradient
        trace.append(m - 0.4 * velocity)
        m = np.clip(trace[-1], 0, 1)
    np.testing.assert_allclose(found, m, rtol=1e-4, atol=1e-6)
    assert min(map(np.min, trace)) < 0 and max(map(np.max, trace)) > 1  # both ends of the box were met


def test_no_step_leaves_the_gates_open():
    _, variables, images, graph = of("cnn")
    where = gating(graph, "all", "channel")
    gates, curves = learn(
        GateGradient(where, graph.apply_fn), where.ones(), {"model": variables}, Batch(images, np.arange(3)), KEY,
        steps=0, batch_size=2, learning_rate=0.1, momentum=0.9, augment=None, progress=None,
    )  # fmt: skip
    assert all((gate == 1).all() for gate in gates) and curves["loss"].shape == (0,)
