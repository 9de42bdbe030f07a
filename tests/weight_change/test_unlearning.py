import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import zoo

from jaxguard import weight_change
from jaxguard.errors import DefenseError
from jaxguard.types import Batch, Network

KEY = jax.random.key(3)
DATA = tiny.images(24, jax.random.key(1))


def linear(w, images):
    return images.reshape(len(images), -1) @ w


def linear_train(w, images):
    return linear(w, images), w


def bytes_of(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_two_epochs_of_ascent_on_a_linear_model_by_hand():
    rng = np.random.default_rng(0)
    images, labels = rng.uniform(size=(6, 2, 2, 1)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2], np.int32)
    start = rng.normal(size=(4, 3)).astype(np.float32)
    found = weight_change.unlearn(
        zoo.network(linear, start, images, linear_train),
        Batch(images, labels),
        KEY,
        epochs=2,
        stop_acc=-1,
        learning_rate=0.3,
        momentum=0.9,
    )
    w, velocity, flat = start.astype(np.float64), 0.0, images.reshape(6, 4).astype(np.float64)
    for step in range(2):  # all six images in every step, so an epoch is a step
        p = np.exp(flat @ w)
        p /= p.sum(1, keepdims=True)
        np.testing.assert_allclose(found.losses[step], -np.log(p[np.arange(6), labels]).mean(), rtol=1e-5)
        velocity = 0.9 * velocity + flat.T @ (p - np.eye(3)[labels]) / 6
        w = w + 0.3 * velocity  # uphill, without decay
        np.testing.assert_allclose(found.accuracies[step], ((flat @ w).argmax(1) == labels).mean())
    np.testing.assert_allclose(found.variables, w, rtol=1e-5)


@pytest.mark.parametrize(("stop_acc", "level"), [(None, 0.25), (0.6, 0.6)])
def test_it_stops_after_the_first_epoch_at_the_level_which_is_chance_by_default(stop_acc, level):
    images = np.random.default_rng(0).uniform(size=(40, 2, 2, 1)).astype(np.float32)
    labels = images.reshape(40, 4).argmax(1).astype(np.int32)
    found = weight_change.unlearn(
        zoo.network(linear, jnp.eye(4), images, linear_train), Batch(images, labels), KEY,
        epochs=300, stop_acc=stop_acc, learning_rate=0.02, batch_size=16,
    )  # fmt: skip
    *before, last = found.accuracies
    assert before[0] > 0.9 and min(before) > level >= last
    assert found.losses.shape == (3 * len(found.accuracies),) and found.losses[-1] > found.losses[0]


def test_at_least_one_epoch_is_taken_and_none_where_none_is_asked_for():
    variables = tiny.init(jax.random.key(0))
    once = weight_change.unlearn(tiny.network(variables), DATA, KEY, stop_acc=1.0)
    assert once.accuracies.shape == (1,) and bytes_of(once.variables) != bytes_of(variables)
    never = weight_change.unlearn(tiny.network(variables), DATA, KEY, epochs=0)
    assert never.losses.shape == never.accuracies.shape == (0,)
    assert bytes_of(never.variables) == bytes_of(variables)


def test_the_input_stays_and_the_key_alone_decides():
    variables = tiny.init(jax.random.key(0))
    before = bytes_of(variables)
    noise = [
        weight_change.unlearn_noise(tiny.network(variables), key, steps=3, batch_size=8, learning_rate=0.1)
        for key in (KEY, KEY, jax.random.key(4))
    ]
    assert bytes_of(noise[0]) == bytes_of(noise[1]) != bytes_of(noise[2])
    assert bytes_of(variables) == before
    assert jax.tree.structure(noise[0].variables) == jax.tree.structure(variables)


@pytest.mark.parametrize("num_labels", [4, 3])
def test_noise_is_fresh_and_uniform_and_labels_are_below_num_labels(num_labels):
    seen = []

    def train_fn(w, images):
        jax.debug.callback(lambda images: seen.append(np.asarray(images)), images)
        return jnp.broadcast_to(w, (len(images), len(w))), w

    start = jnp.array([0.0, 0.0, 0.0, -100.0])  # the fourth label costs 100 nats
    found = weight_change.unlearn_noise(
        Network(start, None, jax.ShapeDtypeStruct((5, 6, 3), np.float32), train_fn),
        KEY,
        num_labels=num_labels,
        steps=4,
        batch_size=64,
        learning_rate=0.0,
    )
    jax.effects_barrier()
    images = np.concatenate(seen)
    assert images.shape == (4 * 64, 5, 6, 3) and len({image.tobytes() for image in images}) == 4 * 64
    assert images.min() >= 0 and images.max() < 1
    np.testing.assert_allclose(np.quantile(images, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02)
    fourths = (found.losses - np.log(3)) / 100 * 64
    np.testing.assert_allclose(fourths, fourths.round(), atol=1e-3)
    assert fourths.sum() < 1e-3 if num_labels == 3 else 40 < fourths.sum() < 90  # 64 expected, 7 is their deviation


def test_one_trace_for_any_number_of_epochs_and_models():
    train_fn = tiny.Counted(tiny.train_fn)
    for seed in (0, 1):
        variables = tiny.init(jax.random.key(seed))
        weight_change.unlearn(tiny.network(variables, train_fn), DATA, KEY, epochs=2, stop_acc=-1)
    assert train_fn.calls == 1


def test_a_climb_that_overflows_is_an_error():
    variables = tiny.init(jax.random.key(0))
    with pytest.raises(DefenseError, match=r"expected (a )?finite (loss|parameters)"):
        weight_change.unlearn(tiny.network(variables), DATA, KEY, learning_rate=1e30, stop_acc=-1)
    with pytest.raises(DefenseError, match=r"expected (a )?finite (loss|parameters)"):
        weight_change.unlearn_noise(tiny.network(variables), KEY, learning_rate=1e30)


def test_progress_counts_the_steps_of_all_epochs():
    seen = []
    weight_change.unlearn(
        tiny.network(tiny.init(KEY)), DATA, KEY,
        epochs=3, batch_size=8, stop_acc=-1, progress=lambda *args: seen.append(args[:2]),
    )  # fmt: skip
    assert seen[-1] == (9, 9)
