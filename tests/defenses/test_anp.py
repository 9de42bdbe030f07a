from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import zoo

from jaxguard.defenses.anp import AdversarialGateGradient, anp
from jaxguard.defenses.protocol import Data
from jaxguard.errors import DefenseError, OptionError
from jaxguard.graph import channel_graph
from jaxguard.pruning.learned_gates import GateGradient, gating
from jaxguard.types import Batch

KEY = jax.random.key(3)


def linear(v, x):
    return (x @ v["w1"] + v["b1"][None]) @ v["w2"]


def linear_case(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w1": (3, 4), "b1": (4,), "w2": (4, 2)}
    v = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    batch = Batch(jnp.asarray(rng.normal(size=(5, 3)), jnp.float32), jnp.array([0, 1, 1, 0, 1]))
    where = gating(channel_graph(linear, v, batch.images), "all", "channel")
    return v, batch, GateGradient(where, linear)


def slope(v, batch, gates, delta, xi):
    """The gradient of the mean cross-entropy with respect to delta and xi, in NumPy."""
    w1, b1, w2 = (np.asarray(v[name], np.float64) for name in ("w1", "b1", "w2"))
    x, labels = np.asarray(batch.images, np.float64), np.asarray(batch.labels)
    logits = (x @ w1 * (gates * (1 + delta)) + b1 * (gates * (1 + xi))) @ w2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = -np.log(p[np.arange(5), labels]).mean()
    back = (p - np.eye(2)[labels]) / 5 @ w2.T
    return loss, (back * (x @ w1) * gates).sum(0), (back * b1 * gates).sum(0)


@pytest.mark.parametrize("project", [True, False])
def test_the_noise_by_hand(project):
    v, batch, plain = linear_case()
    gates = (jnp.array([1.0, 0.5, 0.25, 0.0]),)
    start = AdversarialGateGradient(plain, 0.2, 0.4, 0, project).perturb(gates, v, batch, KEY)
    (delta,), (xi,) = jax.tree.map(lambda n: np.asarray(n, np.float64), start)
    assert np.abs([delta, xi]).max() < 0.4 and np.unique([delta, xi]).size == 8
    for _ in range(2):
        _, by_delta, by_xi = slope(v, batch, np.asarray(gates[0]), delta, xi)
        delta, xi = delta + 0.2 * np.sign(by_delta), xi + 0.2 * np.sign(by_xi)
        if project:
            delta, xi = np.clip(delta, -0.4, 0.4), np.clip(xi, -0.4, 0.4)
    (found_delta,), (found_xi,) = AdversarialGateGradient(plain, 0.2, 0.4, 2, project).perturb(gates, v, batch, KEY)
    np.testing.assert_allclose(found_delta, delta, atol=1e-6)
    np.testing.assert_allclose(found_xi, xi, atol=1e-6)
    assert (np.abs([delta, xi]).max() > 0.4 + 1e-6) == (not project)
    assert slope(v, batch, np.asarray(gates[0]), delta, xi)[0] > slope(v, batch, np.asarray(gates[0]), 0, 0)[0]


def test_the_gradient_is_that_of_the_mixture():
    v, batch, plain = linear_case()
    gradient_fn = AdversarialGateGradient(plain, alpha=0.3, eps=0.4, ascent_steps=1, project=True)
    gates, state = (jnp.array([0.9, 0.5, 0.7, 0.4]),), {"model": v, "draw": jnp.array([11, 5], jnp.uint32)}
    metrics, after, (gradient,) = gradient_fn(gates, state, batch)
    noise = gradient_fn.perturb(gates, v, batch, jax.random.fold_in(jax.random.key(11), 5))
    (delta,), (xi,) = jax.tree.map(lambda n: np.asarray(n, np.float64), noise)

    def mixture(m):
        return 0.3 * slope(v, batch, m, 0, 0)[0] + 0.7 * slope(v, batch, m, delta, xi)[0]

    m = np.asarray(gates[0], np.float64)
    differences = [(mixture(m + 1e-5 * e) - mixture(m - 1e-5 * e)) / 2e-5 for e in np.eye(4)]
    np.testing.assert_allclose(gradient, differences, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["loss"], slope(v, batch, m, 0, 0)[0], rtol=1e-5)
    np.testing.assert_allclose(metrics["perturbed_loss"], slope(v, batch, m, delta, xi)[0], rtol=1e-5)
    assert after["draw"].tolist() == [11, 6]
    (other,), _ = gradient_fn.perturb(gates, v, batch, jax.random.fold_in(jax.random.key(11), 6))
    assert not np.allclose(other, delta)


# ---------------------------------------------------------------- a planted backdoor


def planted():
    """Four channels see a quadrant each; the fifth, at 2 in one corner pixel, means class 0."""
    quadrants = np.repeat(np.repeat(np.eye(4).reshape(4, 2, 2), 4, 1), 4, 2).reshape(4, 64)
    corner = np.zeros(64)
    corner[63] = 1
    v = {
        "w1": jnp.asarray(np.stack([*(quadrants / 16), corner], 1), jnp.float32),
        "b1": jnp.array([0, 0, 0, 0, -1.2]),
        "w2": jnp.asarray(np.vstack([10 * np.eye(4), [20, 0, 0, 0]]), jnp.float32),
    }

    def apply_fn(v, x):
        return jax.nn.relu(x.reshape(len(x), -1) @ v["w1"] + v["b1"][None]) @ v["w2"]

    clean = tiny.images(40, jax.random.key(1))
    return zoo.network(apply_fn, v, clean.images), Data(clean)


def test_the_planted_channel_is_found_and_cut():
    network, data = planted()
    images, labels = np.array(data.clean.images), np.asarray(data.clean.labels)
    images[:, 7, 7] = 2
    others = labels != 0
    attacked = np.asarray(network.apply_fn(network.variables, images)).argmax(1)
    assert (attacked[others] == 0).all()
    repaired, report = anp(network, data, KEY, steps=60, learning_rate=0.1, batch_size=32, statistics="running")
    (layer,) = report.layers
    assert layer.scores.argmax() == 4 and layer.mask.tolist() == [False] * 4 + [True]
    np.testing.assert_array_equal(repaired.variables["w1"][:, 4], 0)
    assert (np.asarray(network.apply_fn(repaired.variables, images)).argmax(1)[others] == labels[others]).all()
    assert (np.asarray(network.apply_fn(repaired.variables, data.clean.images)).argmax(1) == labels).all()
    assert report.curves["accuracy_by_threshold"].shape == (19,) and len(report.curves["loss"]) == 60
    assert "held-out clean images" in report.notes[0] and report.chosen["threshold"] >= 0


def test_progress_and_reuse_of_the_compiled_step():
    network, data = planted()
    seen = []
    counted = tiny.Counted(network.apply_fn)
    network = replace(network, apply_fn=counted)
    data = Data(data.clean, progress=lambda *told: seen.append(told))
    calls = []
    for seed in (0, 1):
        anp(network, data, jax.random.key(seed), steps=3, threshold=0.5, statistics="running")
        calls.append(counted.calls)
    assert calls[0] == calls[1] > 0 and seen[-1][:2] == (3, 3) and "perturbed_loss" in seen[-1][2]


def test_what_is_missing_or_wrong_is_said():
    network, data = planted()
    with pytest.raises(DefenseError, match="training mode for anp"):
        anp(network, data, KEY)
    wrong = {
        "eps": -1,
        "alpha": 1.5,
        "threshold": 2,
        "max_drop": -0.1,
        "holdout": 0,
        "batch_size": 0,
        "steps": -1,
        "form": "scale",
    }
    for name, value in wrong.items():
        with pytest.raises(OptionError, match=f"for {name} of anp, got {value!r}"):
            anp(network, data, KEY, **{name: value})
    with pytest.raises(DefenseError, match="expected a finite loss"):
        anp(jax.tree.map(lambda w: 1e30 * w, network), data, KEY, steps=2, statistics="running")
