"""IPGuard: the loss by hand, points where they should be, copies above independent networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stolen_digits as digits

from jaxguard.errors import FingerprintError, OptionError
from jaxguard.fingerprints import owner_images
from jaxguard.fingerprints.ipguard import Crossing, ipguard
from jaxguard.fingerprints.protocol import Owner
from jaxguard.types import Batch, Network

KEY = jax.random.key(3)


def linear(variables, images):
    """Logits are the pixels, scaled."""
    return variables * images.reshape(len(images), -1)


LINEAR = Owner(Network(jnp.float32(10), linear, (2, 2, 1)))
NOISE = {"start": "noise"}


def margins(probes, network):
    """How far the first class leads the second."""
    logits = np.sort(network.apply_fn(network.variables, probes.images), axis=1)
    return logits[:, -1] - logits[:, -2]


def test_the_loss_by_hand():
    crossing = Crossing(linear, k=2.0, learning_rate=0.1, stop="loss")
    logits = jnp.array([[3.0, 1.0, 0.5], [1.0, 3.5, 0.0], [1.0, 3.5, 1.25], [1.0, 3.0, 0.0]])
    source, target = jnp.zeros(4, int), jnp.ones(4, int)
    # 3 - 1 + 2; 1 - 3.5 + 2 < 0; 1.25 - 1 of the third class; exactly k apart
    np.testing.assert_allclose(crossing.losses(logits, source, target), [4, 0, 0.25, 0])
    assert crossing.reached(logits, source, target).tolist() == [False, True, False, True]


def test_two_classes_have_no_third():
    crossing = Crossing(linear, k=1.0, learning_rate=0.1, stop="loss")
    classes = jnp.array([0]), jnp.array([1])
    loss_fn = lambda logits: crossing.losses(logits, *classes).sum()  # noqa: E731
    loss, gradient = jax.value_and_grad(loss_fn)(jnp.array([[2.0, 1.0]]))
    assert (float(loss), gradient.tolist()) == (2.0, [[1.0, -1.0]])


def test_stop_at_the_class():
    crossing = Crossing(linear, k=2.0, learning_rate=0.1, stop="class")
    reached = crossing.reached(jnp.array([[1.0, 1.5, 0.0], [1.0, 0.5, 0.0]]), jnp.array([0, 0]), jnp.array([1, 1]))
    assert reached.tolist() == [True, False]


@pytest.mark.parametrize("target", ["least-likely", "random"])
def test_points_lie_across_the_boundary(target):
    probes = ipguard(points=40, k=2.0, target=target).make(digits.owner(), KEY)
    assert probes.images.shape == (40, 16, 16, 1)
    assert probes.images.min() >= 0
    assert probes.images.max() <= 1
    assert not probes.notes
    found, plain = (margins(some, digits.network()) for some in (probes, digits.images()[0]))
    assert found.min() >= 2 - 1e-4  # k apart, and what the source class needed to become second
    assert np.median(found) < np.median(plain) * 0.7
    classes = np.argsort(digits.network().apply_fn(digits.network().variables, probes.images), axis=1)
    start = owner_images.draw(digits.owner(), 40, jax.random.split(KEY)[0], method="")
    np.testing.assert_array_equal(
        classes[:, -2], digits.network().apply_fn(digits.network().variables, start).argmax(1)
    )


def test_a_point_that_is_done_stays():
    """More steps than are needed change nothing, in whatever portions they are taken."""
    few, many = (ipguard(points=8, k=1.0, steps=steps, learning_rate=0.05, **NOISE) for steps in (77, 400))
    np.testing.assert_array_equal(few.make(LINEAR, KEY).images, many.make(LINEAR, KEY).images)


def test_the_least_likely_class_wins():
    start = jax.random.uniform(jax.random.split(KEY)[0], (8, 2, 2, 1)).reshape(8, 4)
    probes = ipguard(points=8, k=1.0, learning_rate=0.02, **NOISE).make(LINEAR, KEY)
    classes = np.argsort(probes.images.reshape(8, 4), axis=1)
    np.testing.assert_array_equal(classes[:, -1], start.argmin(1))
    np.testing.assert_array_equal(classes[:, -2], start.argmax(1))


def test_points_that_get_nowhere_are_left_out():
    # Logits start up to 10 apart, and 25 steps bring them 5 nearer at most.
    some = ipguard(points=40, k=1.0, steps=25, learning_rate=0.01, **NOISE).make(LINEAR, KEY)
    assert 0 < len(some.images) < 40
    assert some.notes[0].startswith(f"{len(some.images)} of 40 points")
    assert margins(some, LINEAR.network).min() >= 1 - 1e-4
    with pytest.raises(FingerprintError, match="got none of 40"):
        ipguard(points=40, k=11.0, steps=30, **NOISE).make(LINEAR, KEY)


def test_a_large_k_is_told():
    probes = ipguard(points=40, k=7.0, steps=300).make(digits.owner(), KEY)
    assert "take a smaller k" in probes.notes[-1]
    assert np.median(digits.scores(ipguard(), probes, digits.independents())) > 0.9


def test_copies_match_and_independent_networks_do_not():
    method = ipguard(points=40, k=2.0)
    probes = method.make(digits.owner(), KEY)
    assert digits.scores(method, probes, [digits.network()]).tolist() == [1.0]
    innocent = digits.scores(method, probes, digits.independents())
    copied = dict(zip(digits.copies(), digits.scores(method, probes, list(digits.copies().values())), strict=True))
    assert min(copied["fine-tune-all"], copied["quantisation"]) > 0.9
    assert innocent.max() < 0.7
    assert copied["distillation"] > np.median(innocent)


def test_the_match_rate_counts_labels():
    method = ipguard()
    answers = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.9, 0.1], [0.6, 0.4]]])
    signatures = method.signature_fn(None, answers)
    assert signatures.tolist() == [[0, 1], [0, 0]]
    assert method.distance_fn(None, signatures[0], signatures).tolist() == [1.0, 0.5]
    assert (method.answers, method.stolen) == ("labels", "high")


def test_a_key_decides():
    method = ipguard(points=8, k=1.0, target="random", **NOISE)
    one, same, other = (method.make(LINEAR, key).images for key in (KEY, KEY, jax.random.key(4)))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.01


def test_progress_counts_the_whole(monkeypatch):
    monkeypatch.setattr("jaxguard.training.descent.PROGRESS_SECONDS", 0)
    seen = []
    with pytest.raises(FingerprintError):
        ipguard(points=8, k=11.0, steps=60, **NOISE).make(
            LINEAR, KEY, progress=lambda done, total, metrics: seen.append((done, total))
        )
    assert seen == [(step, 60) for step in range(1, 61)]


@pytest.mark.parametrize(
    "options",
    [{"points": 0}, {"steps": 0}, {"k": -1.0}, {"k": np.nan}, {"learning_rate": 0.0}, {"start": "x"}, {"target": "x"},
     {"stop": "x"}],
)  # fmt: skip
def test_bad_options(options):
    with pytest.raises((FingerprintError, OptionError), match=r"of ipguard[,;]"):
        ipguard(**options)


@pytest.mark.parametrize(
    ("owner", "options", "message"),
    [
        (LINEAR, {}, "got none"),
        (Owner(Network(1.0, linear, (2, 2, 1)), Batch(np.zeros((5, 2, 2, 1)), np.zeros(5))), {}, "at least 100 images"),
        (
            Owner(Network(1.0, linear, (2, 2, 1)), Batch(np.full((5, 2, 2, 1), 2.0), np.zeros(5))),
            {"points": 3},
            r"images in \[0, 1\]",
        ),
        (Owner(Network(jnp.float32(np.nan), linear, (2, 2, 1))), NOISE, "finite logits"),
        (Owner(Network(1.0, lambda v, x: x[:, 0, 0], (2, 2, 1))), NOISE, "two classes or more"),
    ],
)
def test_bad_owners(owner, options, message):
    with pytest.raises(FingerprintError, match=message):
        ipguard(**options).make(owner, KEY)
