import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxguard import models, surgery
from jaxguard.graph import channel_graph
from jaxguard.graph.tracing import trace


def variables(**shapes):
    return zoo.randomise({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()})


def evaluate(apply_fn, v, images):
    program = trace(apply_fn, v, images)
    known = dict(zip(program.leaves, jax.tree.leaves(v), strict=True))
    return program, program.evaluate({**known, program.images: images})[program.logits]


@pytest.mark.parametrize("reverse", [False, True])
def test_scans_with_carries_constants_and_results_of_every_kind_are_unrolled(reverse):
    """A carry that is handed on unchanged and a result that is an input are moved around by jax itself."""

    def apply_fn(v, x):
        def body(carry, layer):
            h, fixed = carry
            return (jnp.tanh(h @ layer["w"] + v["b"][None] + fixed), fixed), (h.sum(-1), layer["w"])

        (h, fixed), (sums, weights) = jax.lax.scan(body, (x, x * 2), v["layers"], reverse=reverse)
        return h + fixed + sums[0][:, None] * sums[-1][:, None] + weights.sum()

    v = {"b": jnp.ones(4), "layers": variables(w=(3, 4, 4))}
    images = zoo.images(4)
    program, got = evaluate(apply_fn, v, images)
    np.testing.assert_allclose(got, apply_fn(v, images), rtol=1e-5)
    assert [eqn.name for eqn in program.equations].count("dot_general") == 3
    assert "scan" not in {eqn.name for eqn in program.equations}


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_stack_and_unstack_become_concatenation_and_slices(axis):
    def apply_fn(v, x):
        first, *_, last = jnp.unstack(x, axis=axis)
        return jnp.stack([last, v["w"] * first, first], axis=axis)

    v, images = variables(w=()), zoo.images(3, 3)
    program, got = evaluate(apply_fn, v, images)
    np.testing.assert_allclose(got, apply_fn(v, images), rtol=1e-6)
    assert not {"stack", "unstack", "split"} & {eqn.name for eqn in program.equations}


@pytest.mark.parametrize("axis", [0, 1])
def test_split_becomes_slices(axis):
    def apply_fn(v, x):
        first, second, third = jnp.split(x, [1, 3], axis=axis)
        return jnp.concatenate([third * v["w"], first, second], axis=axis)

    v, images = variables(w=()), np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    program, got = evaluate(apply_fn, v, images)
    np.testing.assert_allclose(got, apply_fn(v, images), rtol=1e-6)
    assert [eqn.name for eqn in program.equations].count("slice") == 3


def test_channels_are_followed_through_stack_and_unstack():
    """Two branches stacked on a new axis and taken apart again, as a loop over a pyramid's levels does."""

    def apply_fn(v, x):
        branches = jnp.stack([jax.nn.relu(x @ v["a"]), jnp.tanh(x @ v["b"])], axis=1)
        left, right = jnp.unstack(branches, axis=1)
        return (left * right) @ v["head"]

    v, images = variables(a=(5, 6), b=(5, 6), head=(6, 3)), zoo.images(5)
    graph = channel_graph(apply_fn, v, images)
    (group,) = [group for group in graph.groups if group.permutable]
    assert {(member.path, member.axis) for member in group.members} == {("a", 1), ("b", 1), ("head", 0)}
    permuted = surgery.permute(v, group, np.roll(np.arange(6), 1))
    np.testing.assert_allclose(apply_fn(permuted, images), apply_fn(v, images), rtol=1e-5)


def test_a_leaf_that_is_unstacked_keeps_one_view_per_layer():
    def apply_fn(v, x):
        for w in jnp.unstack(v["layers"]):
            x = jax.nn.relu(x @ w)
        return x @ v["head"]

    v, images = variables(layers=(2, 5, 5), head=(5, 3)), zoo.images(5)
    graph = channel_graph(apply_fn, v, images)
    assert [p.name for p in graph.producers] == ["layers", "layers#2", "head"]
    for layer, (producer, kernel) in enumerate(zip(graph.producers[:2], graph.kernels(v), strict=False)):
        assert producer.kernel.index[0] == slice(layer, layer + 1)
        np.testing.assert_array_equal(kernel[:, 0], v["layers"][layer].T)
        cut = surgery.edit(v, {"layers": surgery.zero(producer.kernel, np.arange(5) == 2)})["layers"]
        np.testing.assert_array_equal(cut[layer][:, 2], 0)
        np.testing.assert_array_equal(cut[1 - layer], v["layers"][1 - layer])


@pytest.mark.parametrize(
    "parts_of", [lambda w: jnp.split(w, 3, axis=1), lambda w: [w.reshape(5, 3, 4)[:, k] for k in range(3)]]
)
def test_kernels_that_are_parts_of_one_leaf_keep_their_place_in_it(parts_of):
    def apply_fn(v, x):
        query, key, value = parts_of(v["qkv"])
        return jax.nn.relu(x @ query) * (x @ key) * (x @ value) @ v["head"]

    v, images = variables(qkv=(5, 12), head=(4, 2)), zoo.images(5)
    graph = channel_graph(apply_fn, v, images)
    views = [producer.kernel for producer in graph.producers if producer.kernel.path == "qkv"]
    assert [(view.index[1].start, view.index[1].stop) for view in views] == [(0, 4), (4, 8), (8, 12)]
    cut = surgery.edit(v, {"qkv": surgery.zero(views[1], np.array([True, False, False, True]))})["qkv"]
    np.testing.assert_array_equal(np.flatnonzero(np.all(cut == 0, axis=0)), [4, 7])


@pytest.mark.parametrize(
    "kernel_of", [lambda w: w.reshape(5, 4, 3)[:, :, 1], lambda w: w[:, :4] + w[:, 4:8], lambda w: w[:, ::3]]
)
def test_a_kernel_that_is_no_run_of_its_leaf_is_left_out(kernel_of):
    v, images = variables(w=(5, 12), head=(4, 2)), zoo.images(5)
    graph = channel_graph(lambda v, x: jax.nn.relu(x @ kernel_of(v["w"])) @ v["head"], v, images)
    assert [producer.name for producer in graph.producers] == ["head"]
    assert [(one.leaves, one.why) for one in graph.left_out] == [
        (("w",), "its kernel lies in no one leaf, but is computed from w")
    ]


def test_torchvision_pooling_of_large_images_is_traced():
    model = models.build("vgg11:width=0.0625,classifier=torchvision", num_classes=10, input_shape=(96, 96, 3))
    graph = channel_graph(model.apply_fn, model.shapes(), jax.ShapeDtypeStruct((1, 96, 96, 3), np.float32))
    assert len(graph.producers) == 11
