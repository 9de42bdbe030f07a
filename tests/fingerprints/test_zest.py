"""ZEST: segments, masks and least squares against NumPy, distances by hand, copies nearer than independent networks."""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stolen_digits as digits

from jaxguard.errors import FingerprintError, OptionError
from jaxguard.fingerprints.protocol import Owner, Probes
from jaxguard.fingerprints.zest import draw_masks, grid, masked, quickshift, solver, zest
from jaxguard.types import Batch, Network

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
SEGMENTS = np.stack([grid((4, 4), 1), grid((4, 4), 2), grid((4, 4), 4)])
"""One, four and sixteen segments."""


def test_a_grid_is_equal_but_for_rounding():
    assert grid((3, 3), 2).tolist() == [[0, 0, 1], [0, 0, 1], [2, 2, 3]]
    for shape, side in (((32, 32), 4), ((28, 30), 5), ((2, 7), 3)):
        counts = np.bincount(grid(shape, side).ravel())
        assert len(counts) == min(side, shape[0]) * min(side, shape[1])
        assert counts.min() > 0
    assert len(np.unique(grid((2, 7), 100))) == 14


def test_the_first_mask_shows_all_and_missing_segments_never_show():
    masks = draw_masks(SEGMENTS, 200, KEY)
    assert masks.shape == (3, 200, 16)
    assert masks[:, 0].sum(1).tolist() == [1, 4, 16]
    assert not masks[0, :, 1:].any()
    assert not masks[1, :, 4:].any()
    assert abs(masks[2, 1:].mean() - 0.5) < 0.03


def test_masked_images_by_hand():
    image = np.array([[[0.1], [0.2]], [[0.3], [0.4]]], np.float32)
    masks = np.array([[[True, True], [False, True]]])
    found = masked(image[None], np.array([[[0, 0], [1, 1]]]), masks, 0.5)
    np.testing.assert_array_equal(found[0], image)
    np.testing.assert_allclose(found[1, ..., 0], [[0.5, 0.5], [0.3, 0.4]], rtol=1e-6)


@pytest.mark.parametrize("number", [3, 24, 300])
def test_coefficients_are_least_squares(number):
    """Images of fewer segments, and fewer masks than segments, included: the solution of least norm."""
    masks = draw_masks(SEGMENTS, number, KEY)
    outputs = RNG.normal(size=(2, 3 * number, 5)).astype(np.float32)
    probes = Probes(np.zeros((3 * number, 4, 4, 1), np.float32), {"solver": solver(masks)})
    found = zest().signature_fn(probes, outputs)
    assert found.shape == (2, 3, 16, 5)
    for suspect, answers in enumerate(outputs.reshape(2, 3, number, 5)):
        for image, segments in enumerate((1, 4, 16)):
            design = masks[image, :, :segments].astype(float)
            expected = np.linalg.lstsq(design, answers[image], rcond=None)[0]
            np.testing.assert_allclose(found[suspect, image, :segments], expected, atol=2e-4)
            np.testing.assert_allclose(found[suspect, image, segments:], 0, atol=1e-6)


def test_padding_changes_no_distance():
    """Segments that no image has."""
    masks = draw_masks(SEGMENTS, 24, KEY)
    outputs = jnp.asarray(RNG.normal(size=(3, 72, 5)), jnp.float32)
    method, found = zest(), []
    for extra in (0, 9):
        padded = np.pad(masks, ((0, 0), (0, 0), (0, extra)))
        probes = Probes(np.zeros((72, 4, 4, 1), np.float32), {"solver": solver(padded)})
        signatures = method.signature_fn(probes, outputs)
        found.append(method.distance_fn(probes, signatures[0], signatures))
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


