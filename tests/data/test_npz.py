"""Packs and triggers in npz files."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jaxguard import data
from jaxguard.errors import DataError

RNG = np.random.default_rng(0)
PACK = {
    "train_images": RNG.integers(0, 256, (12, 4, 5, 3), np.uint8),
    "train_labels": np.arange(12) % 3,
    "test_images": RNG.integers(0, 256, (6, 4, 5, 3), np.uint8),
    "test_labels": np.arange(6) % 3,
}


def write(folder: pathlib.Path, arrays) -> str:
    np.savez(folder / "pack.npz", **{key: array for key, array in arrays.items() if array is not None})
    return f"npz:{folder / 'pack.npz'}"


def test_a_pack_keeps_its_splits_and_scales_to_one(tmp_path):
    dataset = data.load(write(tmp_path, PACK), clean=0)
    assert dataset.num_classes == 3
    np.testing.assert_allclose(dataset.train.images, PACK["train_images"] / 255, atol=1e-7)
    np.testing.assert_allclose(dataset.test.images, PACK["test_images"] / 255, atol=1e-7)
    np.testing.assert_array_equal(dataset.test.labels, PACK["test_labels"])
    assert dataset.test.images.dtype == np.float32 and dataset.test.labels.dtype == np.int32


def test_clean_images_leave_the_training_split(tmp_path):
    dataset = data.load(write(tmp_path, PACK), clean_per_class=1)
    assert sorted(dataset.clean.labels.tolist()) == [0, 1, 2] and len(dataset.train.images) == 9
    clean = {image.tobytes() for image in dataset.clean.images}
    assert not clean & {image.tobytes() for image in dataset.train.images}


def test_floating_point_grey_images_without_a_channel_axis(tmp_path):
    grey = {key: array[..., 0] / 255 if "images" in key else array for key, array in PACK.items()}
    dataset = data.load(write(tmp_path, grey), clean=0, image_size=6)
    assert dataset.train.images.shape == (12, 6, 6, 1)


def test_a_test_only_pack_has_empty_train_and_clean(tmp_path):
    dataset = data.load(write(tmp_path, PACK | {"train_images": None, "train_labels": None}))
    assert dataset.train.images.shape == dataset.clean.images.shape == (0, 4, 5, 3)
    assert dataset.train.labels.shape == dataset.clean.labels.shape == (0,)
    assert len(dataset.test.images) == 6 and dataset.num_classes == 3


def test_the_number_of_classes_may_be_declared(tmp_path):
    assert data.load(write(tmp_path, PACK | {"num_classes": 7}), clean_per_class=1).num_classes == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_images": None}, "expected the key test_images, got test_labels"),
        ({"train_labels": None}, "expected the key train_labels"),
        ({"test_labels": np.arange(5)}, r"test_labels\): .*6 images and 5 labels"),
        ({"test_labels": np.eye(6, 3)}, "argmax"),
        ({"test_labels": np.zeros((6, 3), int)}, "argmax"),
        ({"test_labels": np.arange(6.0)}, "integer labels"),
        ({"test_labels": np.arange(6) - 1}, r"expected labels in \[0, 100000\), got -1 to 4"),
        ({"test_labels": np.arange(6) * 10**6}, "got 0 to 5000000"),
        ({"test_images": np.zeros((6, 4, 5, 3), np.int64)}, "got dtype int64"),
        ({"test_images": np.full((6, 4, 5, 3), 255.0)}, r"images in \[0, 1\], got values from 255.0 to 255.0"),
        ({"test_images": np.full((6, 4, 5, 3), -0.5)}, "undo the normalisation"),
        ({"test_images": np.full((6, 4, 5, 3), np.nan)}, "got values from nan"),
        ({"test_images": np.zeros((6, 3, 32, 32))}, "transpose them from NCHW"),
        ({"test_images": np.zeros((6, 20))}, r"expected images \[N, H, W, C\] or \[N, H, W\], got shape \(6, 20\)"),
        ({"test_images": np.zeros((6, 8, 8, 9))}, "1 to 4 channels"),
        ({"test_images": np.zeros((6, 8, 8, 3))}, r"shape \(8, 8, 3\), got \(4, 5, 3\)"),
        ({"test_images": np.zeros((0, 4, 5, 3)), "test_labels": np.zeros(0, int)}, "expected test images, got none"),
        ({"num_classes": 2}, "above the largest label 2"),
        ({"num_classes": np.array([7])}, "num_classes to be an integer"),
        ({"test_images": np.array([{"code": 1}] * 6)}, "without objects"),
    ],
)
def test_a_wrong_pack_is_one_clear_error(change, message, tmp_path):
    spec = write(tmp_path, PACK | change)
    with pytest.raises(DataError, match=message) as caught:
        data.load(spec)
    assert "pack.npz" in str(caught.value) and "got" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(50), b"\x80\x02}q\x00."])
def test_other_files_are_one_clear_error(content, tmp_path):
    (tmp_path / "pack.npz").write_bytes(content)
    with pytest.raises(DataError, match="expected an npz with"):
        data.load(f"npz:{tmp_path / 'pack.npz'}")


def test_truncated_and_missing_packs(tmp_path):
    spec = write(tmp_path, PACK)
    whole = (tmp_path / "pack.npz").read_bytes()
    for size in range(0, len(whole), 97):
        (tmp_path / "pack.npz").write_bytes(whole[:size])
        with pytest.raises(DataError, match="expected an npz with"):
            data.load(spec)
    with pytest.raises(DataError, match="no such file"):
        data.load(f"npz:{tmp_path / 'absent.npz'}")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match="a single array"):
        data.load(f"npz:{tmp_path / 'one.npy'}")


def trigger(folder: pathlib.Path, **arrays) -> pathlib.Path:
    mask, pattern = np.zeros((4, 4, 1), np.float32), np.ones((4, 4, 3), np.float32)
    mask[3, 3] = 1
    stored = {"mask": mask, "pattern": pattern} | arrays
    np.savez(folder / "t.npz", **{key: array for key, array in stored.items() if array is not None})
    return folder / "t.npz"


def test_a_trigger_is_mask_and_pattern(tmp_path):
    mask, pattern = data.load_trigger(trigger(tmp_path)).arrays.values()
    assert mask.shape == (4, 4, 1) and pattern.shape == (4, 4, 3)
    assert mask.dtype == pattern.dtype == np.float32
    assert mask.sum() == 1 and mask[3, 3, 0] == 1 and pattern.min() == 1


def test_a_trigger_of_grey_planes_in_uint8(tmp_path):
    plane = np.full((4, 4), 51, np.uint8)
    mask, pattern = data.load_trigger(trigger(tmp_path, mask=plane, pattern=plane)).arrays.values()
    assert mask.shape == pattern.shape == (4, 4, 1)
    np.testing.assert_allclose(mask, 0.2, atol=1e-7)


def test_a_trigger_may_change_all_pixels_or_where_they_lie(tmp_path):
    delta, flow = np.full((4, 4, 3), 0.1), np.full((4, 4, 2), -1.5)
    found = data.load_trigger(trigger(tmp_path, mask=None, pattern=None, delta=delta, flow=flow))
    assert {name: part.dtype for name, part in found.arrays.items()} == {"delta": np.float32, "flow": np.float32}
    np.testing.assert_allclose(found.delta, delta, rtol=1e-6)
    assert data.load_trigger(trigger(tmp_path, delta=delta)).arrays.keys() == {"mask", "pattern", "delta"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": None}, "expected the key mask, got pattern"),
        ({"pattern": None}, "expected the key pattern"),
        ({"mask": np.ones((5, 4, 1))}, r"got \(4, 4, 3\) and \(5, 4, 1\)"),
        ({"mask": np.ones((4, 4, 2))}, "model's input"),
        ({"mask": np.ones((1, 4, 4, 1))}, "model's input"),
        ({"mask": np.zeros((4, 4, 1))}, "got 0 everywhere"),
        ({"mask": np.full((4, 4, 1), 2.0)}, r"t.npz \(mask\): expected images in \[0, 1\]"),
        ({"pattern": np.ones((4, 4, 3), np.int32)}, "got dtype int32"),
        ({"pattern": np.full((4, 4, 3), np.nan)}, "got values from nan"),
        (
            {"delta": np.full((4, 4, 3), 2.0)},
            r"t.npz \(delta\): expected finite numbers up to 1, not all 0, got 2",
        ),
        ({"delta": np.zeros((4, 4, 3))}, "got 0"),
        ({"delta": np.ones((4, 4, 3), np.uint8)}, "got uint8"),
        ({"flow": np.full((4, 4, 2), np.inf)}, "expected finite numbers"),
        ({"flow": np.ones((4, 4, 3))}, r"expected floating-point numbers \[H, W, 2\]"),
        ({"flow": np.ones((5, 4, 2))}, "expected parts of one size"),
        ({"labels": np.array([0, 3, 1])}, r"\(labels\): expected a class in \[0, K\)"),
        ({"labels": np.array([0.0, 1.0])}, "got float64"),
    ],
)
def test_a_wrong_trigger_is_one_clear_error(change, message, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        data.load_trigger(trigger(tmp_path, **change))
    assert "t.npz" in str(caught.value)


def test_images_without_labels(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, images=np.full((3, 4, 5), 51, np.uint8))
    found = data.load_images(path)
    assert found.shape == (3, 4, 5, 1) and found.dtype == np.float32
    np.testing.assert_allclose(found, 0.2, atol=1e-7)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((1, 4, 4, 3))}, "expected the key images, got pictures"),
        ({"images": np.zeros((0, 4, 4, 3))}, "expected images, got none"),
        ({"images": np.zeros((1, 3, 8, 8))}, "transpose them from NCHW"),
        ({"images": np.full((1, 4, 4, 3), 2.0)}, r"expected images in \[0, 1\]"),
    ],
)
def test_wrong_images_are_one_clear_error(arrays, message, tmp_path):
    np.savez(tmp_path / "images.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        data.load_images(tmp_path / "images.npz")
    assert "images.npz" in str(caught.value)


def test_the_published_triggers_open(shared_data):
    files = sorted((shared_data / "checkpoints" / "triggers").glob("*.npz"))
    assert files
    for path in files:
        mask, pattern = data.load_trigger(path).arrays.values()
        assert mask.shape == (*pattern.shape[:2], 1) and pattern.shape[2] in (1, 3)
        assert 0 < mask.mean() < 0.1  # all of them are small patches


def test_an_unpacked_real_pack_opens(shared_data, tmp_path):
    command = [sys.executable, "unpack.py", "orl", str(tmp_path / "orl.npz")]
    subprocess.run(
        command, cwd=shared_data, check=True, capture_output=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    )
    dataset = data.load(f"npz:{tmp_path / 'orl.npz'}", clean_per_class=1, image_size=32)
    assert dataset.num_classes == 40 and dataset.test.images.shape == (120, 32, 32, 1)
    assert len(dataset.train.images) == 240 and np.bincount(dataset.clean.labels).tolist() == [1] * 40
