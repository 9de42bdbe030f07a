import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import zoo

from jaxguard import training
from jaxguard.defenses.ft_sam import ft_sam, perturbation
from jaxguard.defenses.protocol import Data
from jaxguard.errors import DefenseError, OptionError
from jaxguard.types import Batch

KEY = jax.random.key(3)


DATA = Data(tiny.images(24, jax.random.key(1)))


def bytes_of(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


# ---------------------------------------------------------------- the method


def softmax_gradient(w, flat, targets):
    logits = flat @ w
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return flat.T @ (p - targets) / len(flat), -(targets * np.log(p)).sum(1).mean()


@pytest.mark.parametrize("schedule", ["epoch", "step"])
def test_three_steps_on_a_linear_model_by_hand(schedule):
    rng = np.random.default_rng(0)
    images, labels = rng.uniform(size=(6, 2, 2, 1)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2], np.int32)
    start = rng.normal(size=(4, 3)).astype(np.float32)

    def linear(w, x):
        return x.reshape(len(x), -1) @ w, w

    repaired, report = ft_sam(
        zoo.network(lambda w, x: linear(w, x)[0], start, images, linear), Data(Batch(images, labels)), KEY,
        rho=0.5, epochs=3, learning_rate=0.3, momentum=0.9, weight_decay=0.01, label_smoothing=0.1, schedule=schedule,
    )  # fmt: skip

    w, velocity, flat = start.astype(np.float64), 0.0, images.reshape(6, 4).astype(np.float64)
    targets = 0.9 * np.eye(3)[labels] + 0.1 / 3
    for step in range(3):  # all six images in every step, so an epoch is a step
        g, loss = softmax_gradient(w, flat, targets)
        eps = 0.5 * w**2 * g / np.sqrt(((np.abs(w) * g) ** 2).sum())
        sharp, sharp_loss = softmax_gradient(w + eps, flat, targets)
        velocity = 0.9 * velocity + sharp + 0.01 * w
        w = w - 0.3 * (1 + np.cos(np.pi * step / (3 if schedule == "epoch" else 100))) / 2 * velocity
        np.testing.assert_allclose(report.curves["loss"][step], loss, rtol=1e-5)
        np.testing.assert_allclose(report.curves["sharpness"][step], sharp_loss - loss, rtol=1e-3)
    np.testing.assert_allclose(repaired.variables, w, rtol=1e-5, atol=1e-6)


def test_perturbation_has_adaptive_norm_rho_over_the_whole_tree():
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": {"c": rng.normal(size=5).astype(np.float32)}}
    gradient = jax.tree.map(lambda w: rng.normal(size=w.shape).astype(np.float32), params)
    eps = perturbation(params, gradient, 2.0)
    # eps = T u with |u| = rho: the largest step of that adaptive size.
    size = np.sqrt(
        sum(np.sum((e / w) ** 2) for e, w in zip(jax.tree.leaves(eps), jax.tree.leaves(params), strict=True))
    )
    np.testing.assert_allclose(size, 2.0, rtol=1e-5)
    still = perturbation(params, jax.tree.map(np.zeros_like, params), 2.0)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(still))


def test_running_statistics_see_the_unperturbed_weights_once_per_step():
    def train_fn(variables, images):
        seen = variables["seen"]
        logits = images.reshape(len(images), -1) @ variables["params"]
        return logits, {**variables, "seen": {"passes": seen["passes"] + 1, "weights": variables["params"]}}

    start = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    variables = {"params": start, "seen": {"passes": jnp.float32(0), "weights": jnp.zeros((64, 4))}}
    repaired, _ = ft_sam(tiny.network(variables, train_fn), DATA, KEY, epochs=1)
    np.testing.assert_array_equal(repaired.variables["seen"]["weights"], start)
    repaired, _ = ft_sam(tiny.network(variables, train_fn), DATA, KEY, epochs=3, batch_size=8)
    assert repaired.variables["seen"]["passes"] == 9


