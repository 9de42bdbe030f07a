import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard.errors import FingerprintError, OptionError
from jaxguard.fingerprints import jpeg
from jaxguard.fingerprints.protocol import Owner, Probes
from jaxguard.fingerprints.sac import NUM_PROBES, distances, sac
from jaxguard.kernels import correlation
from jaxguard.types import Batch, Network

CLASSES, SHAPE = 6, (8, 8, 1)
VARIANTS = ["jc", "normal", "wrong", "cutmix"]
NO_PROBES = Probes(np.zeros((1, *SHAPE)))


def network(variables, images):
    hidden = jnp.maximum(images.reshape(len(images), -1) @ variables["w1"], 0)
    return hidden @ variables["w2"]


def weights(seed, num_classes=CLASSES):
    rng = np.random.default_rng(seed)
    arrays = {"w1": rng.normal(size=(64, 32)), "w2": rng.normal(size=(32, num_classes))}
    return {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}


def images(count=60, seed=0):
    return np.random.default_rng(seed).random((count, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def owner():
    given = images()
    right = np.asarray(network(weights(0), given)).argmax(-1)
    wrong = np.arange(len(given)) % 2 == 0
    return Owner(Network(weights(0), network, SHAPE), Batch(given, np.where(wrong, (right + 1) % CLASSES, right)))


def measured(method, *outputs):
    signatures = [method.signature_fn(NO_PROBES, jnp.asarray(one)[None]) for one in outputs]
    return [float(method.distance_fn(NO_PROBES, signatures[0][0], one)[0]) for one in signatures]


# ---------------------------------------------------------------- probes


def is_among(image, others):
    return (others == image).all((1, 2, 3)).any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_probes_are_images_of_the_owners_size_and_repeat_by_key(variant, owner):
    method = sac(variant=variant, num_probes=20)
    first, again, other = (method.make(owner, jax.random.key(seed)).images for seed in (0, 0, 1))
    assert first.shape == (20, *SHAPE)
    assert first.dtype == np.float32
    assert 0 <= first.min() <= first.max() <= 1
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_what_each_variant_asks(owner):
    key, given = jax.random.key(0), owner.data.images
    normal, squeezed, mixed, wrong = (
        sac(variant=v, num_probes=20).make(owner, key).images for v in ("normal", "jc", "cutmix", "wrong")
    )
    assert all(is_among(image, given) for image in normal)
    np.testing.assert_array_equal(squeezed, jpeg.compressed(normal))
    assert (np.isin(mixed.ravel(), normal.ravel())).all()
    assert sum(is_among(image, given) for image in mixed) < 10
    assert all(is_among(image, given[::2]) for image in wrong)


def test_the_papers_numbers_of_probes_or_all_there_are(owner):
    assert NUM_PROBES == {"jc": 800, "normal": 10_000, "wrong": 100, "cutmix": 100}
    for variant, count in (("jc", 60), ("normal", 60), ("cutmix", 60), ("wrong", 30)):
        probes = sac(variant=variant).make(owner, jax.random.key(0))
        assert len(probes.images) == count
        assert f"fewer than {NUM_PROBES[variant]}" in probes.notes[0]
    assert sac(variant="jc", num_probes=60).make(owner, jax.random.key(0)).notes == ()


def test_transposed_probes_swap_height_and_width(owner):
    for variant in ("jc", "cutmix"):
        plain, swapped = (
            sac(variant=variant, num_probes=8, transpose=swap).make(owner, jax.random.key(0)).images
            for swap in (False, True)
        )
        np.testing.assert_array_equal(swapped, plain.transpose(0, 2, 1, 3))
    wide = Owner(Network({}, network, (8, 6, 1)), Batch(np.zeros((4, 8, 6, 1)), np.zeros(4, int)))
    with pytest.raises(FingerprintError, match=r"square images to transpose, got \(8, 6, 1\)"):
        sac(variant="jc", transpose=True).make(wide, jax.random.key(0))


def test_surrogates_narrow_the_mistakes_and_are_no_option_of_a_certificate(owner):
    surrogates = np.stack([(owner.data.labels + 1) % CLASSES] * 2)
    surrogates[1, :20] = owner.data.labels[:20]
    method = sac(variant="wrong", surrogates=surrogates)
    probes = method.make(owner, jax.random.key(0))
    assert len(probes.images) == 20
    assert all(is_among(image, owner.data.images[20:]) for image in probes.images)
    assert "surrogates" not in method.options


# ---------------------------------------------------------------- the number


def test_numbers_of_the_authors_functions():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((6, 10))
    b = a + 0.3 * rng.standard_normal((6, 10))
    c = rng.standard_normal((6, 10))
    halved = [0.0, 0.0525250, 0.1997665]
    assert measured(sac(variant="cutmix"), a, b, c) == pytest.approx(halved, abs=1e-6)
    assert measured(sac(variant="jc"), a, b, c) == pytest.approx(2 * np.array(halved), abs=2e-6)
    assert measured(sac(variant="jc", halved=True), a, b, c) == pytest.approx(halved, abs=1e-6)
    assert measured(sac(variant="jc", kernel="rbf"), a, b, c) == pytest.approx([0, 0.0347654, 0.1197011], abs=1e-6)
    assert measured(sac(variant="wrong", label_only=True), a, b, c) == pytest.approx([0, 0, 0.0048915], abs=1e-6)


def test_spaces_forgive_what_they_should():
    """Scaling each row leaves logits' cosines, an offset leaves clr and probabilities, neither the others."""
    logits = np.random.default_rng(0).normal(size=(20, 5))
    offset = logits + np.random.default_rng(1).normal(size=(20, 1))
    for space, scaled, shifted in (("logits", True, False), ("clr", True, True), ("probs", False, True)):
        found = measured(sac(variant="jc", space=space), logits, 3 * logits, offset)
        assert [found[1] < 1e-6, found[2] < 1e-6] == [scaled, shifted]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for space in ("clr", "probs"):
        assert measured(sac(variant="jc", space=space), logits, log_probs)[1] < 1e-6


def test_signatures_are_unit_rows_of_many_models_at_once():
    outputs = np.random.default_rng(0).normal(size=(3, 7, 5))
    found = np.asarray(sac().signature_fn(NO_PROBES, jnp.asarray(outputs)))
    np.testing.assert_allclose(found, outputs / np.linalg.norm(outputs, axis=-1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("kernel", ["cosine", "rbf"])
def test_workers_change_and_reorder_nothing(kernel):
    rows = correlation.unit_rows(jax.random.normal(jax.random.key(0), (8, 30, 5)))
    expected = np.asarray(distances(rows[0], rows[1:], kernel=kernel, workers=1))
    np.testing.assert_array_equal(expected, correlation.distances(rows[0], rows[1:], kernel=kernel))
    for workers in (2, 3, 9):
        np.testing.assert_array_equal(distances(rows[0], rows[1:], kernel=kernel, workers=workers), expected)
    assert distances(rows[0], rows[:0]).shape == (0,)


def test_a_broken_answer_has_no_distance():
    outputs = np.random.default_rng(0).normal(size=(8, 5))
    broken = outputs.copy()
    broken[3, 2] = np.nan
    for method in (sac(), sac(label_only=True)):
        found = measured(method, outputs, broken)
        assert found[0] == 0
        assert np.isnan(found[1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_copies_are_nearer_than_independent_models_also_of_other_classes(variant, owner):
    method = sac(variant=variant, num_probes=30)
    probes = method.make(owner, jax.random.key(0))
    rng = np.random.default_rng(9)
    tuned = {name: leaf + 0.05 * rng.normal(size=leaf.shape) for name, leaf in owner.network.variables.items()}
    # Channels in another order, scaled up and down again: the same function.
    order, scale = rng.permutation(32), rng.uniform(0.5, 2, size=32)
    disguised = {
        "w1": (owner.network.variables["w1"] * scale[None])[:, order],
        "w2": (owner.network.variables["w2"] / scale[:, None])[order],
    }
    models = [owner.network.variables, disguised, tuned, *map(weights, (1, 2)), weights(3, num_classes=9)]
    found = measured(method, *(network(model, probes.images) for model in models))
    assert found[0] == 0
    assert found[1] < 1e-5
    assert found[2] < min(found[3:]) / 2
    assert method.scores(found)[2] > method.scores(found)[3:].max()


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"variant": "wrong", "least": 5, "space": "probs"},
        {"variant": "normal", "num_probes": 50, "kernel": "rbf"},
        {"variant": "cutmix", "side": 0.2, "corner": True, "one_box": True, "transpose": True, "halved": False},
        {"variant": "jc", "quality": 10, "label_only": True},
    ],
)
def test_a_method_comes_back_from_the_options_that_a_certificate_keeps(options):
    method = sac(**options)
    assert options.items() <= method.options.items()
    again = sac(**json.loads(json.dumps(dict(method.options))))
    assert again.options == method.options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "jpeg"}, "expected one of jc, normal, wrong, cutmix for variant of sac, got 'jpeg'"),
        ({"space": "softmax"}, "one of logits, probs, clr for space"),
        ({"kernel": "linear"}, "one of cosine, rbf for kernel"),
        ({"num_probes": 1}, "a whole number >= 2, or none for num_probes of sac, got 1"),
        ({"variant": "wrong", "least": 0}, "a whole number >= 2 for least"),
        ({"quality": 0}, r"a whole number in \[1, 95\] for quality"),
        ({"variant": "cutmix", "quality": 10}, "quality with variant jc, got quality=10 with cutmix"),
        ({"variant": "normal", "transpose": True}, "transpose with variant jc or cutmix"),
        ({"surrogates": np.zeros((1, 4), int)}, "surrogates with variant wrong"),
        ({"variant": "cutmix", "side": 2.0}, r"a number in \(0, 1\], or none for side"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises((FingerprintError, OptionError), match=message):
        sac(**options)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_owner_without_images_is_told(variant):
    with pytest.raises(FingerprintError, match=r"got none in sac"):
        sac(variant=variant).make(Owner(Network({}, network, SHAPE)), jax.random.key(0))
    with pytest.raises(FingerprintError, match="sac"):
        sac(variant=variant).make(
            Owner(Network(weights(0), network, SHAPE), Batch(images(1), np.zeros(1, int))), jax.random.key(0)
        )
