import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxguard import training
from jaxguard.defenses.ft_sam import ft_sam, perturbation
from jaxguard.defenses.protocol import Context, relative_change
from jaxguard.errors import DefenseError
from jaxguard.types import Batch

KEY = jax.random.key(3)


def context(train_fn=tiny.train_fn, num_images=24):
    return Context(tiny.apply_fn, train_fn, clean=tiny.images(num_images, jax.random.key(1)))


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
        start, Context(lambda w, x: linear(w, x)[0], linear, clean=Batch(images, labels)), KEY,
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
    np.testing.assert_allclose(repaired, w, rtol=1e-5, atol=1e-6)


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
    repaired, _ = ft_sam(variables, context(train_fn), KEY, epochs=1)
    np.testing.assert_array_equal(repaired["seen"]["weights"], start)
    repaired, _ = ft_sam(variables, context(train_fn), KEY, epochs=3, batch_size=8)
    assert repaired["seen"]["passes"] == 9


def test_radius_zero_is_plain_fine_tuning():
    variables, given = tiny.init(jax.random.key(0)), context()
    ours, report = ft_sam(variables, given, KEY, rho=0.0, epochs=4, batch_size=24, label_smoothing=0.0)
    theirs = training.fit(tiny.train_fn, variables, given.clean, KEY, epochs=4, batch_size=24, learning_rate=0.01)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs.variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(report.curves["loss"], theirs.losses, rtol=1e-4)


# ---------------------------------------------------------------- the contract


def test_input_stays_and_output_has_its_form_and_depends_on_the_key_alone():
    variables, given = tiny.init(jax.random.key(0)), context()
    before = bytes_of((variables, given.clean))
    results = [
        ft_sam(variables, given, key, epochs=2, batch_size=8, augment=training.CropFlip(1))[0]
        for key in (KEY, KEY, jax.random.key(4))
    ]
    assert bytes_of((variables, given.clean)) == before
    for repaired in results:
        assert jax.tree.structure(repaired) == jax.tree.structure(variables)
        for ours, theirs in zip(jax.tree.leaves(repaired), jax.tree.leaves(variables), strict=True):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert bytes_of(results[0]) == bytes_of(results[1]) != bytes_of(results[2])
    assert set(relative_change(variables, results[0])) == {
        "params/conv", "params/scale", "params/bias", "params/linear", "batch_stats/mean", "batch_stats/var",
    }  # fmt: skip


def test_no_epoch_is_the_identity():
    variables = tiny.init(jax.random.key(0))
    repaired, report = ft_sam(variables, context(), KEY, epochs=0)
    assert bytes_of(repaired) == bytes_of(variables)
    assert report.method == "ft-sam" and report.options["rho"] == 2.0 and report.curves["loss"].shape == (0,)


def test_one_trace_for_any_number_of_repairs():
    train_fn = tiny.Counted(tiny.train_fn)
    for seed in (0, 1):
        ft_sam(tiny.init(jax.random.key(seed)), context(train_fn), jax.random.key(seed), epochs=2)
    assert train_fn.calls == 2  # the two passes of one traced step


def test_bfloat16_weights_stay_bfloat16():
    variables = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.init(jax.random.key(0)))
    repaired, report = ft_sam(variables, context(), KEY, epochs=2)
    assert {leaf.dtype for leaf in jax.tree.leaves(repaired)} == {jnp.dtype(jnp.bfloat16)}
    assert report.curves["loss"].dtype == np.float32


def test_progress_reaches_the_end():
    seen = []
    given = Context(tiny.apply_fn, tiny.train_fn, None, context().clean, lambda *args: seen.append(args[:2]))
    ft_sam(tiny.init(jax.random.key(0)), given, KEY, epochs=3, batch_size=8)
    assert seen[-1] == (9, 9)


def test_a_clean_set_of_one_batch_is_noted():
    variables = tiny.init(jax.random.key(0))
    _, few_steps = ft_sam(variables, context(), KEY, epochs=2)
    assert "All 24 clean images" in few_steps.notes[0] and "2 steps" in few_steps.notes[0]
    assert ft_sam(variables, context(), KEY, epochs=2, batch_size=8)[1].notes == ()


def test_what_is_missing_or_broken_is_said():
    variables, clean = tiny.init(jax.random.key(0)), context().clean
    with pytest.raises(DefenseError, match=r"came none in context\.clean, and ft-sam"):
        ft_sam(variables, Context(tiny.apply_fn, tiny.train_fn), KEY)
    with pytest.raises(DefenseError, match="an empty set"):
        ft_sam(variables, Context(tiny.apply_fn, tiny.train_fn, clean=Batch(clean.images[:0], clean.labels[:0])), KEY)
    with pytest.raises(DefenseError, match="one label per clean image"):
        ft_sam(variables, Context(tiny.apply_fn, tiny.train_fn, clean=Batch(clean.images, clean.labels[:3])), KEY)
    with pytest.raises(DefenseError, match=r"None in context\.train_fn, and ft-sam trains"):
        ft_sam(variables, Context(tiny.apply_fn, clean=clean), KEY)
    for options in ({"rho": -1.0}, {"epochs": -1}, {"batch_size": 0}, {"schedule": "batch"}):
        with pytest.raises(DefenseError, match="expected rho >= 0"):
            ft_sam(variables, context(), KEY, **options)
    broken = {**variables, "params": jax.tree.map(lambda x: x * jnp.nan, variables["params"])}
    with pytest.raises(DefenseError, match="came nan at step 0 of 2"):
        ft_sam(broken, context(), KEY, epochs=2)


def test_relative_change_of_a_leaf_that_was_zero_and_of_other_trees():
    assert relative_change({"a": np.zeros(2)}, {"a": np.ones(2)}) == {"a": np.inf}
    assert relative_change({"a": np.zeros(2)}, {"a": np.zeros(2)}) == {}
    with pytest.raises(DefenseError, match="models of one structure"):
        relative_change({"a": np.zeros(2)}, {"b": np.zeros(2)})
    with pytest.raises(DefenseError, match=r"came \(3,\) for leaf 'a'"):
        relative_change({"a": np.zeros(2)}, {"a": np.zeros(3)})