def test_radius_zero_is_plain_fine_tuning():
    variables = tiny.init(jax.random.key(0))
    ours, report = ft_sam(tiny.network(variables), DATA, KEY, rho=0.0, epochs=4, batch_size=24, label_smoothing=0.0)
    theirs = training.fit(tiny.train_fn, variables, DATA.clean, KEY, epochs=4, batch_size=24, learning_rate=0.01)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs.variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(report.curves["loss"], theirs.losses, rtol=1e-4)


# ---------------------------------------------------------------- the contract


def test_input_stays_and_output_has_its_form_and_depends_on_the_key_alone():
    network = tiny.network(tiny.init(jax.random.key(0)))
    before = bytes_of((network, DATA.clean))
    results = [
        ft_sam(network, DATA, key, epochs=2, batch_size=8, augment=training.CropFlip(1))[0]
        for key in (KEY, KEY, jax.random.key(4))
    ]
    assert bytes_of((network, DATA.clean)) == before
    for repaired in results:
        assert jax.tree.structure(repaired) == jax.tree.structure(network)
        for ours, theirs in zip(jax.tree.leaves(repaired), jax.tree.leaves(network), strict=True):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert bytes_of(results[0]) == bytes_of(results[1]) != bytes_of(results[2])
    assert not set(bytes_of(results[0])) & set(before)


def test_no_epoch_is_the_identity():
    variables = tiny.init(jax.random.key(0))
    repaired, report = ft_sam(tiny.network(variables), DATA, KEY, epochs=0)
    assert bytes_of(repaired) == bytes_of(variables)
    assert report.curves["loss"].shape == (0,)


def test_one_trace_for_any_number_of_repairs():
    train_fn = tiny.Counted(tiny.train_fn)
    for seed in (0, 1):
        ft_sam(tiny.network(tiny.init(jax.random.key(seed)), train_fn), DATA, jax.random.key(seed), epochs=2)
    assert train_fn.calls == 2  # the two passes of one traced step


def test_bfloat16_weights_stay_bfloat16():
    variables = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.init(jax.random.key(0)))
    repaired, report = ft_sam(tiny.network(variables), DATA, KEY, epochs=2)
    assert {leaf.dtype for leaf in jax.tree.leaves(repaired)} == {jnp.dtype(jnp.bfloat16)}
    assert report.curves["loss"].dtype == np.float32


def test_progress_reaches_the_end():
    seen = []
    data = Data(DATA.clean, progress=lambda *args: seen.append(args[:2]))
    ft_sam(tiny.network(tiny.init(jax.random.key(0))), data, KEY, epochs=3, batch_size=8)
    assert seen[-1] == (9, 9)


def test_a_clean_set_of_one_batch_is_noted():
    variables = tiny.init(jax.random.key(0))
    _, few_steps = ft_sam(tiny.network(variables), DATA, KEY, epochs=2)
    assert "All 24 clean images" in few_steps.notes[0] and "2 epochs were as many steps" in few_steps.notes[0]
    assert ft_sam(tiny.network(variables), DATA, KEY, epochs=2, batch_size=8)[1].notes == ()


def test_what_is_missing_or_broken_is_said():
    variables, clean = tiny.init(jax.random.key(0)), DATA.clean
    network = tiny.network(variables)
    with pytest.raises(DefenseError, match=r"clean images for ft-sam, got none \(data\.clean\)"):
        ft_sam(network, Data(), KEY)
    with pytest.raises(DefenseError, match="an empty set"):
        ft_sam(network, Data(Batch(clean.images[:0], clean.labels[:0])), KEY)
    with pytest.raises(DefenseError, match="one label per clean image"):
        ft_sam(network, Data(Batch(clean.images, clean.labels[:3])), KEY)
    with pytest.raises(DefenseError, match="training mode for ft-sam"):
        ft_sam(tiny.network(variables, None), DATA, KEY)
    for name, value in {"rho": -1.0, "epochs": -1, "batch_size": 0, "schedule": "batch"}.items():
        with pytest.raises(OptionError, match=f"for {name} of ft-sam, got {value!r}"):
            ft_sam(network, DATA, KEY, **{name: value})
    broken = {**variables, "params": jax.tree.map(lambda x: x * jnp.nan, variables["params"])}
    with pytest.raises(DefenseError, match="got nan at step 0 of 2"):
        ft_sam(tiny.network(broken), DATA, KEY, epochs=2)
