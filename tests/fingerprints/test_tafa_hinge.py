"""TAFA-style fingerprints: what must not matter does not, copies rank above independents, and others are refused."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard import data, models
from jaxguard.errors import FingerprintError, OptionError
from jaxguard.fingerprints.protocol import Owner
from jaxguard.fingerprints.spaces import to_space
from jaxguard.fingerprints.tafa_hinge import tafa_hinge
from jaxguard.theft import THEFTS, halves, independent
from jaxguard.types import Network

KEY = jax.random.key(1)
CLASSIFIER = models.build("mlp:hidden=32x32", num_classes=10, input_shape=(8, 8, 1))
CONVNET = models.build("cnn:width=0.25", num_classes=10, input_shape=(8, 8, 1))
RECIPE = {"epochs": 15, "batch_size": 64}
QUICK = {"num_probes": 20, "candidates_per_probe": 6}


@functools.cache
def digits():
    """`(the owner's, others')` images and labels."""
    return halves(data.load("digits", image_size=8).train, KEY)


@functools.cache
def trained(seed):
    """Seed 0 is the owner's; the others are independent and have the other half of the images."""
    return independent(CLASSIFIER, digits()[min(seed, 1)], jax.random.key(seed), **RECIPE)[0]


@functools.cache
def probes_of(**options):
    return tafa_hinge(**options).make(Owner(trained(0)), KEY)


def outputs(networks, probes):
    return jnp.stack([jax.jit(network.apply_fn)(network.variables, probes.images) for network in networks])


def judged(method, probes, owners, answers):
    """Scores `[S]` of answers `[S, N, ...]`."""
    ours = method.signature_fn(probes, owners[None])[0]
    return method.scores(method.distance_fn(probes, ours, method.signature_fn(probes, answers)))


@functools.cache
def convnet():
    """With BatchNorm; untrained, which is enough for what holds for any weights."""
    return CONVNET.network(CONVNET.init(KEY))


@functools.cache
def convnets_probes():
    return tafa_hinge(**QUICK).make(Owner(convnet()), KEY)


def autoencoder():
    """Images out of images."""

    def apply_fn(v, x):
        code = jax.nn.relu(jax.nn.relu(x.reshape(len(x), -1) @ v["a"] + v["b"][None]) @ v["c"])
        return (code @ v["d"]).reshape(x.shape)

    rng = np.random.default_rng(4)
    shapes = {"a": (16, 12), "b": (12,), "c": (12, 8), "d": (8, 16)}
    variables = {
        name: jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5, jnp.float32) for name, shape in shapes.items()
    }
    variables["b"] -= variables["a"].sum(0) / 2
    return Owner(Network(variables, apply_fn, (4, 4, 1)))


def test_all_queries_are_images_and_lie_on_lines_across_hinges():
    probes = convnets_probes()
    x, u, delta, offsets = (probes.arrays[name] for name in ("x", "u", "delta", "offsets"))
    assert probes.images.shape == (20 * 27, 8, 8, 1) and probes.images.dtype == np.float32
    assert probes.images.min() >= 0 and probes.images.max() <= 1
    lines = probes.images.reshape(20, 27, 8, 8, 1)
    np.testing.assert_array_equal(lines[:, 12], x)
    steps = (delta[:, None] * offsets)[..., None, None, None] * u[:, None]
    np.testing.assert_allclose(lines, x[:, None] + steps, atol=1e-6)
    assert set(probes.arrays["layer"].tolist()) == {1, 2}
    assert probes.notes[0].startswith("20 of ") and "of layer 2" in probes.notes[0]


def test_the_same_key_makes_the_same_probes_and_another_others():
    method = tafa_hinge(**QUICK)
    again, other = (method.make(Owner(convnet()), key) for key in (KEY, jax.random.key(2)))
    np.testing.assert_array_equal(again.images, convnets_probes().images)
    assert np.abs(other.images - again.images).max() > 0.1


def test_options_make_the_same_method_again():
    method = tafa_hinge(**QUICK, layers=(1,), statistic="cka")
    again = tafa_hinge(**json.loads(json.dumps(method.options)))
    assert again.options == method.options and again.across_classes
    images = [each.make(autoencoder(), KEY).images for each in (method, again)]
    np.testing.assert_array_equal(*images)


@pytest.mark.parametrize("statistic", ["profile", "cka"])
@pytest.mark.parametrize("theft", ["permutation", "rescaling"])
def test_disguises_that_keep_the_function_keep_the_score(theft, statistic):
    method, probes = tafa_hinge(**QUICK, statistic=statistic), convnets_probes()
    copy, _ = THEFTS[theft](convnet(), None, jax.random.key(5))
    answers = outputs([convnet(), copy], probes)
    found = judged(method, probes, answers[0], answers)
    assert found[0] == pytest.approx(1, abs=1e-5)
    assert found[1] == pytest.approx(1, abs=1e-3)


def test_constants_and_a_scale_of_the_outputs_do_not_count():
    method, probes = tafa_hinge(**QUICK), convnets_probes()
    (answers,) = outputs([convnet()], probes)
    changed = jnp.stack([answers + jnp.arange(10.0)[None], 2.5 * answers])
    assert judged(method, probes, answers, changed) == pytest.approx(1, abs=1e-4)


def test_probabilities_centred_are_as_good_as_logits():
    method = tafa_hinge(**QUICK, space="clr")
    probes = method.make(Owner(convnet()), KEY)
    others = CONVNET.network(CONVNET.init(jax.random.key(9)))
    logits = outputs([convnet(), others], probes)
    centred = to_space(to_space(logits, "probs"), "clr", given="probs")
    by_logits, by_probabilities = (judged(method, probes, logits[0], answers) for answers in (logits, centred))
    np.testing.assert_allclose(by_probabilities, by_logits, atol=2e-3)
    assert by_logits[0] > 0.999 > by_logits[1] + 0.3
    with pytest.raises(FingerprintError, match="two outputs or more with space='clr', got one"):
        method.signature_fn(probes, logits[..., :1])


