"""LiteGuard: verifiers, loss and pools; what is learned tells copies from independent networks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stolen_digits as digits
from jax.tree_util import Partial
from scipy.special import expit

from jaxguard import models, training
from jaxguard.errors import FingerprintError, OptionError
from jaxguard.fingerprints import learned_probes, pools
from jaxguard.fingerprints.learned_probes import LearningStep, Settings
from jaxguard.fingerprints.lite_guard import LinearVerifiers, lite_guard
from jaxguard.fingerprints.protocol import Owner, Probes
from jaxguard.types import Batch, Network

KEY = jax.random.key(3)
QUICK = {"points": 40, "steps": 150}
SETTINGS = Settings(
    points=6, steps=1, probe_rate=0.01, verifier_rate=0.01, owner_weight=0.5, positive_weight=1.0, negative_weight=1.5,
    start="data", space="logits",
)  # fmt: skip


def scaled(variables, images):
    """Logits of three pixels each."""
    return variables * images.reshape(len(images), -1)


def stacked(*scales):
    return jnp.asarray(scales, jnp.float32)


def taught(**options):
    """LiteGuard with pools of two copies and two independent networks, its probes, and what it never saw."""
    seen, unseen = digits.independents()[:2], digits.independents()[2:]
    copies = digits.copies()
    method = lite_guard(positives=[copies["quantisation"], copies["distillation"]], negatives=seen, **QUICK, **options)
    return method, method.make(digits.owner(), KEY), unseen


def test_one_step_descends_the_papers_loss():
    """The loss and the gradient's signs by hand: Adam's first step is the rate times the sign."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0.1, 0.9, (6, 1, 3, 1)).astype(np.float32)
    weights = {"weight": rng.normal(size=(6, 3)).astype(np.float32), "bias": rng.normal(size=6).astype(np.float32)}
    lesson = LearningStep(SETTINGS, LinearVerifiers(), (scaled,) * 3)
    step_fn = Partial(lesson, jnp.float32(1), (stacked(2), stacked(-3)), KEY)
    end, curves = training.descend(step_fn, SETTINGS.begin(images, weights), 1)

    inner = (weights["weight"] * images.reshape(6, 3)).sum(1)
    logits = np.stack([scale * inner + weights["bias"] for scale in (1, 2, -3)])
    entropies = -np.log(np.stack([expit(logits[0]), expit(logits[1]), 1 - expit(logits[2])]))
    np.testing.assert_allclose(curves["loss"], [(np.array([[0.5], [1.0], [1.5]]) * entropies).sum(0).mean()], rtol=1e-5)
    # d loss / d logit of each network, and so of the bias
    slopes = np.stack([0.5 * (expit(logits[0]) - 1), expit(logits[1]) - 1, 1.5 * expit(logits[2])])
    np.testing.assert_allclose(end.weights["bias"], weights["bias"] - 0.01 * np.sign(slopes.sum(0)), atol=1e-5)
    slope = (slopes * np.array([[1], [2], [-3]])).sum(0)[:, None]
    moved = images.reshape(6, 3) - 0.01 * np.sign(slope * weights["weight"])
    np.testing.assert_allclose(end.images.reshape(6, 3), moved, atol=1e-5)


def test_each_step_draws_one_member_of_each_pool():
    step = jax.jit(LearningStep(SETTINGS, LinearVerifiers(), (scaled,) * 3))
    images = np.full((6, 1, 3, 1), 0.5, np.float32)
    start = SETTINGS.begin(images, {"weight": jnp.ones((6, 3)), "bias": jnp.zeros(6)})
    pairs = {}
    for positive in (1.0, 2.0):
        for negative in (-1.0, -2.0, -3.0):
            _, metrics = step(jnp.float32(1), (stacked(positive), stacked(negative)), KEY, start, 0)
            pairs[round(float(metrics["loss"]), 5)] = (positive, negative)
    pool = (stacked(1, 2), stacked(-1, -2, -3))
    losses = [round(float(step(jnp.float32(1), pool, KEY, start, index)[1]["loss"]), 5) for index in range(60)]
    assert {pairs[loss] for loss in losses} == set(pairs.values())


def test_probes_stay_images():
    settings = dataclasses.replace(SETTINGS, probe_rate=0.7)
    lesson = LearningStep(settings, LinearVerifiers(), (scaled,) * 3)
    start = settings.begin(np.full((6, 1, 3, 1), 0.5), {"weight": jnp.ones((6, 3)), "bias": jnp.zeros(6)})
    end, _ = training.descend(Partial(lesson, jnp.float32(1), (stacked(2), stacked(-3)), KEY), start, 2)
    assert set(np.unique(end.images)) <= {0.0, 1.0}


def test_confidence_is_the_mean_of_the_verifiers():
    method = lite_guard()
    weight, bias = np.array([[1.0, -1.0], [0.5, 0.0]], np.float32), np.array([0.0, 1.0], np.float32)
    probes = Probes(np.zeros((2, 1, 1, 1), np.float32), {"weight": weight, "bias": bias})
    outputs = jnp.array([[[2.0, 1.0], [2.0, 7.0]], [[0.0, 3.0], [-4.0, 0.0]]])
    signatures = method.signature_fn(probes, outputs)
    np.testing.assert_allclose(signatures, expit([[1, 2], [-3, -1]]), rtol=1e-5)
    np.testing.assert_allclose(method.distance_fn(probes, signatures[0], signatures), signatures.mean(1), rtol=1e-6)
    assert method.stolen == "high"


