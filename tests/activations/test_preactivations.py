import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxguard.activations import preactivations
from jaxguard.defenses.bnp import running
from jaxguard.graph import channel_graph, pairing
from jaxguard.graph.program import leaf_paths


@functools.cache
def of(name):
    apply_fn, variables, example = zoo.case(name)
    images = np.random.default_rng(4).uniform(size=(7, *example.shape[1:])).astype(np.float32)
    graph = channel_graph(apply_fn, variables, images)
    return variables, images, graph, pairing.layers(graph)


def test_dense_layers_by_hand():
    variables, images, graph, layers = of("mlp")
    by_path = dict(zip(leaf_paths(variables), jax.tree.leaves(variables), strict=True))
    hidden = images.reshape(7, -1).astype(np.float64)
    for layer, found, top in zip(
        layers,
        preactivations.moments(graph, variables, images, layers, batch_size=3),
        preactivations.peaks(graph, variables, images, layers, batch_size=3),
        strict=True,
    ):
        producer = graph.producers[layer.sources[0][0]]
        hidden = hidden @ np.asarray(by_path[producer.kernel.path]) + np.asarray(by_path[producer.bias.path])
        np.testing.assert_allclose(found.mean, hidden.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.var, hidden.var(0), rtol=1e-4)
        np.testing.assert_allclose(top, hidden, rtol=1e-4, atol=1e-5)
        hidden = np.maximum(hidden, 0)


@pytest.mark.parametrize("name", ["cnn", "wideresnet", "resnet8", "nnx", "per_example", "densenet"])
def test_a_norm_given_its_own_statistics_standardises(name):
    """Written into the model one norm after the other, the moments make every channel's mean 0 and variance 1."""
    variables, images, graph, layers = of(name)
    leaves = dict(zip(leaf_paths(variables), jax.tree.leaves(variables), strict=True))
    normed = [layer for layer in layers if running(graph, variables, layer) is not None]
    if name == "per_example":
        assert normed == []  # a variance without a mean is no record
        return
    layer = normed[len(normed) // 2]
    (found,) = preactivations.moments(graph, variables, images, (layer,), batch_size=4)
    affine = graph.affines[layer.affine]
    for view, value in ((affine.mean, found.mean), (affine.var, found.var), (affine.scale, 1), (affine.bias, 0)):
        leaves[view.path] = jnp.asarray(np.broadcast_to(value, leaves[view.path].shape), jnp.float32)
    program = graph.program_at(images)
    known = dict(zip(program.leaves, leaves.values(), strict=True))
    end = np.asarray(program.evaluate({**known, program.images: jnp.asarray(images)})[affine.end], np.float64)
    axes = tuple(k for k in range(end.ndim) if k not in affine.begin_axes)
    np.testing.assert_allclose(end.mean(axes), 0, atol=1e-4)
    np.testing.assert_allclose(end.var(axes), found.var / (found.var + 1e-5), rtol=1e-3)


@pytest.mark.parametrize("name", ["wideresnet", "vit", "per_example", "fused_attention"])
def test_peaks_image_by_image(name):
    variables, images, graph, layers = of(name)
    together = preactivations.peaks(graph, variables, images, layers)
    alone = [preactivations.peaks(graph, variables, images[k : k + 1], layers, batch_size=1) for k in range(2)]
    for k, layer in enumerate(layers):
        assert together[k].shape == (7, layer.channels)
        value, axes = preactivations.place(graph, layer)
        program = graph.program_at(images)
        env = program.evaluate({**graph.leaves(program, variables), program.images: jnp.asarray(images)})
        batch = graph.batch_axes[value]
        array = np.asarray(env[value])
        rest = tuple(axis for axis in range(array.ndim) if axis not in (batch, *axes))
        expected = np.transpose(array, (batch, *axes, *rest)).reshape(7, layer.channels, -1).max(-1)
        np.testing.assert_allclose(together[k], expected, rtol=1e-4, atol=1e-4)
        for row in range(2):
            np.testing.assert_allclose(alone[row][k][0], together[k][row], rtol=1e-3, atol=1e-3)
