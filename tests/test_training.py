import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.tree_util import Partial

from jaxguard import training
from jaxguard.errors import CheckpointError, DataError, JaxguardError
from jaxguard.training import descent
from jaxguard.types import Batch

STEPS = 12


def bytes_of(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


# ---------------------------------------------------------------- descend


def decay(carry, step):
    return carry * 0.5 + step.astype(carry.dtype), {"before": carry.sum(), "step": step}


@pytest.mark.parametrize("scan", [False, True])
def test_descend_follows_the_recurrence(scan):
    num_steps, start = 2 * descent.CHUNK + 5, 3
    carry, metrics = training.descend(decay, jnp.array([1.0, -2.0]), num_steps, start=start, scan=scan)
    expected, before = np.array([1.0, -2.0], np.float32), []
    for step in range(start, start + num_steps):
        before.append(expected.sum())
        expected = (expected * 0.5 + step).astype(np.float32)
    np.testing.assert_allclose(carry, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["before"], before, rtol=1e-6)
    np.testing.assert_array_equal(metrics["step"], np.arange(start, start + num_steps))


def test_descend_scanned_equals_driven_on_a_convolution():
    batch, variables = tiny.images(16, jax.random.key(0)), tiny.init(jax.random.key(1))

    def step_fn(batch, params, step):
        state = {"batch_stats": variables["batch_stats"]}
        metrics, _, gradient = training.CrossEntropyGradient(tiny.train_fn)(params, state, batch)
        return jax.tree.map(lambda w, g: w - 0.1 * g, params, gradient), metrics

    driven, scanned = (
        training.descend(Partial(step_fn, batch), variables["params"], 5, scan=scan) for scan in (False, True)
    )
    for ours, theirs in zip(jax.tree.leaves(driven), jax.tree.leaves(scanned), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_descend_traces_once(scan):
    step_fn = tiny.Counted(lambda batch, carry, step: (carry * batch, {"sum": carry.sum()}))
    for factor in (0.5, 0.25):
        training.descend(Partial(step_fn, jnp.array([factor])), jnp.ones(1), descent.CHUNK + 1, scan=scan)
    assert step_fn.calls == 1


def test_descend_traces_once_with_weakly_typed_carry():
    step_fn = tiny.Counted(lambda carry, step: (carry * 2.0, {}))  # 1.0 is, and what follows is not
    assert float(training.descend(step_fn, 1.0, 3)[0]) == 8.0
    assert step_fn.calls == 1


@pytest.mark.parametrize("scan", [False, True])
def test_descend_leaves_its_input_alone(scan):
    carry = {"a": jnp.arange(3.0), "key": jax.random.key(0)}
    carry["b"] = carry["a"]  # the same buffer twice cannot be donated twice
    training.descend(lambda c, step: (jax.tree.map(lambda x: x, c), {}), carry, 2, scan=scan)
    np.testing.assert_array_equal(carry["a"], [0, 1, 2])
    assert jax.random.key_data(carry["key"]).shape == (2,)


def test_descend_of_no_step_keeps_the_shape_of_metrics():
    carry, metrics = training.descend(decay, jnp.ones(2), 0)
    np.testing.assert_array_equal(carry, [1, 1])
    assert metrics["before"].shape == (0,) and metrics["step"].dtype == np.int32
    with pytest.raises(ValueError, match="expected num_steps >= 0, got -1"):
        training.descend(decay, jnp.ones(2), -1)


@pytest.mark.parametrize("scan", [False, True])
def test_descend_tells_its_progress(scan, monkeypatch):
    seen = []

    def report(done, total, metrics):
        seen.append((done, total, float(metrics["step"])))

    training.descend(decay, jnp.ones(2), descent.CHUNK + 2, start=1, progress=report, scan=scan)
    assert seen[-1] == (descent.CHUNK + 3, descent.CHUNK + 3, descent.CHUNK + 2)
    assert len(seen) <= 3  # throttled
    monkeypatch.setattr(descent, "PROGRESS_SECONDS", 0)
    seen.clear()
    training.descend(decay, jnp.ones(2), descent.CHUNK + 2, progress=report, scan=scan)
    assert len(seen) == (2 if scan else descent.CHUNK + 2)


# ---------------------------------------------------------------- batches and views


def test_every_epoch_is_a_new_permutation():
    numbered = Batch(np.arange(7.0)[:, None, None, None], np.arange(7))
    order, epochs = jnp.zeros(7, jnp.int32), [[], []]
    for step in range(6):  # three steps an epoch: 3 + 3 + 1 and two to fill up
        order, batch = training.draw(jax.random.key(0), order, jnp.int32(step), numbered, 3)
        np.testing.assert_array_equal(batch.images.ravel(), batch.labels)
        epochs[step // 3].append(np.asarray(batch.labels))
    first, second = (np.concatenate(batches) for batches in epochs)
    assert sorted(first[:7]) == sorted(second[:7]) == list(range(7))
    np.testing.assert_array_equal(first[7:], first[:2])
    assert (first != second).any()


def test_views_are_crops_and_flips_of_the_image():
    image = np.random.default_rng(0).uniform(size=(5, 6, 2)).astype(np.float32)
    views = np.asarray(training.CropFlip(padding=2)(jax.random.key(0), jnp.stack([image] * 200)))
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    crops = {(i, j): padded[i : i + 5, j : j + 6] for i in range(5) for j in range(5)}
    possible = {(*at, flip): crop[:, ::-1] if flip else crop for at, crop in crops.items() for flip in (False, True)}
    drawn = [next(at for at, view in possible.items() if (view == got).all()) for got in views]
    assert len(set(drawn)) > 40  # of 50
    assert {flip for *_, flip in drawn} == {False, True}


def test_views_without_flip_keep_their_side():
    ramp = jnp.broadcast_to(jnp.arange(6.0)[:, None], (50, 6, 6, 1))
    views = training.CropFlip(padding=0, flip=False)(jax.random.key(0), ramp)
    np.testing.assert_array_equal(views, ramp)


# ---------------------------------------------------------------- fit


def test_fit_is_torch_style_sgd():
    rng = np.random.default_rng(0)
    images, labels = rng.uniform(size=(6, 2, 2, 1)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2], np.int32)
    start = rng.normal(size=(4, 3)).astype(np.float32)
    result = training.fit(
        lambda w, x: (x.reshape(len(x), -1) @ w, w), start, Batch(images, labels), jax.random.key(0),
        steps=3, learning_rate=0.5, momentum=0.9, weight_decay=0.01, label_smoothing=0.1,
    )  # fmt: skip
    w, velocity, flat = start.astype(np.float64), 0.0, images.reshape(6, 4).astype(np.float64)
    targets = 0.9 * np.eye(3)[labels] + 0.1 / 3
    for step in range(3):
        logits = flat @ w
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(result.losses[step], -(targets * np.log(p)).sum(1).mean(), rtol=1e-5)
        gradient = flat.T @ (p - targets) / 6 + 0.01 * w
        velocity = 0.9 * velocity + gradient
        w = w - 0.5 * (1 + np.cos(np.pi * step / 3)) / 2 * velocity
    np.testing.assert_allclose(result.variables, w, rtol=1e-5, atol=1e-6)
    assert result.images_per_second > 0


def test_fit_learns_and_leaves_its_input_alone():
    variables, batch = tiny.init(jax.random.key(0)), tiny.images(200, jax.random.key(1))
    before = bytes_of(variables)
    settings = {"epochs": 10, "batch_size": 64, "augment": training.CropFlip(1, False)}
    result, again = (training.fit(tiny.train_fn, variables, batch, jax.random.key(2), **settings) for _ in range(2))
    assert bytes_of(variables) == before
    assert len(result.losses) == 40 and result.losses[-4:].mean() < 0.1 < result.losses[0]
    assert bytes_of(again.variables) == bytes_of(result.variables)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), result.variables) == jax.tree.map(
        lambda x: (x.shape, x.dtype), variables
    )
    assert (result.variables["batch_stats"]["mean"] != variables["batch_stats"]["mean"]).any()