def test_copies_rank_above_networks_it_never_saw():
    method, probes, unseen = taught()
    assert probes.images.shape == (40, 16, 16, 1)
    assert probes.images.min() >= 0
    assert probes.images.max() <= 1
    assert digits.scores(method, probes, [digits.network()])[0] > 0.9
    copied = digits.scores(method, probes, list(digits.copies().values()))
    innocent = digits.scores(method, probes, unseen)
    assert copied.min() > 0.7
    assert copied.min() > innocent.max() + 0.2
    assert probes.notes[0].startswith("Learned with 2 copies and 2 independent networks")


def test_probes_are_learned_and_a_key_decides():
    method, probes, _ = taught()
    again = method.make(digits.owner(), KEY)
    np.testing.assert_array_equal(probes.images, again.images)
    np.testing.assert_array_equal(probes.arrays["weight"], again.arrays["weight"])
    assert np.abs(method.make(digits.owner(), jax.random.key(4)).images - probes.images).max() > 0.1
    _, fixed, _ = taught(probe_rate=0.0)
    moved = np.abs(probes.images - fixed.images)
    assert 0.05 < moved.max() < 1
    drawn = np.asarray(digits.images()[0].images)
    assert all((np.abs(drawn - image).max((1, 2, 3)) == 0).any() for image in fixed.images)


def test_noise_and_probabilities():
    method, probes, unseen = taught(start="noise", space="probs")
    assert probes.images.std() > 0.2
    assert digits.scores(method, probes, [digits.network()])[0] > digits.scores(method, probes, unseen).max()
    logits = digits.outputs(unseen, probes)
    softened = method.signature_fn(probes, jnp.log(jax.nn.softmax(logits)))
    np.testing.assert_allclose(method.signature_fn(probes, logits), softened, atol=1e-4)


def test_pools_of_several_architectures():
    other = models.build("mlp:hidden=8", num_classes=10, input_shape=(16, 16, 1))
    strangers = [other.network(other.init(jax.random.key(number))) for number in range(2)]
    negatives = [*digits.independents()[:2], *strangers]
    assert [len(jax.tree.leaves(stack)[0]) for stack in pools.stacks(negatives)] == [2, 2]
    positives = [digits.copies()["quantisation"]]
    method = lite_guard(positives=positives, negatives=negatives, **QUICK)
    probes = method.make(digits.owner(), KEY)
    assert digits.scores(method, probes, negatives).max() < 0.4


def test_architectures_are_drawn_as_often_as_they_have_members():
    spec = (1, 3, 1)
    scales = [*(np.float32(k) for k in range(3)), np.zeros(3)]
    stacks = pools.stacks([Network(scale, scaled, spec) for scale in scales])
    rng = np.random.default_rng(0)
    drawn = [len(learned_probes._pick(stacks, rng).variables) for _ in range(400)]
    assert abs(drawn.count(3) / 400 - 0.75) < 0.1


def test_pools_are_made_where_none_are_given():
    source = pools.Source("lite_guard", model="mlp:hidden=32", copies=1, independents=2, epochs=2, batch_size=64)
    made = source.pools(digits.owner(), KEY, None)
    assert (len(made.positives), len(made.negatives)) == (3, 2)
    kernels = [np.asarray(one.variables["params"]["fc1"]["kernel"]) for one in (*made.positives, *made.negatives)]
    ours = np.asarray(digits.network().variables["params"]["fc1"]["kernel"])
    apart = [np.linalg.norm(kernel - ours) / np.linalg.norm(ours) for kernel in kernels]
    assert 0 < apart[0] < 0.3  # fine-tuned
    assert 0.3 < apart[1] < 1  # pruned
    assert min(apart[2:]) > 1  # from scratch
    assert np.abs(kernels[3] - kernels[4]).max() > 0.1
    again = source.pools(digits.owner(), KEY, None)
    jax.tree.map(np.testing.assert_array_equal, again.negatives[1].variables, made.negatives[1].variables)


def test_options_make_the_method_again():
    method = lite_guard(model=digits.MODEL, points=7, space="clr")
    assert lite_guard(**method.options).options == method.options


@pytest.mark.parametrize(
    "options",
    [{"points": 0}, {"steps": 0}, {"probe_rate": -1.0}, {"verifier_rate": 0.0}, {"negative_weight": 0.0},
     {"owner_weight": np.nan}, {"start": "x"}, {"space": "x"}, {"copies": 0}, {"epochs": 0}, {"negatives": []}],
)  # fmt: skip
def test_bad_options(options):
    with pytest.raises((FingerprintError, OptionError), match=r"of lite.guard[,;]"):
        lite_guard(**options)


def test_bad_owners_and_pools():
    owner = digits.owner()
    with pytest.raises(FingerprintError, match="model=None"):
        lite_guard(**QUICK).make(owner, KEY)
    with pytest.raises(FingerprintError, match="lacks train_fn"):
        bare = Owner(dataclasses.replace(owner.network, train_fn=None), owner.data)
        lite_guard(model="mlp:hidden=32", **QUICK).make(bare, KEY)
    with pytest.raises(FingerprintError, match="got none"):
        lite_guard(model="mlp:hidden=32").make(Owner(owner.network), KEY)
    other = models.build("mlp:hidden=8", num_classes=4, input_shape=(16, 16, 1))
    stranger = [other.network(other.init(KEY))]
    with pytest.raises(FingerprintError, match=r"10 outputs, .* got some with \[4\]"):
        lite_guard(positives=stranger, negatives=digits.independents(), **QUICK).make(owner, KEY)
    broken = Owner(Network(jnp.float32(np.nan), scaled, (1, 3, 1)), Batch(np.ones((40, 1, 3, 1)), np.zeros(40)))
    others = [Network(jnp.float32(2), scaled, (1, 3, 1))]
    with pytest.raises(FingerprintError, match="finite loss"):
        lite_guard(positives=others, negatives=others, **QUICK).make(broken, KEY)
