import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import zoo

from jaxguard import training
from jaxguard.defenses.ft import ft
from jaxguard.defenses.protocol import Data
from jaxguard.errors import DefenseError, OptionError
from jaxguard.types import Batch

KEY = jax.random.key(3)


@pytest.mark.parametrize(("schedule_epochs", "period"), [(None, 3), (2, 2)])
def test_three_steps_on_a_linear_model_by_hand(schedule_epochs, period):
    rng = np.random.default_rng(0)
    images, labels = rng.uniform(size=(6, 2, 2, 1)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2], np.int32)
    start = rng.normal(size=(4, 3)).astype(np.float32)

    def linear(w, x):
        return x.reshape(len(x), -1) @ w, w

    repaired, report = ft(
        zoo.network(lambda w, x: linear(w, x)[0], start, images, linear), Data(Batch(images, labels)), KEY,
        epochs=3, learning_rate=0.3, momentum=0.9, weight_decay=0.01, schedule_epochs=schedule_epochs,
    )  # fmt: skip
    w, velocity, flat = start.astype(np.float64), 0.0, images.reshape(6, 4).astype(np.float64)
    for epoch in range(3):  # all six images in every step, so an epoch is a step
        p = np.exp(flat @ w)
        p /= p.sum(1, keepdims=True)
        np.testing.assert_allclose(report.curves["loss"][epoch], -np.log(p[np.arange(6), labels]).mean(), rtol=1e-5)
        velocity = 0.9 * velocity + flat.T @ (p - np.eye(3)[labels]) / 6 + 0.01 * w
        w = w - 0.3 * (1 + np.cos(np.pi * epoch / period)) / 2 * velocity
    np.testing.assert_allclose(repaired.variables, w, rtol=1e-5, atol=1e-6)


def test_the_rate_changes_once_per_epoch():
    variables, clean = tiny.init(jax.random.key(0)), tiny.images(24, jax.random.key(1))
    network, data = tiny.network(variables), Data(clean)
    repaired, _ = ft(network, data, KEY, epochs=2, batch_size=8, learning_rate=0.1, augment=training.CropFlip(1))
    rate = training.cosine(0.1, 2, stride=3)
    theirs = training.fit(
        tiny.train_fn, variables, clean, KEY, epochs=2, batch_size=8, augment=training.CropFlip(1),
        optimizer=training.sgd(rate),
    )  # fmt: skip
    for a, b in zip(jax.tree.leaves(repaired), jax.tree.leaves(theirs.variables), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_missing_or_broken_is_said():
    variables, clean = jnp.ones((64, 4)), tiny.images(8, jax.random.key(1))

    def linear(w, x):
        return x.reshape(len(x), -1) @ w, w

    network, data = zoo.network(lambda w, x: linear(w, x)[0], variables, clean.images, linear), Data(clean)
    with pytest.raises(DefenseError, match=r"training mode for ft.* got None \(network\.train_fn\)"):
        ft(zoo.network(network.apply_fn, variables, clean.images), data, KEY)
    for name, value in {"epochs": -1, "batch_size": 0, "schedule_epochs": 0, "label_smoothing": 2}.items():
        with pytest.raises(OptionError, match=rf"for {name} of ft, got {value}"):
            ft(network, data, KEY, **{name: value})
    with pytest.raises(DefenseError, match=r"in ft\(\): expected a finite loss"):
        ft(network.with_variables(variables * np.nan), data, KEY, epochs=2)