def test_fit_traces_once_for_equal_settings():
    train_fn = tiny.Counted(tiny.train_fn)
    for seed in (0, 1):
        variables, batch = tiny.init(jax.random.key(seed)), tiny.images(20, jax.random.key(seed))
        training.fit(train_fn, variables, batch, jax.random.key(seed), steps=3, batch_size=8)
    assert train_fn.calls == 1


def test_fit_keeps_bfloat16_and_measures_the_loss_in_float32():
    variables = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.init(jax.random.key(0)))
    batch = tiny.images(64, jax.random.key(1))
    result = training.fit(tiny.train_fn, variables, batch, jax.random.key(2), steps=30, learning_rate=0.05)
    assert {leaf.dtype for leaf in jax.tree.leaves(result.variables)} == {jnp.dtype(jnp.bfloat16)}
    assert result.losses.dtype == np.float32 and result.losses[-1] < 0.5 * result.losses[0]


def test_fit_takes_another_optimizer_and_no_step():
    variables, batch = tiny.init(jax.random.key(0)), tiny.images(64, jax.random.key(1))
    result = training.fit(tiny.train_fn, variables, batch, jax.random.key(2), steps=30, optimizer=optax.adam(0.01))
    assert result.losses[-1] < 0.5 * result.losses[0]
    idle = training.fit(tiny.train_fn, variables, batch, jax.random.key(2), steps=0)
    assert bytes_of(idle.variables) == bytes_of(variables) and np.isnan(idle.images_per_second)


