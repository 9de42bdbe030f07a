"""Fine-tuning, head re-initialisation and transfer: which leaves move, and what they learn."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import zoo

from jaxguard import data, evaluation, models, training
from jaxguard.errors import DataError, OptionError
from jaxguard.repairs import relative_change
from jaxguard.theft import THEFTS, TheftError, halves, independent
from jaxguard.types import Batch, Network

fine_tuning, head_reset, transfer = THEFTS["fine-tune-all"], THEFTS["head-reset"], THEFTS["transfer"]

KEY, OTHER = jax.random.key(0), jax.random.key(1)
QUICK = {"epochs": 2, "batch_size": 4, "learning_rate": 0.05}
SMALL = (2, 2, 1)


@functools.cache
def network(spec="cnn:width=0.25", size=8):
    model = models.build(spec, num_classes=4, input_shape=(size, size, 3))
    return model.network(zoo.randomise(model.shapes()))


def batch(num_images=12, num_classes=4, size=8):
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(num_images, size, size, 3)).astype(np.float32)
    return Batch(images, rng.integers(0, num_classes, num_images).astype(np.int32))


@functools.cache
def digits_owner():
    """`(model, network, report)`."""
    model = models.build("mlp:hidden=32", num_classes=10, input_shape=(16, 16, 1), mean=(0.3,), std=(0.4,))
    return model, *independent(model, data.load("digits").train, KEY, epochs=10, batch_size=64)


def moved(owner, copy):
    return relative_change(owner.variables, copy.variables).keys()


# ---------------------------------------------------------------- all layers, last layers


def test_fine_tuning_all_layers_is_training_on():
    owner, images = network(), batch()
    copy, report = fine_tuning(owner, images, KEY, **QUICK)
    expected = training.fit(owner.train_fn, owner.variables, images, KEY, schedule="constant", **QUICK)
    jax.tree.map(np.testing.assert_array_equal, copy.variables, expected.variables)
    np.testing.assert_array_equal(report.curves["loss"], expected.losses)


@pytest.mark.parametrize(
    ("spec", "layers", "learned"),
    [
        ("cnn:width=0.25", 1, ["linear"]),
        ("cnn:width=0.25", 2, ["conv6", "bn6", "linear"]),
        ("mlp:hidden=8x6", 2, ["fc2", "linear"]),
        ("wideresnet-10-1:width=0.25", 1, ["fc"]),
        ("vit-tiny-4:width=0.0625,depth=1,heads=2", 1, ["head"]),
    ],
)
def test_only_the_last_layers_learn(spec, layers, learned):
    owner = network(spec)
    copy, _ = fine_tuning(owner, batch(), KEY, layers=layers, **QUICK)
    paths = moved(owner, copy)
    expected = {path for path in owner.graph.program.paths if path.split("/")[1] in learned and "params" in path}
    assert {path for path in paths if path.startswith("params")} == expected
    assert any(path.startswith("batch_stats") for path in paths) == ("batch_stats" in owner.variables)


def test_the_last_layers_descend_as_if_the_rest_were_constant():
    """One step by hand: softmax regression on what the body gives, running statistics in use."""
    images = batch()
    owner = replace(network(), train_fn=training.RunningStatistics(network().apply_fn))
    copy, report = fine_tuning(
        owner, images, KEY, layers=1, epochs=1, learning_rate=0.1, momentum=0.0, weight_decay=0.01
    )
    head = owner.variables["params"]["linear"]
    bodies = {**owner.variables, "params": {**owner.variables["params"], "linear": {
        "kernel": jnp.eye(16, 16), "bias": jnp.zeros(16)}}}  # fmt: skip
    body = models.build("cnn:width=0.25", num_classes=16, input_shape=(8, 8, 3))
    features = np.asarray(body.apply_fn(bodies, images.images), np.float64)
    logits = features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wrong = (shares - np.eye(4)[images.labels]) / len(logits)
    ours = copy.variables["params"]["linear"]
    np.testing.assert_allclose(
        ours["kernel"], head["kernel"] - 0.1 * (features.T @ wrong + 0.01 * np.asarray(head["kernel"])), atol=1e-5
    )
    np.testing.assert_allclose(ours["bias"], head["bias"] - 0.1 * (wrong.sum(0) + 0.01 * head["bias"]), atol=1e-5)
    np.testing.assert_allclose(
        report.curves["loss"], -np.log(shares[np.arange(12), images.labels]).mean(), rtol=1e-5
    )  # fmt: skip


def test_variables_without_collections():
    def apply_fn(v, x):
        return jax.nn.relu(x.reshape(len(x), -1) @ v["w1"]) @ v["w2"]

    variables = {"w1": jnp.ones((4, 3)) / 4, "w2": jnp.eye(3, 2)}
    images = Batch(np.random.default_rng(0).uniform(size=(8, 2, 2, 1)).astype(np.float32), np.arange(8) % 2)
    owner = Network(variables, apply_fn, SMALL, lambda v, x: (apply_fn(v, x), v))
    copy, _ = fine_tuning(owner, images, KEY, layers=1, **QUICK)
    assert moved(owner, copy) == {"w2"}
    copy, _ = fine_tuning(owner, images, KEY, **QUICK)
    assert moved(owner, copy) == {"w1", "w2"}


def test_equal_settings_share_a_compiled_step():
    counted = tiny.Counted(tiny.train_fn)
    images = tiny.images(12, KEY)
    for key in (KEY, OTHER):
        owner = Network(tiny.init(key), tiny.apply_fn, tiny.INPUT_SHAPE, counted)
        for layers in (None, 1):
            fine_tuning(owner, images, key, layers=layers, epochs=3, batch_size=4)
    assert counted.calls == 2  # all layers, and the last


@pytest.mark.parametrize("layers", [0, -1, 8])
def test_layers_that_are_not_there(layers):
    with pytest.raises(TheftError, match=rf"expected 1 to 7 layers, of which 1 make logits, got layers={layers}"):
        fine_tuning(network(), batch(), KEY, layers=layers)


def test_a_leaf_of_several_layers_is_not_learned_in_part():
    def apply_fn(v, x):
        h = x.reshape(len(x), -1)
        for k in range(2):
            h = jnp.tanh(h @ v["stack"][k])
        return h @ v["head"]

    variables = {"stack": jnp.ones((2, 4, 4)), "head": jnp.ones((4, 2))}
    images = Batch(np.ones((2, 2, 2, 1), np.float32), np.array([0, 1]))
    owner = Network(variables, apply_fn, SMALL, training.RunningStatistics(apply_fn))
    with pytest.raises(TheftError, match="expected a leaf for each layer, got 'stack'"):
        fine_tuning(owner, images, KEY, layers=2)


def test_what_is_missing_is_said():
    owner = network()
    with pytest.raises(TheftError, match=r"expected a training-mode model, got None in train_fn"):
        fine_tuning(Network(owner.variables, owner.apply_fn, owner.input_spec), batch(), KEY)
    with pytest.raises(DataError, match=r"expected labels in \[0, 4\), .* got 1 to 6"):
        fine_tuning(owner, batch(num_classes=7), KEY)
    with pytest.raises(TheftError, match=r"expected a finite loss, got nan at step \d+ of 6"):
        fine_tuning(owner, batch(), KEY, **{**QUICK, "learning_rate": 1e30})


# ---------------------------------------------------------------- head


@pytest.mark.parametrize("spec", ["cnn:width=0.25", "vit-tiny-4:width=0.0625,depth=1,heads=2"])
def test_only_the_head_is_drawn_anew(spec):
    owner = network(spec)
    copy, report = head_reset(owner, batch(), KEY, epochs=0)
    head = "linear" if "cnn" in spec else "head"
    assert moved(owner, copy) == {f"params/{head}/kernel", f"params/{head}/bias"}
    assert not np.asarray(copy.variables["params"][head]["bias"]).any()
    assert report.notes == (f"The head, params/{head}/bias, params/{head}/kernel, was redrawn.",)


def test_a_new_kernel_has_variance_one_over_fan_in():
    copy, _ = head_reset(network("mlp:hidden=400"), batch(), KEY, epochs=0)
    kernel = np.asarray(copy.variables["params"]["linear"]["kernel"])
    assert abs(kernel.std() - 1 / 20) < 0.003 and abs(kernel.mean()) < 0.005


def test_a_new_head_learns_its_task_again():
    digits = data.load("digits")
    model, owner, _ = digits_owner()
    for layers in (None, 1):
        for epochs, low, high in ((0, 0.0, 0.5), (10, 0.85, 1.0)):
            copy, _ = head_reset(owner, digits.train, OTHER, layers=layers, epochs=epochs, batch_size=64)
            assert low <= evaluation.accuracy(model.network(copy.variables), digits.test) <= high


# ---------------------------------------------------------------- transfer


@pytest.mark.parametrize("spec", ["cnn:width=0.25", "vit-tiny-4:width=0.0625,depth=1,heads=2", "wideresnet-10-1"])
def test_another_task_gets_another_head_on_the_same_body(spec):
    owner, images = network(spec), batch(num_classes=7)
    copy, report = transfer(owner, images, KEY, epochs=0)
    assert "was redrawn for 7 classes" in report.notes[0] and copy.apply_fn.__self__.spec == spec
    assert copy.apply_fn(copy.variables, images.images).shape == (12, 7)
    ours, theirs = (
        dict(zip(net.graph.program.paths, jax.tree.leaves(net.variables), strict=True)) for net in (copy, owner)
    )
    assert ours.keys() == theirs.keys()
    different = [path for path in ours if np.shape(ours[path]) != np.shape(theirs[path])]
    assert len(different) == 2
    for path in ours.keys() - different:
        np.testing.assert_array_equal(ours[path], theirs[path])


def test_transfer_learns_the_other_task():
    """From digits to their parity in three classes of uneven size, through a frozen body."""
    digits = data.load("digits")
    _, owner, _ = digits_owner()
    _, theirs = halves(digits.train, KEY)
    task = theirs._replace(labels=np.where(np.asarray(theirs.labels) < 2, 2, np.asarray(theirs.labels) % 2))
    labels = np.asarray(digits.test.labels)
    test = digits.test._replace(labels=np.where(labels < 2, 2, labels % 2))
    copy, _ = transfer(owner, task, KEY, layers=1, epochs=15, batch_size=64)
    assert copy.apply_fn.__self__.mean == (0.3,) and copy.apply_fn.__self__.std == (0.4,)
    assert evaluation.accuracy(copy, test) > 0.85
    assert relative_change(owner.variables["params"]["fc1"], copy.variables["params"]["fc1"]) == {}


def test_a_function_that_takes_any_head():
    def apply_fn(v, x):
        return jax.nn.relu(x.reshape(len(x), -1) @ v["w1"]) @ v["w2"] + v["b2"][None]

    variables = {"w1": jnp.ones((4, 3)), "w2": jnp.ones((3, 2)), "b2": jnp.zeros(2)}
    images = Batch(np.ones((5, 2, 2, 1), np.float32), np.arange(5))
    owner = Network(variables, apply_fn, SMALL, lambda v, x: (apply_fn(v, x), v))
    copy, _ = transfer(owner, images, KEY, epochs=1)
    assert [copy.variables[name].shape for name in ("w1", "w2", "b2")] == [(4, 3), (3, 5), (5,)]
    assert copy.graph.run(copy.variables, images.images).shape == (5, 5)


def test_a_model_that_does_not_take_the_head_is_named():
    owner = network()
    # A function of its own has no architecture to build anew.
    stranger = Network(owner.variables, functools.partial(owner.apply_fn), owner.input_spec, owner.train_fn)
    with pytest.raises(TheftError, match=r"expected a model that takes params/linear/bias, params/linear/kernel for 7"):
        transfer(stranger, batch(num_classes=7), KEY, num_classes=7)
    with pytest.raises(DataError, match=r"expected labels in \[0, 3\)"):
        transfer(owner, batch(num_classes=7), KEY, num_classes=3)
    with pytest.raises(OptionError, match="expected a whole number >= 1, or none for num_classes of transfer, got 0"):
        transfer(owner, batch(), KEY, num_classes=0)


# ---------------------------------------------------------------- independents


def test_halves_are_disjoint_and_balanced():
    digits = data.load("digits").train
    numbered = Batch(np.arange(len(digits.labels)), digits.labels)
    mine, theirs = halves(numbered, KEY, share=0.3)
    assert not set(mine.images) & set(theirs.images)
    assert len(mine.images) + len(theirs.images) == len(digits.labels)
    shares = np.bincount(mine.labels) / np.bincount(digits.labels)
    np.testing.assert_allclose(shares, 0.3, atol=0.01)
    assert (np.diff(mine.images) > 0).all() and (np.diff(theirs.images) > 0).all()
    again, _ = halves(numbered, KEY, share=0.3)
    np.testing.assert_array_equal(again.images, mine.images)
    other, _ = halves(numbered, OTHER, share=0.3)
    assert set(other.images) != set(mine.images)
    with pytest.raises(OptionError, match=r"expected a number in \[0, 1\] for share of halves, got 1.5"):
        halves(numbered, KEY, share=1.5)


def test_independent_networks_learn_and_differ_by_seed():
    digits = data.load("digits")
    model, one, report = digits_owner()
    two, _ = independent(model, digits.train, OTHER, epochs=10, batch_size=64)
    for network in (one, two):
        assert evaluation.accuracy(model.network(network.variables), digits.test) > 0.9
    assert min(relative_change(one.variables, two.variables).values()) > 0.5
    assert len(report.curves["loss"]) == 10 * 22
    with pytest.raises(DataError, match=r"expected labels in \[0, 10\)"):
        independent(model, digits.train._replace(labels=np.asarray(digits.train.labels) + 1), KEY)
