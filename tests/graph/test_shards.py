"""What runs over several devices is analysed on whole arrays, and computes what the devices compute together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from jaxguard import surgery
from jaxguard.graph import channel_graph

P = PartitionSpec
FOUR = AbstractMesh((4,), ("model",), axis_types=(AxisType.Auto,))
TWO_BY_TWO = AbstractMesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
ONE = Mesh(np.array(jax.devices()[:1]), ("model",))


def weights(**shapes):
    return zoo.randomise({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()})


def groups_of(graph):
    return [(group.name, group.size, sorted((m.path, m.axis) for m in group.members)) for group in graph.groups]


def plain(v, x):
    return jax.nn.relu(x @ v["up"]) @ v["down"]


def megatron(v, x, mesh, batch=None, **options):
    """Columns of the first kernel and rows of the second on each device, and a sum over the devices."""

    def shard(x, up, down):
        return lax.psum(jax.nn.relu(x @ up) @ down, "model")

    specs = (P(batch), P(None, "model"), P("model", None))
    return jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=P(batch), **options)(x, v["up"], v["down"])


PAIRS = [(k, k ^ 1) for k in range(4)]


def gathered(h):
    return lax.all_gather(h, "model", axis=1, tiled=True)


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(("mesh", "batch"), [(ONE, None), (FOUR, None), (TWO_BY_TWO, "data"), (TWO_BY_TWO, None)])
def test_columns_and_rows_on_several_devices_are_two_layers_of_whole_width(mesh, batch, check):
    v, x = weights(up=(6, 16), down=(16, 3)), np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    graph = channel_graph(lambda v, x: megatron(v, x, mesh, batch, check_vma=check), v, x, strict=True)
    one = channel_graph(plain, v, x)
    assert [(p.name, p.channels) for p in graph.producers] == [("up", 16), ("down", 3)]
    assert [p.kernel for p in graph.producers] == [p.kernel for p in one.producers]
    assert [graph.producers[k].name for k in graph.outputs] == ["down"]
    assert all("test_shards.py" in p.where for p in graph.producers)
    for ours, theirs in zip(graph.kernels(v), one.kernels(v), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    gate = {"up": jnp.asarray(np.arange(16) % 3 != 0, jnp.float32)}
    for gates in ({}, gate):
        np.testing.assert_allclose(graph.run(v, x, gates), one.run(v, x, gates), rtol=1e-5, atol=1e-6)
    if mesh is ONE:
        assert graph.remarks == ()
    else:
        assert graph.remarks[0].startswith("Analysed on whole arrays, as if on one device: `shard_map` at ")
        assert "model of " in graph.remarks[0]


def test_channels_on_one_device_are_permuted_there_and_in_every_place():
    v, x = weights(up=(6, 16), down=(16, 3)), np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    graph = channel_graph(lambda v, x: megatron(v, x, FOUR), v, x)
    free = [group for group in graph.groups if group.permutable]
    assert sorted(group.size for group in free) == [4, 4]  # which device, and where on it
    for group in free:
        permuted = surgery.permute(v, group, np.roll(np.arange(4), 1))
        np.testing.assert_allclose(plain(permuted, x), plain(v, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shard", "whole"),
    [
        (lambda h: gathered(h).sum(1, keepdims=True) + h, lambda h: h.sum(1, keepdims=True) + h),
        (lambda h: lax.psum_scatter(gathered(h), "model", scatter_dimension=1, tiled=True), lambda h: 4 * h),
        (lambda h: lax.ppermute(h, "model", [(k, (k + 1) % 4) for k in range(4)]), lambda h: jnp.roll(h, 4, 1)),
        (
            lambda h: h * (1 + lax.axis_index("model")).astype(jnp.float32),
            lambda h: h * jnp.repeat(jnp.arange(1.0, 5), 4)[None],
        ),
        (lambda h: h - lax.pmax(h.max(1, keepdims=True), "model"), lambda h: h - h.max(1, keepdims=True)),
        (lambda h: h / (1 + lax.pmean(h.mean(1), "model"))[:, None], lambda h: h / (1 + h.mean(1, keepdims=True))),
        (lambda h: lax.all_to_all(h, "model", 0, 1, tiled=True), lambda h: h),
        (
            lambda h: lax.scan(lambda c, _: (lax.ppermute(c, "model", PAIRS) + c, None), h, None, 2)[0],
            lambda h: 2 * (h + h.reshape(-1, 2, 2, 4)[:, :, ::-1].reshape(h.shape)),
        ),
    ],
    ids=["all_gather", "psum_scatter", "ppermute", "axis_index", "pmax", "pmean", "all_to_all", "scan"],
)
def test_collectives_are_what_the_devices_do_together(shard, whole, request):
    out = P("model", None) if "all_to_all" in request.node.name else P(None, "model")

    def sharded(v, x):
        h = jax.nn.relu(x @ v["a"])
        return jax.shard_map(shard, mesh=FOUR, in_specs=P(None, "model"), out_specs=out, check_vma=False)(h) @ v["head"]

    v, x = weights(a=(6, 16), head=(16, 3)), np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    graph = channel_graph(sharded, v, x, strict=True)
    expected = whole(jax.nn.relu(x @ v["a"])) @ v["head"]
    np.testing.assert_allclose(graph.run(v, x), expected, rtol=1e-5, atol=1e-6)
    assert [p.name for p in graph.producers] == ["a", "head"]


def test_a_batch_must_be_divisible_by_the_mesh_that_splits_it():
    v, x = weights(up=(6, 16), down=(16, 3)), jax.ShapeDtypeStruct((1, 6), np.float32)
    mesh = AbstractMesh((8, 1), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    graph = channel_graph(lambda v, x: megatron(v, x, mesh, "data"), v, x)
    images = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    np.testing.assert_allclose(graph.run(v, images), plain(v, images), rtol=1e-5, atol=1e-6)


def test_pmap_is_followed():
    v, x = weights(up=(6, 16), down=(16, 3)), np.ones((4, 6), np.float32)
    graph = channel_graph(
        lambda v, x: jax.pmap(lambda x, v: plain(v, x), in_axes=(0, None))(x[None], v)[0], v, x, strict=True
    )
    assert [(p.name, p.channels) for p in graph.producers] == [("up", 16), ("down", 3)]
    np.testing.assert_allclose(graph.run(v, x), plain(v, x), rtol=1e-5)


def test_layers_inside_a_custom_partitioning_and_a_custom_vmap_are_followed():
    @custom_partitioning
    def first(x, w):
        return jax.nn.relu(x @ w)

    first.def_partition(partition=lambda *_: None, sharding_rule="b i, i o -> b o")

    @jax.custom_batching.custom_vmap
    def second(x, w):
        return x @ w

    second.def_vmap(lambda size, batched, x, w: (jnp.matmul(x, w), True))

    v, x = weights(up=(6, 16), down=(16, 3)), np.ones((4, 6), np.float32)
    graph = channel_graph(lambda v, x: second(first(x, v["up"]), v["down"]), v, x, strict=True)
    assert groups_of(graph) == groups_of(channel_graph(plain, v, x))
    np.testing.assert_allclose(graph.run(v, x), plain(v, x), rtol=1e-5)


def test_python_called_on_every_device_stays_opaque_and_is_named():
    def shard(h):
        return jax.pure_callback(np.asarray, jax.ShapeDtypeStruct(h.shape, h.dtype), h)

    def apply_fn(v, x):
        h = jax.shard_map(shard, mesh=ONE, in_specs=P(), out_specs=P(), check_vma=False)(jax.nn.relu(x @ v["up"]))
        return h @ v["down"]

    v = weights(up=(6, 16), down=(16, 3))
    (left,) = channel_graph(apply_fn, v, zoo.images(6)).left_out
    assert (left.primitive, left.why, left.layers) == ("shard_map", "it calls Python once for each shard", ("up",))
