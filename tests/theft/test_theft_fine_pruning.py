"""Pruning in a walk: which channels go, that they stay away, and what a snapshot is."""

import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import zoo

from jaxguard import data, evaluation, models
from jaxguard.errors import OptionError
from jaxguard.graph import channel_graph
from jaxguard.theft import THEFTS, TheftError, independent
from jaxguard.theft.fine_pruning import activations, prunable, quietest
from jaxguard.types import Batch, Network

fine_pruning = THEFTS["fine-pruning"]

KEY = jax.random.key(0)
QUICK = {"batch_size": 8, "learning_rate": 0.05}


@functools.cache
def network(spec="cnn:width=0.25", size=8):
    model = models.build(spec, num_classes=4, input_shape=(size, size, 3))
    return model.network(zoo.randomise(model.shapes()))


def batch(num_images=16):
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(num_images, 8, 8, 3)).astype(np.float32)
    return Batch(images, rng.integers(0, 4, num_images).astype(np.int32))


def silent(copy):
    """Channels that are zero on noise, layer by layer: cut ones, since the zoo's weights leave none dead."""
    layers = prunable(copy.graph)
    noise = np.random.default_rng(9).normal(size=(8, 8, 8, 3)).astype(np.float32)
    return [np.asarray(row) == 0 for row in activations(copy.graph, layers, copy.variables, noise)]


def test_activations_by_hand():
    def apply_fn(v, x):
        return jax.nn.relu(x.reshape(len(x), -1) @ v["w1"] + v["b1"][None]) @ v["w2"]

    variables = {"w1": jnp.array([[1.0, -1.0], [0.0, 2.0]]), "b1": jnp.array([0.0, -4.0]), "w2": jnp.ones((2, 3))}
    images = jnp.array([[1.0, 1.0], [-3.0, 0.5]]).reshape(2, 2, 1, 1)
    graph = channel_graph(apply_fn, variables, images)
    layers = prunable(graph)
    assert [layer.name for layer in layers] == ["w1"]
    (found,) = activations(graph, layers, variables, images)
    # first channel: 1 and -3; second: -1 + 2 - 4 = -3 and 3 + 1 - 4 = 0
    np.testing.assert_allclose(found, [2.0, 1.5])


def test_convolutions_are_measured_behind_their_norm():
    owner = network()
    layers = prunable(owner.graph)
    assert [layer.name for layer in layers] == [f"conv{k}" for k in range(1, 7)]
    params, running = owner.variables["params"], owner.variables["batch_stats"]["bn1"]
    images = batch().images
    x = jax.lax.conv_general_dilated(
        images, params["conv1"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    norm = running | params["bn1"]
    mean, var, scale, bias = (np.asarray(norm[name]) for name in ("mean", "var", "scale", "bias"))
    x = (np.asarray(x) - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(
        activations(owner.graph, layers, owner.variables, images)[0], np.abs(x).mean((0, 1, 2)), rtol=1e-4
    )


def test_cut_channels_are_passed_over_and_one_always_stays():
    measured = [np.array([3.0, 1.0, 2.0]), np.array([5.0, 4.0])]
    masks = [np.array([False, True, False]), np.array([False, False])]
    assert [mask.tolist() for mask in quietest(measured, masks, 1)] == [[False, True, False], [False, True]]
    assert [mask.tolist() for mask in quietest(measured, masks, 99)] == [[False, True, True], [False, True]]


@pytest.mark.parametrize("spec", ["wideresnet-10-1:width=0.25", "mlp:hidden=16x8"])
def test_the_share_is_cut_and_stays_cut_while_the_rest_learns(spec):
    owner = network(spec)
    copy, report = fine_pruning(owner, batch(), KEY, share=0.4, every=7, epochs=2, **QUICK)
    masks = silent(copy)
    total, cut = sum(map(len, masks)), sum(int(mask.sum()) for mask in masks)
    assert cut == round(0.4 * total)
    assert not any(mask.all() for mask in masks)
    bursts = -(-cut // 7)
    assert len(report.curves["loss"]) == bursts * 2 * 2
    assert f"{cut} of {total} hidden channels" in report.notes[0] and f"with {bursts} bursts" in report.notes[0]
    for mask in masks:
        assert abs(mask.mean() - 0.4) <= 1 / len(mask)


def test_the_quietest_go_first():
    owner, images = network(), batch()
    layers = prunable(owner.graph)
    copy, _ = fine_pruning(owner, images, KEY, share=0.25, every=1000, epochs=0)
    for row, mask in zip(activations(owner.graph, layers, owner.variables, images.images), silent(copy), strict=True):
        assert mask.sum() == len(mask) // 4
        assert np.asarray(row)[mask].max() < np.asarray(row)[~mask].min()


def test_without_fine_tuning_pruning_is_gating():
    owner, images = network(), batch()
    copy, _ = fine_pruning(owner, images, KEY, share=0.5, every=1000, epochs=0)
    layers = prunable(owner.graph)
    gates = {layer.name: 1.0 - mask for layer, mask in zip(layers, silent(copy), strict=True)}
    expected = owner.graph.run(owner.variables, images.images, gates)
    np.testing.assert_allclose(copy.apply_fn(copy.variables, images.images), expected, rtol=1e-4, atol=1e-4)


def test_a_copy_pruned_on_loses_more_of_the_same():
    copy, images, masks = network(), batch(), []
    for share in (0.1, 0.3, 0.6):
        copy, report = fine_pruning(copy, images, KEY, share=share, every=5, **QUICK)
        masks.append(np.concatenate(silent(copy)))
        assert masks[-1].sum() == round(share * len(masks[-1]))
        assert report.notes[0].startswith(f"{masks[-1].sum()} of {len(masks[-1])} hidden channels")
    for fewer, more in pairwise(masks):
        assert (more | ~fewer).all()


def test_all_bursts_share_a_compiled_step():
    counted = tiny.Counted(tiny.train_fn)
    images, variables = tiny.images(12, KEY), tiny.init(KEY)
    owner = Network(variables, tiny.apply_fn, tiny.INPUT_SHAPE, counted)
    for share in (0.5, 0.75):
        fine_pruning(owner, images, KEY, share=share, every=1, batch_size=4)
    assert counted.calls == 1


def test_a_copy_is_still_the_classifier():
    digits = data.load("digits")
    model = models.build("mlp:hidden=32", num_classes=10, input_shape=(16, 16, 1))
    owner, _ = independent(model, digits.train, KEY, epochs=10, batch_size=64)
    copy, _ = fine_pruning(owner, digits.train, KEY, share=0.5, every=4, batch_size=64)
    assert evaluation.accuracy(model.network(copy.variables), digits.test) > 0.85


@pytest.mark.parametrize("option", [{"share": 1.0}, {"share": -0.1}, {"every": 0}])
def test_options_out_of_range(option):
    with pytest.raises(OptionError, match=f"for {next(iter(option))} of fine-pruning"):
        fine_pruning(network(), batch(), KEY, **option)


def test_a_model_without_hidden_layers():
    linear = lambda v, x: x.reshape(len(x), -1) @ v["w"]  # noqa: E731
    images = Batch(np.ones((2, 2, 2, 1), np.float32), np.array([0, 1]))
    variables = {"w": jnp.ones((4, 2))}
    spec = (2, 2, 1)
    owner = Network(variables, linear, spec, lambda v, x: (linear(v, x), v))
    with pytest.raises(TheftError, match="expected hidden layers to prune, got none among 1"):
        fine_pruning(owner, images, KEY)
