"""NAD: its maps against the activations Flax reports, its gradient against finite differences."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import zoo

from jaxguard import models, training
from jaxguard.activations.feature_maps import FeatureMap, attention, feature_maps, train_with_maps
from jaxguard.activations.layer_inputs import activations
from jaxguard.defenses import Data, nad
from jaxguard.defenses.nad import AttentionGradient, published_rate
from jaxguard.errors import DefenseError, OptionError
from jaxguard.graph import channel_graph
from jaxguard.types import Batch

KEY = jax.random.key(0)


def mlp(v, x):
    return jax.nn.relu(jax.nn.relu(x @ v["w1"]) @ v["w2"]) @ v["w3"]


def train_mlp(v, x):
    return mlp(v, x), v


def perceptron(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w1": (5, 4), "w2": (4, 3), "w3": (3, 3)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def normalised(rows):
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


# ---------------------------------------------------------------- maps


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cnn", [("conv3", (16, 16)), ("conv5", (8, 8)), ("linear", (4, 4))]),
        ("preactresnet18:width=0.125", [("layer3_0/conv1", (16, 16)), ("layer4_0/conv1", (8, 8)), ("linear", (4, 4))]),
        ("resnet20:width=0.5", [("layer2_0/conv1", (32, 32)), ("layer3_0/conv1", (16, 16)), ("linear", (8, 8))]),
        (
            "wideresnet-16-1:width=0.5",
            [("block2_layer_0/conv1", (32, 32)), ("block3_layer_0/conv1", (16, 16)), ("fc", (8, 8))],
        ),
        ("vgg11:width=0.125", [("features_15", (8, 8)), ("features_22", (4, 4)), ("classifier", (2, 2))]),
        ("mlp", [("fc2", ()), ("linear", ())]),
        ("vit", [("Dense_1", (5,)), ("MultiHeadDotProductAttention_1/out", (5,)), ("Dense_4", (5,))]),
        ("per_example", [("w2", (1, 8, 8)), ("w3", (4, 4))]),
    ],
)
def test_maps_lie_at_the_ends_of_stages_or_at_even_distances(name, expected):
    graph = zoo.graph(name)
    maps = feature_maps(graph)
    assert [(one.layer, one.shape) for one in maps] == expected
    for one in maps:
        shape = graph.program.shapes[one.value]
        assert shape[one.batch] == 2 and len(shape) == 1 + len(one.channels) + len(one.shape)
    assert feature_maps(graph, 1) == maps[-1:]


@pytest.mark.parametrize("train", [False, True])
def test_maps_are_what_flax_reports(train):
    model = models.build("cnn:width=0.5", num_classes=10, input_shape=(16, 16, 3))
    variables, images = zoo.randomise(model.shapes()), jnp.asarray(zoo.images(16, 16, 3))
    graph = channel_graph(model.apply_fn, variables, images)
    maps = feature_maps(graph)
    seen: Any
    _, seen = model.module.apply(
        variables, images, train=train, capture_intermediates=True, mutable=["intermediates", "batch_stats"]
    )
    if train:
        logits, state, found = train_with_maps(model.train_fn, variables, images, maps)
        expected, after = model.train_fn(variables, images)
        np.testing.assert_allclose(logits, expected, rtol=1e-6)
        assert jax.tree.structure(state) == jax.tree.structure({"batch_stats": after["batch_stats"]})
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state["batch_stats"], after["batch_stats"]
        )
    else:
        found = activations(graph, variables, images, [one.value for one in maps])
    for name, array in zip(("bn2", "bn4", "bn6"), found, strict=True):
        (normed,) = seen["intermediates"][name]["__call__"]
        np.testing.assert_allclose(array, jax.nn.relu(normed), rtol=1e-5, atol=1e-6)


def test_attention_by_hand():
    one = FeatureMap("layer", 0, 0, batch=1, channels=(0,), shape=(2,))
    array = jnp.array([[[1.0, 2.0], [0.0, 0.0]], [[1.0, -1.0], [0.0, 0.0]]])  # [C, B, positions]
    sums = np.array([[2.0, 5.0], [0.0, 0.0]])
    np.testing.assert_allclose(attention(array, one, 2), [sums[0] / np.sqrt(29), sums[1]], rtol=1e-6)
    gradient = jax.grad(lambda x: attention(x, one, 2)[:, 0].sum())(array)
    assert np.isfinite(gradient).all() and (gradient[:, 1] == 0).all()
    units = FeatureMap("layer", 0, 0, batch=0, channels=(1,), shape=())
    np.testing.assert_allclose(
        attention(jnp.array([[1.0, -2.0]]), units, 2), np.array([[1, 4]]) / np.sqrt(17), rtol=1e-6
    )


# ---------------------------------------------------------------- gradient


def test_gradient_against_finite_differences_of_a_formula_written_out():
    student, teacher = perceptron(0), perceptron(1)
    rng = np.random.default_rng(2)
    images, labels = rng.normal(size=(6, 5)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2])
    graph = channel_graph(mlp, student, images)
    maps = feature_maps(graph)
    gradient_fn = AttentionGradient(graph, train_mlp, maps, (3.0, 7.0), 2.0)
    metrics, _, gradient = gradient_fn(teacher, student, None, Batch(images, labels))

    def formula(w):
        w = {name: np.asarray(leaf, np.float64) for name, leaf in w.items()}
        t = {name: np.asarray(leaf, np.float64) for name, leaf in teacher.items()}
        total = 0.0
        ours = theirs = images.astype(np.float64)
        for name, weight in (("w1", 3.0), ("w2", 7.0)):
            ours, theirs = np.maximum(ours @ w[name], 0), np.maximum(theirs @ t[name], 0)
            total += weight * np.mean((normalised(ours**2) - normalised(theirs**2)) ** 2)
        logits = ours @ w["w3"]
        entropy = np.log(np.exp(logits).sum(1)) - logits[np.arange(6), labels]
        return entropy.mean() + total, total

    loss, distance = formula(student)
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(metrics["attention"]) == pytest.approx(distance, rel=1e-5) and distance > 0.5
    for name, leaf in student.items():
        for index in ((0, 0), (2, 1), (1, 2)):
            ends = []
            for step in (1e-6, -1e-6):
                moved = np.asarray(leaf, np.float64).copy()
                moved[index] += step
                ends.append(formula({**student, name: moved})[0])
            assert float(gradient[name][index]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-3, abs=1e-4)


def test_without_weight_on_the_maps_the_student_is_fine_tuned():
    variables, clean = tiny.init(KEY), tiny.images(24, jax.random.key(1))
    repaired, report = nad(
        tiny.network(variables), Data(clean), KEY, teacher_epochs=1, epochs=4, batch_size=8, learning_rate=0.1, beta=[0]
    )
    theirs = training.fit(
        tiny.train_fn, variables, clean, jax.random.split(KEY)[1], epochs=4, batch_size=8,
        optimizer=training.sgd(published_rate(0.1, 3)),
    )  # fmt: skip
    np.testing.assert_allclose(report.curves["loss"], theirs.losses, rtol=1e-5)
    for ours, expected in zip(jax.tree.leaves(repaired.variables), jax.tree.leaves(theirs.variables), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
    assert (report.curves["attention"] == 0).all()
    assert report.curves["teacher_loss"].shape == (3,)


def test_the_student_comes_to_look_where_its_teacher_looks():
    variables, clean = tiny.init(KEY), tiny.images(48, jax.random.key(1))
    options: dict[str, Any] = {"teacher_epochs": 20, "epochs": 15, "batch_size": 16, "learning_rate": 0.1}
    _, loose = nad(tiny.network(variables), Data(clean), KEY, beta=[1e-6], **options)
    _, taught = nad(tiny.network(variables), Data(clean), KEY, beta=[100.0], **options)
    assert "(4x4 positions)" in taught.notes[0]
    assert taught.curves["attention"][-3:].mean() / 100 < 0.5 * loose.curves["attention"][-3:].mean() / 1e-6


# ---------------------------------------------------------------- what can be wrong


def test_what_is_missing_or_out_of_range_is_said():
    variables, images = perceptron(), np.ones((4, 5), np.float32)
    network, data = zoo.network(mlp, variables, images, train_mlp), Data(Batch(images, np.zeros(4, int)))
    for name, value in (("epochs", -1), ("power", 0.5), ("beta", ()), ("beta", (1, -1)), ("batch_size", 0)):
        with pytest.raises(OptionError, match=re.escape(f"for {name} of nad, got {value!r}")):
            nad(network, data, KEY, **{name: value})
    with pytest.raises(DefenseError, match="training mode for nad"):
        nad(zoo.network(mlp, variables, images), data, KEY)
    linear = lambda v, x: x @ v["w"]  # noqa: E731
    with pytest.raises(DefenseError, match="expected a hidden layer"):
        nad(zoo.network(linear, {"w": jnp.ones((5, 3))}, images, train_mlp), data, KEY)


def test_a_training_mode_of_another_network_is_refused():
    variables, images = perceptron(), np.ones((4, 5), np.float32)
    data = Data(Batch(images, np.zeros(4, int)))
    shorter = zoo.network(mlp, variables, images, lambda v, x: (x @ v["w1"] @ v["w2"], v))
    with pytest.raises(DefenseError, match="2 convolutions and products of which number 2"):
        nad(shorter, data, KEY, teacher_epochs=0, epochs=1)
    tokens = zoo.network(mlp, variables, images, lambda v, x: (mlp(v, jnp.stack([x, x], 1)).mean(1), v))
    with pytest.raises(DefenseError, match=r"got \(4, 2, 4\) where w2 reads"):
        nad(tokens, data, KEY, teacher_epochs=0, epochs=1)
