"""i-BAU: its hypergradient against dense algebra and against solving the inner problem again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import zoo
from scipy import optimize

from jaxguard import training
from jaxguard.defenses import Data, i_bau
from jaxguard.defenses.i_bau import Found, Game, Hypergradient, Search
from jaxguard.errors import DefenseError, OptionError
from jaxguard.types import Batch

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(6, 2, 2, 1)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2])
WEIGHTS: Any = RNG.normal(size=(4, 3)).astype(np.float32)
BATCH = Batch(IMAGES, LABELS)


def linear(w, x):
    return x.reshape(len(x), -1) @ w


NETWORK = zoo.network(linear, WEIGHTS, IMAGES)


def curved(w, x):
    return jnp.tanh(2 * x.reshape(len(x), -1) @ w)


def game(apply_fn=linear, **options: Any) -> Game:
    return Game(apply_fn, **{"penalty": 2.0, "clip": False, "share": 0.5, **options})


def entropy(w, images, labels):
    logits = images.reshape(len(images), -1) @ w
    return np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels])


# ---------------------------------------------------------------- losses


def test_losses_by_hand():
    moved = np.array([0.5, -0.5, 0.0, 1.0], np.float32).reshape(2, 2, 1)
    expected = 2.0 * 1.5 - entropy(WEIGHTS, IMAGES + moved, LABELS)
    assert float(game().inner(jnp.asarray(moved), WEIGHTS, BATCH)) == pytest.approx(expected, rel=1e-5)
    kept = 2.0 * 1.5 - entropy(WEIGHTS, np.clip(IMAGES + moved, 0, 1), LABELS)
    assert float(game(clip=True).inner(jnp.asarray(moved), WEIGHTS, BATCH)) == pytest.approx(kept, rel=1e-5)
    for share, count in ((0.0, 0), (0.01, 1), (0.5, 3), (1.0, 6)):
        mixed = IMAGES.copy()
        mixed[:count] += moved
        found = float(game(share=share).outer(jnp.asarray(moved), WEIGHTS, BATCH))
        assert found == pytest.approx(entropy(WEIGHTS, mixed, LABELS), rel=1e-5)


def test_the_search_climbs_the_loss_of_the_model_s_own_labels():
    own = linear(WEIGHTS, IMAGES).argmax(-1)
    assert not np.array_equal(own, LABELS)
    metrics, _, gradient = Search(game())(WEIGHTS, jnp.zeros((2, 2, 1)), None, BATCH)
    p = np.exp(linear(WEIGHTS, IMAGES))
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(gradient.reshape(-1), -(p - np.eye(3)[own]).mean(0) @ WEIGHTS.T, rtol=1e-4, atol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(-entropy(WEIGHTS, IMAGES, own), rel=1e-5)


# ---------------------------------------------------------------- hypergradient


@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_hypergradient_against_dense_jacobians(iterations):
    played, at = game(curved), jax.random.normal(KEY, (2, 2, 1))
    found = Found(at, BATCH)
    metrics, _, gradient = Hypergradient(played, 0.1, iterations, "batch")(found, WEIGHTS, None, BATCH)

    def mapped(flat, w):
        return flat - 0.1 * jax.grad(lambda d: played.inner(d.reshape(2, 2, 1), w, BATCH))(flat)

    flat = at.reshape(-1)
    by_d, by_w = jax.jacrev(mapped, argnums=(0, 1))(flat, jnp.asarray(WEIGHTS))
    pull, direct = jax.grad(lambda d, w: played.outer(d.reshape(2, 2, 1), w, BATCH), argnums=(0, 1))(
        flat, jnp.asarray(WEIGHTS)
    )
    v = np.zeros(4)
    for _ in range(iterations):
        v = np.asarray(by_d).T @ v + np.asarray(pull)
    expected = np.asarray(direct) + np.einsum("d,dij->ij", v, np.asarray(by_w))
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(float(played.outer(at, WEIGHTS, BATCH)), rel=1e-6)
    if iterations:
        assert np.abs(gradient - direct).max() > 0.005 * np.abs(direct).max()


def test_hypergradient_is_the_derivative_of_the_solved_game():
    """The inner problem is strongly convex at this penalty; it is solved anew for weights a little to either side."""

    def solved(w):
        w = w.astype(np.float64)
        fun = lambda d: 2.0 * d @ d - entropy(w, IMAGES.reshape(6, 4) + d, LABELS)  # noqa: E731
        return optimize.minimize(fun, np.zeros(4), tol=1e-14).x

    def value(w):
        mixed = IMAGES.reshape(6, 4).astype(np.float64)
        mixed[:3] += solved(w)
        return entropy(w.astype(np.float64), mixed, LABELS)

    at = jnp.asarray(solved(WEIGHTS).reshape(2, 2, 1), jnp.float32)
    whole = Hypergradient(game(), 0.1, 60, "batch")(Found(at, BATCH), WEIGHTS, None, BATCH)[2]
    taken = Hypergradient(game(), 0.1, 0, "batch")(Found(at, BATCH), WEIGHTS, None, BATCH)[2]
    for index in ((0, 0), (1, 2), (3, 1)):
        ends = []
        for step in (1e-4, -1e-4):
            moved = WEIGHTS.astype(np.float64)
            moved[index] += step
            ends.append(value(moved))
        slope = (ends[0] - ends[1]) / 2e-4
        assert float(whole[index]) == pytest.approx(slope, rel=2e-3, abs=1e-4)
        assert abs(float(taken[index]) - slope) > 10 * abs(float(whole[index]) - slope)


def test_the_first_batch_alone_as_in_the_reference_code():
    at, other = jnp.ones((2, 2, 1)), Batch(IMAGES[::-1].copy() / 2, LABELS)
    always, own, same = (
        Hypergradient(game(), 0.1, 5, "first" if reference else "batch")(Found(at, first), WEIGHTS, None, BATCH)[2]
        for reference, first in ((True, other), (False, other), (True, BATCH))
    )
    np.testing.assert_array_equal(own, same)
    assert np.abs(always - own).max() > 1e-3


# ---------------------------------------------------------------- method


def test_one_round_by_hand():
    repaired, report = i_bau(NETWORK, Data(BATCH), KEY, rounds=1, search_rate=3.0, penalty=2.0, clip=False, share=1.0)
    own = Batch(IMAGES, linear(WEIGHTS, IMAGES).argmax(-1))
    slope = jax.grad(lambda d: game().inner(d, WEIGHTS, own))(jnp.zeros((2, 2, 1)))
    found = Found(-3.0 * slope, BATCH)
    assert report.curves["norm"].tolist() == pytest.approx([float(jnp.linalg.norm(found.perturbation.reshape(-1)))])
    _, _, gradient = Hypergradient(game(share=1.0), 0.1, 5, "batch")(found, WEIGHTS, None, BATCH)
    # Adam's first step is the sign of the gradient.
    np.testing.assert_allclose(repaired.variables, WEIGHTS - 1e-4 * np.sign(gradient), atol=2e-6)
    assert report.curves["search_loss"].tolist() == pytest.approx([-entropy(WEIGHTS, IMAGES, own.labels)], rel=1e-5)
    assert "6 clean images went into one batch, so 1 epochs were as many steps" in report.notes[0]


def planted():
    """Four classes, each a bright row of 4x4 images; a bright corner (0, 0) means class 2 whatever else there is."""
    w1, b1, w2 = np.zeros((16, 5), np.float32), np.zeros(5, np.float32), np.zeros((5, 4), np.float32)
    for row in range(4):
        w1[4 * row + 1 : 4 * row + 4, row] = 1.0
        w2[row, row] = 1.5
    w1[0, 4], b1[4], w2[4, 2] = 4.0, -0.2, 1.5
    images = np.random.default_rng(1).uniform(0, 0.1, (40, 4, 4, 1)).astype(np.float32)
    labels = np.arange(40) % 4
    images[np.arange(40), labels, 1:] = 0.8
    return {"w1": jnp.asarray(w1), "b1": jnp.asarray(b1), "w2": jnp.asarray(w2)}, Batch(images, labels)


def perceptron(v: Any, x: Any):
    return jax.nn.relu(x.reshape(x.shape[0], -1) @ v["w1"] + v["b1"][None]) @ v["w2"]


def attacked(variables, clean):
    stamped = np.array(clean.images)
    stamped[:, 0, 0] = 1.0
    return float(np.mean(np.asarray(perceptron(variables, stamped)).argmax(-1)[clean.labels != 2] == 2))


def test_a_planted_backdoor_is_found_and_unlearned():
    variables, clean = planted()
    assert attacked(variables, clean) == 1
    others = Batch(clean.images[clean.labels != 2], clean.labels[clean.labels != 2])
    moved = -Search(Game(perceptron, 1e-3, True, 0.1))(variables, jnp.zeros((4, 4, 1)), None, others)[2]
    assert int(moved.argmax()) == 0  # the corner
    options: dict[str, Any] = {"rounds": 30, "batch_size": 10, "learning_rate": 0.04, "share": 0.3}
    repaired, report = i_bau(zoo.network(perceptron, variables, clean.images), Data(clean), KEY, **options)
    assert attacked(repaired.variables, clean) == 0
    assert (np.asarray(perceptron(repaired.variables, clean.images)).argmax(-1) == clean.labels).all()
    assert report.curves["loss"].shape == report.curves["search_loss"].shape == (120,)
    plain, _ = i_bau(zoo.network(perceptron, variables, clean.images), Data(clean), KEY, **{**options, "share": 0.0})
    assert attacked(plain.variables, clean) > 0.5  # without the perturbation


def test_running_statistics_stay_and_training_mode_is_not_needed():
    variables, clean = tiny.init(KEY), tiny.images(16, KEY)
    repaired, _ = i_bau(tiny.network(variables, None), Data(clean), KEY, rounds=2, batch_size=8)
    jax.tree.map(np.testing.assert_array_equal, repaired.variables["batch_stats"], variables["batch_stats"])
    assert all(
        (np.asarray(a) != b).any()
        for a, b in zip(
            jax.tree.leaves(repaired.variables["params"]), jax.tree.leaves(variables["params"]), strict=True
        )
    )


def test_rounds_go_on_where_the_last_one_ended():
    variables, clean = tiny.init(KEY), tiny.images(16, KEY)
    _, short = i_bau(
        tiny.network(variables, None), Data(clean), KEY, rounds=1, batch_size=8, augment=training.CropFlip(1)
    )
    _, whole = i_bau(
        tiny.network(variables, None), Data(clean), KEY, rounds=2, batch_size=8, augment=training.CropFlip(1)
    )
    np.testing.assert_array_equal(whole.curves["loss"][:2], short.curves["loss"])
    assert whole.curves["search_loss"][2] != short.curves["search_loss"][0]


def test_what_is_out_of_range_is_said():
    wrong = {"rounds": -1, "search_epochs": 0, "share": 2.0, "iterations": -1, "inner": "last", "penalty": -1.0}
    for name, value in wrong.items():
        with pytest.raises(OptionError, match=f"for {name} of i-bau, got {value!r}"):
            i_bau(NETWORK, Data(BATCH), KEY, **{name: value})
    with pytest.raises(DefenseError, match="expected a finite loss"):
        i_bau(NETWORK.with_variables(WEIGHTS * np.nan), Data(BATCH), KEY)
