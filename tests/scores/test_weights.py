"""Weight features: by hand on a small network, and what may not change them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard import models, surgery
from jaxguard.checkpoints import flatten
from jaxguard.graph import channel_graph, pairing
from jaxguard.scores import structural, weights
from tests.zoo import randomise

RNG = np.random.default_rng(0)
COMPILED = jax.jit(weights.weight_features, static_argnums=(0, 1))


@functools.cache
def opened(spec, size=16):
    model = models.build(spec, num_classes=6, input_shape=(size, size, 3))
    variables = randomise(model.shapes())
    graph = channel_graph(model.apply_fn, variables, jax.ShapeDtypeStruct((1, size, size, 3), np.float32))
    return graph, pairing.layers(graph), variables


def features(graph, layers, variables):
    found = COMPILED(graph, layers, variables)
    names = weights.feature_names(layers)
    assert found.features.shape == (len(names),) and len(set(names)) == len(names)
    return dict(zip(names, np.asarray(found.features).tolist(), strict=True))


def test_features_of_a_layer_are_those_of_numpy():
    graph, layers, variables = opened("cnn:width=0.5")
    found = features(graph, layers, variables)
    assert all(np.isfinite(list(found.values())))
    params, stats = variables["params"], variables["batch_stats"]
    kernel = np.asarray(params["conv4"]["kernel"])
    scale, bias = (np.asarray(params["bn4"][name]) for name in ("scale", "bias"))
    mean, var = (np.asarray(stats["bn4"][name]) for name in ("mean", "var"))
    norms = np.linalg.norm(kernel.reshape(9, *kernel.shape[2:]).transpose(2, 0, 1), ord=2, axis=(1, 2))
    bounds = np.log(np.abs(scale) / np.sqrt(var) * norms)
    expected = {
        "z": (np.exp(bounds).max() - np.exp(bounds).mean()) / np.exp(bounds).std(ddof=1),
        "log bound mean": bounds.mean(),
        "log bound std": bounds.std(ddof=1),
        "log bound high": (bounds.max() - bounds.mean()) / bounds.std(ddof=1),
        "scale mean": scale.mean(),
        "scale std": scale.std(ddof=1),
        "bias mean": bias.mean(),
        "bias std": bias.std(ddof=1),
        "variance mean": np.log(var).mean(),
        "variance std": np.log(var).std(ddof=1),
        "drift mean": (mean / np.sqrt(var)).mean(),
        "drift std": (mean / np.sqrt(var)).std(ddof=1),
        "weights log deviation": np.log(kernel.std()),
        "weights offset": kernel.mean() / kernel.std(),
    }
    assert set(weights.LAYER) == expected.keys() | {"log bound skewness"}
    for name, value in expected.items():
        np.testing.assert_allclose(found[f"conv4 -> bn4: {name}"], value, rtol=2e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("spec", ["cnn:width=0.5", "wideresnet-16-1", "mlp:hidden=20x30"])
def test_order_of_channels_does_not_matter(spec):
    graph, layers, variables = opened(spec)
    changed, groups = variables, [group for group in graph.groups if group.permutable]
    assert groups
    for group in groups:
        changed = surgery.permute(changed, group, RNG.permutation(group.size))
    ours, theirs = features(graph, layers, variables), features(graph, layers, changed)
    np.testing.assert_allclose(list(theirs.values()), list(ours.values()), rtol=1e-3, atol=1e-4)


def test_order_of_classes_does_not_matter():
    graph, layers, variables = opened("cnn:width=0.5")
    order = RNG.permutation(6)
    changed = {**variables, "params": {**variables["params"]}}
    changed["params"]["linear"] = jax.tree.map(lambda leaf: leaf[..., order], variables["params"]["linear"])
    ours, theirs = features(graph, layers, variables), features(graph, layers, changed)
    np.testing.assert_allclose(list(theirs.values()), list(ours.values()), rtol=1e-3, atol=1e-4)


def test_a_stack_gives_what_each_gives_alone():
    graph, layers, variables = opened("cnn:width=0.5")
    others = [jax.tree.map(lambda leaf, k=k: leaf * (1 + 0.1 * k), variables) for k in range(3)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *others)
    many = jax.jit(lambda stack: jax.lax.map(lambda v: weights.weight_features(graph, layers, v).features, stack))(
        stack
    )
    for row, one in zip(many, others, strict=True):
        np.testing.assert_allclose(row, list(features(graph, layers, one).values()), rtol=1e-4, atol=1e-5)


def test_structural_features_are_those_of_the_graph_but_for_what_names_do_not_tell():
    graph, layers, variables = opened("cnn:width=0.5")
    leaves = flatten(variables)
    producers = structural.read(leaves).producers
    found = jax.jit(weights.structural_features, static_argnums=0)(producers, leaves)
    names = weights.feature_names(structural.layers_of(producers))
    ours, theirs = features(graph, layers, variables), dict(zip(names, found.features.tolist(), strict=True))
    unknown = {name for name, value in theirs.items() if np.isnan(value)}
    assert unknown == {name for name in names if name.split(": ")[1].split()[0] in ("bias", "drift")}
    known = sorted(theirs.keys() - unknown)
    np.testing.assert_allclose([theirs[name] for name in known], [ours[name] for name in known], rtol=1e-3, atol=1e-5)
    assert len(ours) == len(theirs) + 15 and bool(found.finite)


def test_dead_channels_leave_the_features_defined():
    graph, layers, variables = opened("cnn:width=0.5")
    kernel, var = variables["params"]["conv2"]["kernel"], variables["batch_stats"]["bn2"]["var"]
    changed = jax.tree.map(lambda leaf: leaf, variables)
    changed["params"]["conv2"]["kernel"] = kernel.at[..., 0].set(0)
    changed["batch_stats"]["bn2"]["var"] = var.at[0].set(0)
    assert all(np.isfinite(list(features(graph, layers, changed).values())))


def test_broken_weights_are_told():
    graph, layers, variables = opened("cnn:width=0.5")
    assert bool(COMPILED(graph, layers, variables).finite)
    changed = jax.tree.map(lambda leaf: leaf, variables)
    changed["params"]["conv2"]["kernel"] = variables["params"]["conv2"]["kernel"].at[0, 0, 0, 0].set(np.nan)
    assert not bool(COMPILED(graph, layers, changed).finite)
