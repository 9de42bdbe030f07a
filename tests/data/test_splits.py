"""The specification, the splits and their determinism, on the embedded digits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import datasets

from jaxguard import data
from jaxguard.data import images, splits
from jaxguard.errors import DataError
from jaxguard.types import Batch


def rows(batch: Batch) -> set[bytes]:
    return {np.asarray(image).tobytes() for image in batch.images}


def same(first: Batch, second: Batch) -> bool:
    return np.array_equal(first.images, second.images) and np.array_equal(first.labels, second.labels)


def test_digits_have_the_promised_shapes_types_and_range():
    dataset = data.load("digits")
    assert dataset.name == "digits" and dataset.num_classes == 10
    for batch in (dataset.train, dataset.clean, dataset.test):
        assert batch.images.shape[1:] == (16, 16, 1) and len(batch.images) == len(batch.labels)
        assert batch.images.dtype == np.float32 and batch.labels.dtype == np.int32
        assert batch.images.min() >= 0 and 0.9 < batch.images.max() <= 1
        assert set(batch.labels.tolist()) == set(range(10))


def test_digits_at_their_own_size_are_scikit_learns_sixteenths():
    dataset = data.load("digits", image_size=8, clean=0)
    found = rows(dataset.train) | rows(dataset.test)
    original = datasets.load_digits().images / 16
    assert found == {image[..., None].astype(np.float32).tobytes() for image in original}
    assert len(dataset.train.images) + len(dataset.test.images) == 1797


def test_splits_are_disjoint_and_complete():
    dataset = data.load("digits", image_size=8)
    parts = [rows(batch) for batch in (dataset.train, dataset.clean, dataset.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797  # no digit occurs twice


def test_the_test_split_is_stratified():
    dataset = data.load("digits")
    everything = np.bincount(datasets.load_digits().target)
    assert np.array_equal(np.bincount(dataset.test.labels), np.round(0.2 * everything).astype(int))


def test_the_clean_split_is_class_balanced():
    assert np.bincount(data.load("digits").clean.labels).tolist() == [7] * 10  # 5 % of 1438, over 10 classes
    assert np.bincount(data.load("digits", clean_per_class=3).clean.labels).tolist() == [3] * 10
    assert np.bincount(data.load("digits", clean=1e-9).clean.labels).tolist() == [1] * 10


@pytest.mark.parametrize("request_", [{"clean": 0}, {"clean_per_class": 0}])
def test_no_clean_images_on_request(request_):
    dataset = data.load("digits", **request_)
    assert dataset.clean.images.shape == (0, 16, 16, 1) and dataset.clean.labels.shape == (0,)
    assert len(dataset.train.images) == 1797 - len(dataset.test.images)


def test_the_seed_decides():
    first, again, other = (data.load("digits", seed=seed) for seed in (3, 3, 4))
    assert same(first.train, again.train) and same(first.clean, again.clean) and same(first.test, again.test)
    assert not same(first.test, other.test) and not same(first.clean, other.clean)


def test_a_larger_clean_split_contains_the_smaller():
    small, large = (data.load("digits", clean_per_class=count, image_size=8).clean for count in (2, 9))
    assert rows(small) < rows(large)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 2**32))
def test_draw_takes_exactly_what_is_asked(labels, seed):
    labels = np.array(labels)
    available = np.bincount(labels, minlength=4)
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, available + 1)
    drawn = splits.draw(labels, counts, rng)
    assert np.array_equal(np.bincount(labels[drawn], minlength=4), counts)


def test_resize_matches_the_hand_computed_bilinear_average():
    image = np.array([[0, 1], [0.5, 0.5]], np.float32).reshape(1, 2, 2, 1)
    assert images.resize(image, 1).item() == pytest.approx(0.5)
    np.testing.assert_allclose(
        images.resize(image, 4)[0, 0, :, 0], [0, 0.25, 0.75, 1], atol=1e-6
    )  # pixel centres at -1/4, 1/4, 3/4, 5/4 of the source, edges repeated
    channels = np.concatenate([image, 1 - image], axis=3)
    np.testing.assert_allclose(images.resize(channels, 5)[..., 1], 1 - images.resize(channels, 5)[..., 0], atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        ("cifar10", {}, "expected digits, npz:PATH or tfds:NAME"),
        ("pack.npz", {}, "add the prefix"),
        ("npz:", {}, "unknown specification"),
        ("tfds:", {}, "unknown specification"),
        ("digits:8", {}, "remove it"),
        ("digits", {"seed": -1}, "seed: expected an integer of at least 0, got -1"),
        ("digits", {"clean": 5}, r"clean: expected a fraction.*got 5; .*clean_per_class"),
        ("digits", {"clean": float("nan")}, "clean: expected a fraction"),
        ("digits", {"clean_per_class": -1}, "clean_per_class: expected at least 0"),
        ("digits", {"clean_per_class": 1000}, r"expected 1000 training images of every class .*got 142 of class 0"),
        ("digits", {"image_size": 0}, "image_size: expected at least 1"),
    ],
)
def test_requests_that_cannot_be_met(spec, arguments, message):
    with pytest.raises(DataError, match=message):
        data.load(spec, **arguments)
