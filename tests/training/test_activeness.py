import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jaxguard import training
from jaxguard.training.activeness import ActivenessAwareGradient, fine_tune
from jaxguard.types import Batch

KEY = jax.random.key(3)
DATA = tiny.images(24, jax.random.key(1))


def bytes_of(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def loss_gradient(params, batch=DATA):
    state = tiny.init(jax.random.key(0))["batch_stats"]
    return training.CrossEntropyGradient(tiny.train_fn)(params, {"batch_stats": state}, batch)


@pytest.mark.parametrize("norm", ["global", "per_tensor"])
def test_it_is_the_gradient_of_the_loss_and_the_gradients_norm(norm):
    """Central differences of `L + alpha r ||grad L||` along random directions, in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = {"a": jnp.array(rng.normal(size=(4, 5))), "b": jnp.array(rng.normal(size=(5, 3)))}
        images, labels = jnp.array(rng.normal(size=(12, 4))), jnp.array(rng.integers(0, 3, 12))

        def loss(params):
            logits = jnp.tanh(images @ params["a"]) @ params["b"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        def gradient_fn(params, state, batch):
            value, gradient = jax.value_and_grad(loss)(params)
            return {"loss": value}, state, gradient

        r, alpha = 1e-4, 0.7

        def penalised(params):
            norms = jnp.array([jnp.linalg.norm(g) for g in jax.tree.leaves(jax.grad(loss)(params))])
            return loss(params) + alpha * r * (norms.sum() if norm == "per_tensor" else jnp.linalg.norm(norms))

        batch = Batch(images, labels)
        metrics, _, found = ActivenessAwareGradient(gradient_fn, r, alpha, norm)(params, None, batch)
        plain = jax.grad(loss)(params)
        np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(plain), rtol=1e-6)
        for _ in range(4):
            towards = jax.tree.map(lambda leaf: jnp.array(rng.normal(size=leaf.shape)), params)
            up, down = (penalised(jax.tree.map(lambda w, d, h=h: w + h * d, params, towards)) for h in (1e-5, -1e-5))
            slope, base = (up - down) / 2e-5, optax.tree.vdot(plain, towards)
            # What the penalty adds is a thousandth of the slope, so it is that which is compared.
            np.testing.assert_allclose(optax.tree.vdot(found, towards) - base, slope - base, rtol=5e-3, atol=1e-8)


def test_a_step_of_no_length_or_no_weight_is_plain_fine_tuning():
    params = tiny.init(jax.random.key(0))["params"]
    _, _, plain = loss_gradient(params)
    for r, alpha in ((0.0, 0.7), (0.05, 0.0)):
        metrics, _, found = ActivenessAwareGradient(lambda *given: loss_gradient(given[0]), r, alpha)(
            params, None, DATA
        )
        assert bytes_of(found) == bytes_of(plain)
        np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(plain), rtol=1e-5)


@pytest.mark.parametrize("norm", ["global", "per_tensor"])
def test_a_tensor_without_gradient_gives_no_nan(norm):
    def gradient_fn(params, state, batch):
        return {"loss": jnp.float32(0)}, state, jax.tree.map(lambda w: w * jnp.array([1.0, 0.0]), params)

    step = ActivenessAwareGradient(gradient_fn, 0.5, 1.0, norm)
    alive, dead = {"w": jnp.array([3.0, 4.0]), "unused": jnp.zeros(2)}, {"w": jnp.zeros(2), "unused": jnp.zeros(2)}
    _, _, found = step(alive, None, DATA)  # the gradient at 3 + 0.5
    assert found["w"].tolist() == [3.5, 0.0] and found["unused"].tolist() == [0.0, 0.0]
    _, _, found = step(dead, None, DATA)
    assert found["w"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_without_the_second_gradient_it_is_ordinary_training(schedule):
    variables = tiny.init(jax.random.key(0))
    ((ours, curves),) = fine_tune(
        [variables],
        tiny.train_fn,
        DATA,
        KEY,
        epochs=4,
        alpha=0.0,
        learning_rate=0.1,
        schedule=schedule,
        statistics="before",
    )
    theirs = training.fit(
        tiny.train_fn, variables, DATA, KEY, epochs=4, learning_rate=0.1, schedule=schedule, weight_decay=0.0
    )
    np.testing.assert_allclose(curves["loss"], theirs.losses, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs.variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def counting_train_fn(variables, images):
    """Running statistics that tell how often they moved and which weights they saw last."""
    seen = variables["seen"]
    logits = images.reshape(len(images), -1) @ variables["params"]
    return logits, {**variables, "seen": {"passes": seen["passes"] + 1, "weights": variables["params"]}}


@pytest.mark.parametrize("statistics", ["after", "before"])
def test_running_statistics_move_once_per_step(statistics):
    start = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    variables = {"params": start, "seen": {"passes": jnp.float32(0), "weights": jnp.zeros((64, 4))}}
    ((tuned, _),) = fine_tune(
        [variables], counting_train_fn, DATA, KEY, epochs=1, batch_size=64, learning_rate=0.1, statistics=statistics
    )
    assert tuned["seen"]["passes"] == 1
    seen = tuned["params"] if statistics == "after" else start
    np.testing.assert_array_equal(tuned["seen"]["weights"], seen)
    ((tuned, _),) = fine_tune([variables], counting_train_fn, DATA, KEY, epochs=2, batch_size=8, statistics=statistics)
    assert tuned["seen"]["passes"] == 6


def test_statistics_afterwards_see_the_batch_of_the_step():
    def train_fn(variables, images):
        logits = images.reshape(len(images), -1) @ variables["params"]
        return logits, {**variables, "mean": 0 * variables["mean"] + images.mean()}

    variables = {"params": jnp.zeros((64, 4)), "mean": jnp.float32(0)}
    kwargs = {"epochs": 3, "batch_size": 8, "augment": training.CropFlip(2)}
    after, before = (
        fine_tune([variables], train_fn, DATA, KEY, statistics=which, **kwargs)[0][0]["mean"]
        for which in ("after", "before")
    )
    assert after == before != 0


def test_models_abreast_are_those_one_after_the_other():
    models = [tiny.init(jax.random.key(seed)) for seed in range(3)]
    kwargs = {"epochs": 2, "batch_size": 8, "learning_rate": 0.05}
    apart = fine_tune(models, tiny.train_fn, DATA, KEY, side_by_side=False, **kwargs)
    progress = []
    together = fine_tune(
        models, tiny.train_fn, DATA, KEY, side_by_side=True, progress=lambda *told: progress.append(told), **kwargs
    )
    for (ours, our_curves), (theirs, their_curves) in zip(together, apart, strict=True):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)
        for name in ("loss", "gradient_norm"):
            assert our_curves[name].shape == (6,)
            np.testing.assert_allclose(our_curves[name], their_curves[name], rtol=1e-3)
    assert progress[-1][:2] == (18, 18) and np.ndim(progress[-1][2]["loss"]) == 0


def test_one_trace_for_all_models_of_a_sweep():
    train_fn = tiny.Counted(tiny.train_fn)
    models = [tiny.init(jax.random.key(seed)) for seed in range(3)]
    fine_tune(models, train_fn, DATA, KEY, epochs=2, side_by_side=False)
    assert train_fn.calls == 3  # two gradients and the statistics, of one traced step