def test_a_model_that_ends_in_softmax_is_fingerprinted_in_clr_and_has_a_note_elsewhere():
    ends = lambda v, x: jax.nn.log_softmax(CONVNET.apply_fn(v, x))  # noqa: E731
    made = convnet()
    owner = Owner(Network(made.variables, ends, (8, 8, 1)))
    centred, plain = (tafa_hinge(**QUICK, space=space).make(owner, KEY) for space in ("clr", "logits"))
    assert len(centred.notes) == 1
    assert "The outputs are not piecewise linear, from `exp` at " in plain.notes[1]
    logits_alone = tafa_hinge(**QUICK, space="clr").make(Owner(made), KEY)
    np.testing.assert_array_equal(centred.arrays["unit"], logits_alone.arrays["unit"])


def test_outputs_of_any_shape():
    method, owner = tafa_hinge(**QUICK), autoencoder()
    probes = method.make(owner, KEY)
    images = owner.network(jnp.asarray(probes.images))
    assert images.shape == (540, 4, 4, 1)
    assert method.signature_fn(probes, images[None]).shape == (1, 20, 25, 16)
    assert judged(method, probes, images, images[None])[0] == pytest.approx(1, abs=1e-5)
    assert judged(method, probes, images, images[None, ::-1])[0] < 0.5


def test_other_widths_need_cka():
    probes = convnets_probes()
    (answers,) = outputs([convnet()], probes)
    wider = jnp.concatenate([answers, answers], axis=-1)[None]
    assert judged(tafa_hinge(**QUICK, statistic="cka"), probes, answers, wider)[0] == pytest.approx(1, abs=1e-4)
    with pytest.raises(FingerprintError, match=r"expected suspects with 10 outputs.*got 20.*statistic='cka'"):
        judged(tafa_hinge(**QUICK), probes, answers, wider)


def test_copies_rank_above_independents_and_no_independent_is_accused():
    stolen, theirs = trained(0), digits()[1]
    copies = [
        THEFTS["fine-tune-all"](stolen, theirs, KEY, epochs=10, batch_size=64, learning_rate=0.01)[0],
        THEFTS["fine-pruning"](stolen, theirs, KEY, share=0.2, batch_size=64)[0],
        THEFTS["quantisation"](stolen, None, KEY, bits=4)[0],
    ]
    others = [trained(seed) for seed in range(1, 5)]
    method, probes = tafa_hinge(), probes_of()
    answers = outputs([stolen, *copies, *others], probes)
    found = judged(method, probes, answers[0], answers)
    assert found[0] == pytest.approx(1, abs=1e-5)
    assert found[1:4].min() > found[4:].max() + 0.1
    p_values = method.null_fn(probes, answers)
    assert p_values[:4].max() < 1e-3
    assert p_values[4:].min() > 1e-3
    by_cka = judged(tafa_hinge(statistic="cka"), probes, answers[0], answers)
    assert by_cka[1:4].min() > by_cka[4:].max()


def test_without_controls_there_are_fewer_queries_and_no_p_value():
    method = tafa_hinge(**QUICK, controls=False, points=13)
    probes = method.make(autoencoder(), KEY)
    assert len(probes.images) == 20 * 13
    assert method.null_fn is None


def test_networks_it_is_not_made_for_are_refused():
    def smooth(v, x):
        return jax.nn.gelu(x.reshape(len(x), -1) @ v["a"]) @ v["b"]

    variables = {"a": jnp.ones((16, 8)), "b": jnp.ones((8, 3))}
    owner = Owner(Network(variables, smooth, (4, 4, 1)))
    with pytest.raises(FingerprintError, match=r"expected a network with ReLUs .* got `.*` at .* instead"):
        tafa_hinge().make(owner, KEY)


def test_layers_that_are_missing_are_said():
    assert (
        "The model has no ReLU layer [3]; hinges are of [2]."
        in tafa_hinge(**QUICK, layers="2,3").make(autoencoder(), KEY).notes
    )
    with pytest.raises(FingerprintError, match=r"expected layers among \[1, 2\]"):
        tafa_hinge(layers=(4,)).make(autoencoder(), KEY)


def test_a_network_without_hyperplanes_in_the_box_is_refused():
    network = autoencoder().network
    far = {**network.variables, "b": network.variables["b"] + 100}
    with pytest.raises(FingerprintError, match="expected at least 20 hinges, got 0 among 120 candidates"):
        tafa_hinge(**QUICK).make(Owner(network.with_variables(far)), KEY)


def test_outputs_for_other_queries_are_refused():
    method, probes = tafa_hinge(**QUICK), convnets_probes()
    with pytest.raises(FingerprintError, match=r"expected outputs \[S, 540, \.\.\.\], 27 for each of 20 hinges"):
        method.signature_fn(probes, jnp.zeros((1, 500, 10)))


@pytest.mark.parametrize(
    "options",
    [
        {"num_probes": 0}, {"candidates_per_probe": 0}, {"points": 24}, {"points": 1}, {"scale": 0.0},
        {"scale": 0.2}, {"scale": float("nan")}, {"statistic": "mean"}, {"space": "probs"}, {"layers": ()},
        {"layers": (0,)}, {"layers": "one"},
    ],
)  # fmt: skip
def test_options_out_of_range(options):
    with pytest.raises((FingerprintError, OptionError), match=f"expected .*{next(iter(options))}"):
        tafa_hinge(**options)