def test_a_model_linear_in_its_segments_is_recovered():
    """Logits that are weighted sums of pixels have what each segment adds to them as coefficients."""
    weights = RNG.normal(size=(16, 3)).astype(np.float32)
    model = lambda variables, images: images.reshape(len(images), 16) @ variables  # noqa: E731
    images = RNG.random((6, 4, 4, 1)).astype(np.float32)
    method = zest(references=6, side=2, masks=24)
    probes = method.make(Owner(Network(weights, model, (4, 4, 1)), Batch(images, np.zeros(6, int))), KEY)
    shown = probes.images.reshape(6, 24, 4, 4, 1)[:, 0]  # all segments
    found = method.signature_fn(probes, model(weights, probes.images)[None])[0]
    added = (shown.reshape(6, 16, 1) * weights).reshape(6, 2, 2, 2, 2, 3).sum((2, 4)).reshape(6, 4, 3)
    np.testing.assert_allclose(found, added, atol=1e-4)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("cosine", [0, 1, 2, 0.4]), ("L1", [0, 8, 14, 6]), ("L2", [0, 50**0.5, 10, 20**0.5]), ("Linf", [0, 7, 8, 4])],
)
def test_distances_by_hand(metric, expected):
    owner = jnp.array([3.0, 4.0]).reshape(1, 2, 1)
    suspects = jnp.array([[3.0, 4.0], [4.0, -3.0], [-3.0, -4.0], [5.0, 0.0]]).reshape(4, 1, 2, 1)
    found = zest(metric=metric).distance_fn(None, owner, suspects)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_quickshift_needs_a_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(FingerprintError, match="scikit-image"):
        quickshift(np.zeros((8, 8, 3)))


@pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="needs scikit-image")
def test_quickshift_finds_the_halves_of_an_image():
    image = np.zeros((24, 24, 3))
    image[:, 12:] = (1.0, 0.2, 0.1)
    found = quickshift(image)
    assert found[0, 0] != found[0, -1]
    assert found.min() == 0
    grey = quickshift(image[..., :1])
    assert grey.shape == (24, 24)
    with pytest.raises(FingerprintError, match="2 channels"):
        quickshift(image[..., :2])


def test_superpixels_number_each_image_apart(monkeypatch):
    module = sys.modules["jaxguard.fingerprints.zest"]  # the package has a function of that name
    monkeypatch.setattr(module, "quickshift", lambda image: grid(image.shape[:2], 1 + int(image[0, 0, 0] > 0.5)))
    images = np.array([0.0, 1.0]).reshape(2, 1, 1, 1) * np.ones((2, 4, 4, 1))
    network = Network({}, lambda variables, images: images, (4, 4, 1))
    owner = Owner(network, Batch(images, np.zeros(2, int)))
    probes = zest(references=2, masks=8, segmentation="quickshift").make(owner, KEY)
    assert sorted((np.abs(probes.arrays["solver"]).sum(2) > 0).sum(1).tolist()) == [1, 4]


def test_copies_are_nearer_than_independent_networks():
    method = zest(references=32)
    probes = method.make(digits.owner(), KEY)
    assert probes.images.shape == (32 * 32, 16, 16, 1)
    np.testing.assert_allclose(digits.scores(method, probes, [digits.network()]), 0, atol=1e-6)
    copied = digits.scores(method, probes, list(digits.copies().values()))
    innocent = digits.scores(method, probes, digits.independents())
    assert copied.min() > innocent.max()
    assert innocent.max() < -0.02


def test_too_few_masks_are_told():
    probes = zest(references=4, masks=8).make(digits.owner(), KEY)
    assert probes.notes[0].startswith("4 of 4 images have more segments than the 8 masks")


def test_a_key_decides():
    method = zest(references=4)
    one, same, other = (method.make(digits.owner(), key) for key in (KEY, KEY, jax.random.key(4)))
    np.testing.assert_array_equal(one.images, same.images)
    np.testing.assert_array_equal(one.arrays["solver"], same.arrays["solver"])
    assert np.abs(one.images - other.images).max() > 0.1


@pytest.mark.parametrize(
    "options",
    [{"references": 0}, {"masks": 1}, {"side": 0}, {"fill": 2.0}, {"segmentation": "slic"}, {"metric": "l2"},
     {"space": "x"}],
)  # fmt: skip
def test_bad_options(options):
    with pytest.raises((FingerprintError, OptionError), match=r"of zest[,;]"):
        zest(**options)


def test_too_few_images():
    with pytest.raises(FingerprintError, match="at least 10000 images"):
        zest(references=10_000).make(digits.owner(), KEY)