def test_fit_refuses_what_it_cannot_train_on():
    variables, batch = tiny.init(jax.random.key(0)), tiny.images(8, jax.random.key(1))
    key = jax.random.key(2)
    with pytest.raises(DataError, match="got 0 images"):
        training.fit(tiny.train_fn, variables, Batch(batch.images[:0], batch.labels[:0]), key, steps=1)
    with pytest.raises(DataError, match=r"labels of shape \(7,\)"):
        training.fit(tiny.train_fn, variables, Batch(batch.images, batch.labels[:7]), key, steps=1)
    with pytest.raises(ValueError, match="exactly one"):
        training.fit(tiny.train_fn, variables, batch, key)
    with pytest.raises(ValueError, match="batch_size"):
        training.fit(tiny.train_fn, variables, batch, key, steps=1, batch_size=0)
    with pytest.raises(JaxguardError, match=r"got nan at step 0 of 4"):
        training.fit(tiny.train_fn, variables, Batch(batch.images * jnp.nan, batch.labels), key, steps=4)


# ---------------------------------------------------------------- resumption


def resumable(folder, **options):
    """What a killed process, its successor and an undisturbed one all run: 4 steps an epoch, saved every 5."""
    variables, batch = tiny.init(jax.random.key(0)), tiny.images(60, jax.random.key(1))
    settings = {"steps": STEPS, "batch_size": 16, "augment": training.CropFlip(1)} | options
    return training.fit(
        tiny.train_fn, variables, batch, jax.random.key(2), checkpoint_dir=folder, checkpoint_every=5, **settings
    )


def die_in_mid_training(folder):
    """Kills its own process once a state is on disk and training has gone on since."""

    def progress(done, total, metrics):
        if done > 7:
            while not any(path.name.isdigit() for path in pathlib.Path(folder).iterdir()):
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)

    descent.PROGRESS_SECONDS = 0
    resumable(folder, progress=progress)


def test_a_killed_run_ends_where_an_undisturbed_one_does(tmp_path):
    tests = str(pathlib.Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {tests!r}); import test_training as t; t.die_in_mid_training(sys.argv[1])"
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "killed")], capture_output=True, check=False, timeout=300
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()

    started = []
    resumed = resumable(tmp_path / "killed", progress=lambda done, total, metrics: started.append(done))
    undisturbed = resumable(None)
    assert min(started) > 5  # it did not begin anew
    assert bytes_of(resumed.variables) == bytes_of(undisturbed.variables)
    np.testing.assert_array_equal(resumed.losses, undisturbed.losses)


def test_a_finished_run_is_not_repeated_and_another_run_is_refused(tmp_path):
    first = resumable(tmp_path)
    again = resumable(tmp_path, progress=lambda *_: pytest.fail("took a step"))
    assert bytes_of(again.variables) == bytes_of(first.variables)
    with pytest.raises(CheckpointError, match="differs in label_smoothing"):
        resumable(tmp_path, label_smoothing=0.1)
