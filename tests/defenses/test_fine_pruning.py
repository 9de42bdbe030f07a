"""Fine-Pruning on networks whose dormant channels are known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import zoo

from jaxguard import models
from jaxguard.activations.layer_inputs import activations, read_by
from jaxguard.defenses import Data, fine_pruning
from jaxguard.defenses.fine_pruning import cut, last_hidden
from jaxguard.errors import DefenseError, OptionError, UnscorableError
from jaxguard.graph import channel_graph
from jaxguard.types import Batch

KEY = jax.random.key(0)


def model(variables, images):
    flat = images.reshape(images.shape[0], -1)
    return jax.nn.relu(flat @ variables["w1"] + variables["b1"][None]) @ variables["w2"]


def train_model(variables, images):
    return model(variables, images), variables


def planted():
    """Four classes, each a bright pixel; units 0-3 read one each, unit 4 two of them, unit 5 a fifth pixel alone."""
    w1, w2 = np.zeros((5, 6), np.float32), np.zeros((6, 4), np.float32)
    w1[np.arange(4), np.arange(4)] = [1.0, 2.0, 3.0, 4.0]
    w1[:2, 4] = 0.1
    w1[4, 5] = 9.0
    w2[np.arange(4), [3, 2, 1, 0]] = 1.0
    w2[4, 3] = 0.01
    w2[5, 2] = 5.0
    variables = {"w1": jnp.asarray(w1), "b1": jnp.zeros(6), "w2": jnp.asarray(w2)}
    images = np.tile(np.eye(4, 5, dtype=np.float32), (10, 1))[:, None, :, None]
    clean = Batch(images, np.tile([3, 2, 1, 0], 10))
    return zoo.network(model, variables, images, train_model), variables, clean


def triggered(images):
    return np.concatenate([images[:, :, :4], np.ones_like(images[:, :, 4:])], axis=2)


def bundled(spec, size=16):
    built = models.build(spec, num_classes=10, input_shape=(size, size, 3))
    variables, images = zoo.randomise(built.shapes()), zoo.images(size, size, 3)
    return built.apply_fn, variables, images, channel_graph(built.apply_fn, variables, images)


def test_activations_by_hand():
    network, variables, clean = planted()
    (layer,) = last_hidden(network.graph, variables, clean.images)
    assert layer.name == "w1"
    np.testing.assert_allclose(layer.activations, [0.25, 0.5, 0.75, 1.0, 0.05, 0.0], rtol=1e-6)
    assert {place.path for place in layer.places} == {"w1", "b1", "w2"}
    (inputs,) = last_hidden(network.graph, variables, clean.images, prune="inputs")
    np.testing.assert_array_equal(inputs.activations, layer.activations)
    assert [(place.path, place.axis) for place in inputs.places] == [("w2", 0)]


@pytest.mark.parametrize(("dormancy", "expected"), [("magnitude", [2.0, 1.0]), ("mean", [-1.0, 0.5])])
def test_channels_that_may_be_negative(dormancy: Any, expected):
    linear = lambda v, x: (x @ v["w1"]) @ v["w2"]  # noqa: E731
    variables = {"w1": jnp.array([[1.0, 1.5], [-3.0, -0.5]]), "w2": jnp.ones((2, 3))}
    images = np.eye(2, dtype=np.float32)
    (layer,) = last_hidden(channel_graph(linear, variables, images), variables, images, dormancy=dormancy)
    np.testing.assert_allclose(layer.activations, expected)


def test_a_flattened_channel_counts_with_all_its_positions():
    variables, images = tiny.init(KEY), tiny.images(300, KEY).images
    graph = channel_graph(tiny.apply_fn, variables, images)
    (layer,) = last_hidden(graph, variables, images)
    (read,) = activations(graph, variables, images, [read_by(graph.producers[-1])])
    np.testing.assert_allclose(layer.activations, read.reshape(-1, 8).mean(0), rtol=1e-5)
    (inputs,) = last_hidden(graph, variables, images, prune="inputs")
    np.testing.assert_allclose(inputs.activations, read.mean(0), rtol=1e-5)


@pytest.mark.parametrize("prune", ["channels", "inputs"])
def test_the_planted_channel_goes_first_and_takes_the_backdoor_along(prune):
    network, variables, clean = planted()
    images, labels = clean
    assert (np.asarray(model(variables, triggered(images))).argmax(-1) == 2).all()
    repaired, report = fine_pruning(network, Data(clean), KEY, prune=prune, epochs=0)
    assert (np.asarray(model(repaired.variables, triggered(images))).argmax(-1) == labels).all()
    (layer,) = report.layers
    assert layer.scores.argmax() == 5
    # units 5 and 4 go for nothing; then one class in four is lost, more than a tenth
    assert layer.mask.tolist() == [False, False, False, False, True, True]
    assert layer.threshold == layer.scores[0] < 0
    assert report.curves["accuracy_by_cut"].tolist()[:3] == [1.0, 1.0, 1.0]
    assert report.curves["accuracy_by_cut"][3] < 0.9 and len(report.curves["accuracy_by_cut"]) == 4
    assert report.notes[0].startswith("2 of 6 channels were cut, judged on 8 held-out clean images: accuracy 100.0 %")
    untouched = {"channels": (), "inputs": ("w1", "b1")}[prune]
    for name in untouched:
        np.testing.assert_array_equal(repaired.variables[name], variables[name])


def test_how_many_are_cut():
    network, _, clean = planted()

    def cuts(**options):
        return fine_pruning(network, Data(clean), KEY, epochs=0, **options)[1].layers[0].mask.sum()

    assert cuts(max_share=0.2) == 1
    assert cuts(max_share=0.0) == 0
    assert cuts(stride=0.5) == 0  # three at a time are one too many
    assert cuts(max_drop=1.0) == 5  # never all
    wrong = Batch(clean.images, (clean.labels + 1) % 4)
    _, report = fine_pruning(network, Data(wrong), KEY, epochs=0)
    assert not report.layers[0].mask.any()  # a model that knows nothing cannot judge


def test_held_out_images_judge_and_are_not_learned():
    network, _, clean = planted()
    rng = np.random.default_rng(0)
    noisy = clean.images + rng.uniform(0, 0.1, clean.images.shape).astype(np.float32)
    order = np.asarray(jax.random.permutation(jax.random.split(KEY)[0], 40))

    def repair(images):
        return fine_pruning(network, Data(Batch(images, clean.labels)), KEY, epochs=2, holdout=0.2)[0].variables

    repaired = repair(noisy)
    darker = noisy.copy()
    darker[order[:8]] *= 0.99  # classified as before
    jax.tree.map(np.testing.assert_array_equal, repaired, repair(darker))
    darker[order[8:9]] *= 0.99
    other = repair(darker)
    assert not np.array_equal(repaired["w2"], other["w2"])


@pytest.mark.parametrize("prune", ["channels", "inputs"])
def test_what_was_cut_stays_cut_while_the_rest_learns(prune):
    variables, clean = tiny.init(KEY), tiny.images(40, KEY)
    network = tiny.network(variables)
    options: dict[str, Any] = {"prune": prune, "max_share": 0.4, "max_drop": 1.0, "stride": 0.1}
    pruned, _ = fine_pruning(network, Data(clean), KEY, epochs=0, **options)
    repaired, report = fine_pruning(network, Data(clean), KEY, epochs=3, learning_rate=0.1, batch_size=8, **options)
    (layer,) = report.layers
    assert layer.mask.sum() == (3 if prune == "channels" else 39)
    rows = np.repeat(layer.mask[None], 16, 0).reshape(-1) if prune == "channels" else layer.mask
    for name, leaf in repaired.variables["params"].items():
        zeros = {"linear": rows[:, None]}.get(name, layer.mask if prune == "channels" else np.zeros(8, bool))
        where = np.broadcast_to(zeros, leaf.shape)
        assert (np.asarray(leaf)[where] == 0).all() and (pruned.variables["params"][name][where] == 0).all()
        assert (np.asarray(leaf)[~where] != pruned.variables["params"][name][~where]).mean() > 0.8
    assert report.curves["loss"].shape == (12,)
    assert report.curves["loss"][-1] < report.curves["loss"][0]


def test_cutting_is_removing():
    apply_fn, variables, images, graph = bundled("mlp:hidden=24x12")
    layers = last_hidden(graph, variables, images)
    logits = apply_fn(cut(graph, variables, layers, [np.arange(12) == 7]), jnp.asarray(images))
    smaller = jax.tree.map(lambda leaf: leaf, variables)
    for name, leaf, axis in (("fc2", "kernel", 1), ("fc2", "bias", 0), ("linear", "kernel", 0)):
        smaller["params"][name][leaf] = np.delete(variables["params"][name][leaf], 7, axis)
    narrow = models.build("mlp:hidden=24x11", num_classes=10, input_shape=(16, 16, 3))
    np.testing.assert_allclose(logits, narrow.apply_fn(smaller, jnp.asarray(images)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "spec", ["cnn:width=0.5", "preactresnet18:width=0.0625", "resnet20:width=0.5", "vgg11:width=0.125"]
)
def test_a_cut_channel_is_exactly_zero_where_the_logits_read_it(spec):
    _, variables, images, graph = bundled(spec, 32)
    layers = last_hidden(graph, variables, images)
    masks = [layer.activations == layer.activations.max() for layer in layers]
    (number,) = graph.outputs
    logits = graph.producers[number]
    before, after = (
        activations(graph, v, images, [read_by(logits)])[0] for v in (variables, cut(graph, variables, layers, masks))
    )
    for layer, mask in zip(layers, masks, strict=True):
        (rows,) = (place.positions[:, mask] for place in layer.places if place.path == logits.kernel.path)
        assert rows.size == 1 and np.abs(before[:, rows]).max() > 0
        np.testing.assert_array_equal(after[:, rows], 0)
    statistics = cut(graph, variables, layers, masks)["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, statistics, variables["batch_stats"])


def test_statistics_that_lie_among_the_parameters_stay():
    _, variables, images = zoo.case("nnx")
    apply_fn = zoo.ZOO["nnx"]()[0]
    graph = channel_graph(apply_fn, variables, images)
    after = cut(graph, variables, last_hidden(graph, variables, images), [np.arange(8) == 2])
    assert after["norm"]["scale"].get_value()[2] == 0 == after["norm"]["bias"].get_value()[2]
    np.testing.assert_array_equal(after["norm"]["var"].get_value(), variables["norm"]["var"].get_value())


COMPUTED = {
    "LoRA": ({"A": (6, 2), "B": (2, 8)}, lambda v: v["w"] + v["A"] @ v["B"]),
    "weight norm": ({"g": (8,)}, lambda v: v["w"] / jnp.linalg.norm(v["w"], axis=0, keepdims=True) * v["g"][None]),
    "zero point": ({"s": (8,)}, lambda v: (v["w"] - 0.5) * v["s"][None]),
    "exp": ({}, lambda v: jnp.exp(v["w"])),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_channels_of_computed_kernels_are_cut_or_named(name):
    shapes, kernel = COMPUTED[name]
    structs = {
        k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in {"w": (6, 8), "b": (8,), "h": (8, 3), **shapes}.items()
    }
    variables, images = zoo.randomise(structs), zoo.images(6)
    apply_fn = lambda v, x: jax.nn.relu(x @ kernel(v) + v["b"][None]) @ v["h"]  # noqa: E731
    graph = channel_graph(apply_fn, variables, images)
    (layer,) = last_hidden(graph, variables, images)
    assert bool(layer.why) == (name == "exp")
    if not layer.why:
        mask = np.arange(8) % 3 == 0
        expected = graph.run(variables, images, {graph.producers[0].name: jnp.asarray(~mask)})
        np.testing.assert_allclose(apply_fn(cut(graph, variables, [layer], [mask]), images), expected, rtol=1e-5)
        return
    clean = Batch(images, np.asarray(apply_fn(variables, images)).argmax(-1))
    network = zoo.network(apply_fn, variables, images, lambda v, x: (apply_fn(v, x), v))
    with pytest.raises(UnscorableError, match=r"got none in fine_pruning.*The channels of w cannot be cut: .*`exp`"):
        fine_pruning(network, Data(clean), KEY, epochs=0)
    repaired, report = fine_pruning(network, Data(clean), KEY, prune="inputs", epochs=0, max_drop=1.0)
    assert report.layers[0].mask.any() and np.array_equal(repaired.variables["w"], variables["w"])


def test_groups_that_share_an_input_are_cut_as_the_largest():
    apply_fn, variables, images = zoo.case("mobile")
    (layer,) = last_hidden(channel_graph(apply_fn, variables, images), variables, images)
    assert len(layer.activations) == 4  # 8 channels are (4, 2) to a convolution of two groups


def test_what_is_missing_or_out_of_range_is_said():
    network, _, clean = planted()
    for name, value in {"stride": 0.0, "holdout": 1.0, "max_drop": -1.0, "prune": "rows", "dormancy": "max"}.items():
        with pytest.raises(OptionError, match=f"for {name} of fine-pruning, got {value!r}"):
            fine_pruning(network, Data(clean), KEY, **{name: value})
    one = Batch(clean.images[:1], clean.labels[:1])
    with pytest.raises(DefenseError, match=r"at least 2 clean images.*fine-pruning"):
        fine_pruning(network, Data(one), KEY)
    linear = lambda v, x: x.reshape(len(x), -1) @ v["w"]  # noqa: E731
    shallow = zoo.network(linear, {"w": jnp.ones((5, 4))}, clean.images, train_model)
    with pytest.raises(UnscorableError, match="expected hidden channels"):
        fine_pruning(shallow, Data(clean), KEY)
