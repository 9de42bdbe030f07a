"""The network that every library's test builds, as a plain function: convolution, BatchNorm, two dense layers."""

import jax
import numpy as np

from jaxguard import repairs, scanning, suspects
from jaxguard.types import Network

RNG = np.random.default_rng(0)
IMAGES = RNG.random((5, 8, 8, 3), np.float32)
SHAPES = {
    "conv": (3, 3, 3, 8), "conv_bias": (8,), "scale": (8,), "bias": (8,), "mean": (8,), "var": (8,),
    "dense": (8, 6), "dense_bias": (6,), "head": (6, 4), "head_bias": (4,),
}  # fmt: skip
EPSILON = 1e-5


def draw(seed=0):
    rng = np.random.default_rng(seed)
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    return values | {name: rng.uniform(0.5, 1.5, 8).astype(np.float32) for name in ("scale", "var")}


def apply(v, images):
    x = jax.lax.conv_general_dilated(images, v["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = x + v["conv_bias"]
    x = (x - v["mean"]) * (v["scale"] * jax.lax.rsqrt(v["var"] + EPSILON)) + v["bias"]
    x = jax.nn.relu(x).mean((1, 2))
    return jax.nn.relu(x @ v["dense"] + v["dense_bias"][None]) @ v["head"] + v["head_bias"][None]


def summary(graph):
    """All that the structure says but names and axes."""
    producers = [producer.channels for producer in graph.producers]
    groups = [(group.size, len(group.members)) for group in graph.groups if group.permutable and len(group.members) > 1]
    return producers, sorted(groups), [(affine.sources, affine.channels) for affine in graph.affines]


def check(network, values):
    """Logits, channel graph and channel bounds are those of the plain function."""
    plain = Network(values, apply, IMAGES.shape[1:])
    np.testing.assert_allclose(network(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-4)
    assert network.num_classes == 4
    assert summary(network.graph) == summary(plain.graph)
    assert summary(plain.graph) == ([8, 6, 4], [(6, 3), (8, 7)], [(((0, 0),), 8)])
    found, expected = scanning.scan([network, plain]).findings
    assert expected.layers[0].scores.std() > 0
    for one, other in zip(found.layers, expected.layers, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)
        assert one.above == other.above


def repaired(network):
    """CLP on the network."""
    found, report = repairs.repair(suspects.load(network), "clp", jax.random.key(0), options={"u": 1.0})
    assert report.change
    return found.require_network()


def check_training(network):
    """Statistics move, parameters and the input stay, and Dropout follows the batch."""
    before = jax.tree.map(np.array, network.variables)
    train = jax.jit(network.train_fn)
    logits, after = train(network.variables, IMAGES)
    again, _ = train(network.variables, IMAGES)
    np.testing.assert_array_equal(logits, again)
    assert not np.allclose(logits, network(IMAGES))
    jax.tree.map(np.testing.assert_array_equal, before, network.variables)
    jax.tree.map(np.testing.assert_array_equal, after["params"], before["params"])
    assert jax.tree.structure(after) == jax.tree.structure(before)
    statistics = (jax.tree.leaves(tree["batch_stats"]) for tree in (before, after))
    moved = [not np.allclose(old, new) for old, new in zip(*statistics, strict=True)]
    assert any(moved)
    gradient = jax.grad(lambda params: (network.train_fn({**before, "params": params}, IMAGES)[0] ** 2).sum())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(before["params"])))


def identical(one, other):
    """Whether two trees are the same, bit by bit."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() and a.dtype == b.dtype for a, b in pairs)
