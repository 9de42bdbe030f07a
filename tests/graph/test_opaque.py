"""Models with equations that nothing is known of: what is frozen, what is left out, what still holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from jax import lax
from jax.experimental import io_callback, pallas

from jaxguard import fusion, surgery
from jaxguard.errors import FingerprintError, GraphError, UnscorableError
from jaxguard.fingerprints import FINGERPRINTS, Owner
from jaxguard.graph import Coalitions, channel_graph, pairing
from jaxguard.types import Network

pytestmark = pytest.mark.usefixtures("usual_promotion")

WIDTH = 6


def _callback(function, x, **options):
    return jax.pure_callback(function, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims", **options)


def _kernel(source, target):
    target[...] = jnp.maximum(source[...], 0) * jnp.arange(1.0, WIDTH + 1)


def _pallas(x):
    return pallas.pallas_call(_kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)


def _until_small(x):
    return lax.while_loop(lambda h: jnp.abs(h).max() > 0.5, lambda h: h / 2 + jnp.roll(h, 1, -1) / 8, x)


def _gram(x):
    return x[..., None] * x[..., None, :] + jnp.eye(WIDTH)


HIDDEN = {
    "pure_callback": lambda x: _callback(lambda a: np.asarray(a)[..., ::-1].copy(), x),
    "pallas_call": _pallas,
    "io_callback": lambda x: io_callback(lambda a: np.asarray(a) * 2, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
    "while": _until_small,
    "long scan": lambda x: lax.scan(lambda h, _: (h - 0.001 * jnp.roll(h, 1, -1), None), x, None, length=300)[0],
    "fft": lambda x: jnp.fft.fft(x).real,
    "rfft of the batch": lambda x: jnp.fft.irfft(jnp.fft.rfft(x, axis=0), axis=0, n=x.shape[0]),
    "fft2": lambda x: jnp.fft.fft2(x[:, None] * jnp.ones((1, 2, 1))).imag.sum(1),
    "cholesky": lambda x: jnp.linalg.cholesky(_gram(x)).sum(-1),
    "svd": lambda x: jnp.linalg.svd(_gram(x), compute_uv=False),
    "eigh": lambda x: jnp.linalg.eigh(_gram(x))[0],
    "solve": lambda x: jnp.linalg.solve(_gram(x), x[..., None])[..., 0],
    "inverse": lambda x: (jnp.linalg.inv(_gram(x)) @ x[..., None])[..., 0],
    "sort": lambda x: jnp.sort(x, -1),
    "argsort": lambda x: x * jnp.argsort(x, -1),
    "top_k": lambda x: lax.top_k(x, WIDTH)[0],
    "cumsum": lambda x: jnp.cumsum(x, -1),
    "associative_scan": lambda x: lax.associative_scan(jnp.multiply, x, axis=-1),
    "reduce": lambda x: x + lax.reduce(x, np.float32(0), lambda a, b: a + 0.5 * b, (1,))[:, None],
    "dynamic slice": lambda x: lax.dynamic_slice_in_dim(x, jnp.argmax(x[0]) % 2, 4, 1) @ jnp.eye(4, WIDTH),
    "scatter": lambda x: x.at[:, jnp.argmax(x[0])].set(0.5),
    "scatter-add": lambda x: jnp.zeros_like(x).at[:, jnp.array([0, 1, 1, 2, 3, 5])].add(x),
    "scatter-mul": lambda x: x.at[:, :2].multiply(3.0),
    "histogram": lambda x: x + jnp.histogram(x, 4, (-1, 1))[0][0] + jnp.histogram(x[0], WIDTH, (-1, 1))[0],
    "bincount": lambda x: x + jnp.bincount((x > 0).astype(int).ravel(), length=WIDTH),
    "quantile": lambda x: x - jnp.quantile(x, 0.3, axis=-1, keepdims=True),
    "cond": lambda x: lax.cond(x.sum() > 0, lambda h: jnp.sort(h, -1), lambda h: h * 2, x),
    "cond with a callback": lambda x: lax.cond(x.sum() > 1e9, lambda h: _callback(_must_not_run, h), lambda h: h, x),
    "switch": lambda x: lax.switch(jnp.argmax(x[0]), [jnp.sin, jnp.cos, lambda h: jnp.cumsum(h, -1)], x),
    "map": lambda x: lax.map(lambda row: jnp.sort(row) * 2, x),
    "erf_inv": lambda x: lax.erf_inv(x / 9),
    "integers": lambda x: ((x * 8).astype(jnp.int32) // 3 & 7).astype(jnp.float32),
    "noise of a constant key": lambda x: x + jax.random.normal(jax.random.key(3), (WIDTH,)),
    "gamma of a constant key": lambda x: x * jax.random.gamma(jax.random.key(3), 2.0, (WIDTH,)),
    "random choice by data": lambda x: x + jax.random.normal(jax.random.key(jnp.argmax(x[0])), (WIDTH,)),
    "bits": lambda x: lax.bitcast_convert_type(lax.bitcast_convert_type(x, jnp.int32) & -2, jnp.float32),
    "approximate top": lambda x: x + lax.approx_max_k(x, 1)[0],
    "printing": lambda x: (jax.debug.print("{}", x), x)[1],
}
"""Name -> function of `[B, C]`."""


def _must_not_run(x):
    raise AssertionError("the branch that is not taken was run")


def network(hidden, seed=0):
    """Two layers, the function under test, a residual branch beside it, two more layers."""

    def apply_fn(v, x):
        first = jax.nn.relu(x @ v["a"]["kernel"] + v["a"]["bias"])
        side = jnp.tanh(x @ v["side"])
        second = hidden(first @ v["b"])
        third = jax.nn.relu(second @ v["c"])
        return (third + jax.nn.relu(side @ v["d"])) @ v["head"]

    shapes = {"a": {"kernel": (5, 7), "bias": (7,)}, "b": (7, WIDTH), "side": (5, 4), "c": (WIDTH, 8), "d": (4, 8)}
    shapes["head"] = (8, 3)
    structs = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )
    return apply_fn, zoo.randomise(structs), np.random.default_rng(seed).normal(size=(4, 5)).astype(np.float32)


@functools.cache
def case(name):
    apply_fn, variables, images = network(HIDDEN[name])
    return channel_graph(apply_fn, variables, images), apply_fn, variables, images


@pytest.mark.parametrize("name", HIDDEN)
def test_the_analysis_goes_on_and_its_promises_hold(name):
    graph, apply_fn, variables, images = case(name)
    plain = apply_fn(variables, images)
    np.testing.assert_allclose(graph.run(variables, images), plain, rtol=1e-4, atol=1e-5)
    # Every permutable group may be permuted, and those away from the function under test are permutable.
    free = [group for group in graph.groups if group.permutable]
    assert {"a", "side", "c"} <= {group.name for group in free}
    for group in free:
        permuted = surgery.permute(variables, group, np.roll(np.arange(group.size), 1))
        np.testing.assert_allclose(apply_fn(permuted, images), plain, rtol=1e-4, atol=1e-5)
    # A cut is a gate of zero, and the layer of the logits is not among those that may be cut.
    layers = pairing.layers(graph)
    assert {layer.name for layer in layers} == {"a", "side", "b", "c", "d"}
    for layer in layers:
        mask = np.arange(layer.channels) % 3 == 1
        gated = graph.run(variables, images, {layer.name: jnp.asarray(~mask, jnp.float32)})
        cut = apply_fn(surgery.cut(graph, variables, layer, mask), images)
        np.testing.assert_allclose(cut, gated, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["pallas_call", "while", "cond", "histogram", "cholesky"])
def test_coalitions_behind_a_function_that_may_mix_images_go_one_by_one(name):
    graph, _, variables, images = case(name)
    game = Coalitions(graph, fold=3)
    gates = (np.random.default_rng(0).uniform(size=(3, game.players)) > 0.3).astype(np.float32)
    got = jax.jit(game.logits)(variables, game.start(variables, images), gates)
    for row, own in zip(got, gates, strict=True):
        parts = dict(zip((p.name for p in game.producers), game.split(own), strict=True))
        np.testing.assert_allclose(row, graph.run(variables, images, parts), rtol=1e-4, atol=1e-5)


def test_what_is_left_out_is_named_with_its_line_and_its_layers():
    graph, apply_fn, variables, images = case("pallas_call")
    (left,) = graph.left_out
    assert left.primitive == "pallas_call"
    assert "test_opaque.py" in left.where
    assert left.layers == ("b",)
    assert left.leaves == ()
    assert repr(graph).endswith("not analysed: `pallas_call`)")
    (group,) = [group for group in graph.groups if group.name == "b"]
    assert group.frozen == f"`pallas_call` at {left.where}"
    with pytest.raises(GraphError, match=r"analysed as a whole, got `pallas_call` at .*test_opaque\.py.*strict=True"):
        channel_graph(apply_fn, variables, images, strict=True)


def test_layers_inside_an_opaque_loop_are_named_as_not_scored():
    def apply_fn(v, x):
        h = lax.while_loop(lambda h: h.sum() > 1, lambda h: jnp.tanh(h @ v["inside"] + v["bias"]), x @ v["before"])
        return jax.nn.relu(h @ v["behind"]) @ v["head"]

    shapes = {"before": (3, 4), "inside": (4, 4), "bias": (4,), "behind": (4, 5), "head": (5, 2)}
    v = zoo.randomise({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()})
    graph = channel_graph(apply_fn, v, zoo.images(3))
    (left,) = graph.left_out
    assert (left.leaves, left.layers) == (("bias", "inside"), ("before",))
    assert graph.remarks[0].startswith("`while` at ")
    assert [layer.name for layer in pairing.layers(graph)] == ["before", "behind"]


@pytest.mark.parametrize("name", ["erf_inv", "integers", "map", "noise of a constant key", "printing", "sort", "fft"])
def test_what_is_followed_or_depends_on_nothing_is_not_reported(name):
    assert case(name)[0].left_out == ()


def test_a_print_is_left_out_and_said(capsys):
    graph, _, variables, images = case("printing")
    graph.run(variables, images)
    jax.effects_barrier()
    assert capsys.readouterr().out == ""
    (remark,) = graph.remarks
    assert remark.startswith("Left out of every run, since nothing reads what they return: `debug_")
    assert "test_opaque.py" in remark


def test_callbacks_are_not_called_by_the_analysis_and_not_at_all_where_their_result_is_unused():
    calls = []

    def seen(a):
        calls.append(a.shape)
        return np.asarray(a)

    def apply_fn(v, x):
        io_callback(seen, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        return _callback(seen, jax.nn.relu(x @ v["a"])) @ v["head"]

    v = zoo.randomise({"a": jax.ShapeDtypeStruct((3, 4), np.float32), "head": jax.ShapeDtypeStruct((4, 2), np.float32)})
    graph = channel_graph(apply_fn, v, zoo.images(3))
    assert calls == []
    jax.block_until_ready(graph.run(v, np.ones((2, 3), np.float32)))
    assert calls == [(2, 4)]
    assert "`io_callback`" in graph.remarks[-1]


@pytest.mark.parametrize(
    "last",
    [
        lambda y: y[:, np.array([2, 0, 1])],
        lambda y: y[:, ::2],
        lambda y: jnp.sort(y, -1),
        lambda y: lax.top_k(y, 2)[0],
        lambda y: _callback(np.asarray, y),
        lambda y: jnp.take_along_axis(y, jnp.argsort(y, -1)[:, :2], -1),
        lambda y: jnp.fft.rfft(y).real,
    ],
)
def test_the_layer_of_the_outputs_is_known_behind_what_picks_or_hides_classes(last):
    v = zoo.randomise({"a": jax.ShapeDtypeStruct((3, 4), np.float32), "head": jax.ShapeDtypeStruct((4, 3), np.float32)})
    graph = channel_graph(lambda v, x: last(jax.nn.relu(x @ v["a"]) @ v["head"]), v, zoo.images(3))
    assert [graph.producers[k].name for k in graph.outputs] == ["head"]


def test_a_kernel_made_of_two_leaves_is_left_out_and_the_rest_is_analysed():
    def apply_fn(v, x):
        return jax.nn.relu(jax.nn.relu(x @ jnp.concatenate([v["a"], v["b"]], axis=1)) @ v["c"]) @ v["head"]

    shapes = {"a": (3, 2), "b": (3, 2), "c": (4, 5), "head": (5, 2)}
    v = zoo.randomise({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()})
    images = zoo.images(3)
    graph = channel_graph(apply_fn, v, images)
    (left,) = graph.left_out
    assert left.leaves == ("a", "b")
    assert "computed from a, b" in str(left)
    assert [layer.name for layer in pairing.layers(graph)] == ["c"]
    with pytest.raises(GraphError, match="one leaf, but is computed from a, b"):
        channel_graph(apply_fn, v, images, strict=True)


def test_a_model_that_is_opaque_as_a_whole_is_refused_by_name():
    v, images = {"w": jnp.ones((3, 2))}, zoo.images(3)
    with pytest.raises(UnscorableError, match=r"`while` at .*it reads them: w"):
        channel_graph(lambda v, x: lax.while_loop(lambda h: h.sum() < 9, lambda h: h + v["w"].sum(), x), v, images)


def test_mutable_arrays_are_refused_by_name():
    def apply_fn(v, x):
        box = jax.new_ref(x @ v["w"])
        box[...] = box[...] * 2
        return box[...]

    with pytest.raises(GraphError, match=r"mutable one \(jax.Ref\)"):
        channel_graph(apply_fn, {"w": jnp.ones((3, 2))}, zoo.images(3))


@pytest.mark.parametrize(
    "loop",
    [
        lambda w, x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1] @ w[c[0]])), (0, x))[1],
        lambda w, x: lax.while_loop(lambda c: c[0] >= 0, lambda c: (c[0] - 1, jnp.tanh(c[1] @ w[2 - c[0]])), (2, x))[1],
        lambda w, x: lax.fori_loop(jnp.int32(0), jnp.asarray(6) // 2, lambda i, h: jnp.tanh(h @ w[i]), x),
        lambda w, x: lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ w[i]), x),
    ],
)
def test_a_loop_whose_number_of_steps_is_a_constant_is_followed(loop):
    shapes = {"a": (3, 4), "w": (3, 4, 4), "head": (4, 2)}
    v = zoo.randomise({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()})
    images = zoo.images(3)
    graph = channel_graph(lambda v, x: loop(v["w"], x @ v["a"]) @ v["head"], v, images, strict=True)
    assert len(graph.producers) == 5
    h = images @ v["a"]
    for k in range(3):
        h = np.tanh(h @ v["w"][k])
    np.testing.assert_allclose(graph.run(v, images), h @ v["head"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["pure_callback", "while", "sort"])
def test_fusion_goes_on_around_it_and_hinges_name_it_where_they_need_its_gradient(name):
    _, apply_fn, variables, images = case(name)
    network = Network(variables, apply_fn, images.shape[1:])
    fused = fusion.fuse(network, network)
    np.testing.assert_allclose(fused.network(images), apply_fn(variables, images), rtol=1e-4, atol=1e-5)
    if name == "pure_callback":
        with pytest.raises(FingerprintError, match=r"that tafa-hinge can differentiate, got .*`pure_callback` at .*"):
            FINGERPRINTS["tafa-hinge"]().make(Owner(network), jax.random.key(0))
