"""TFDS without TensorFlow, on datasets that are prepared on the fly."""

import logging
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxguard import data
from jaxguard.errors import DataError

CHANNELS = 1
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 4, 4, CHANNELS), np.uint8)


def prepare(
    folder: pathlib.Path,
    dataset: str,
    *,
    splits=("train", "test"),
    sizes=(4,),
    supervised=("image", "label"),
) -> None:
    """Prepares a dataset of 3 classes: 30 images in the first split, 9 in the others.

    Images are given as PNG files, the one way to encode them without TensorFlow.
    """

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, CHANNELS)),
                "label": tfds.features.ClassLabel(num_classes=3),
                "other": tfds.features.Scalar(np.int64),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=supervised
            )

        def _split_generators(self, dl_manager):
            return {
                split: self._generate_examples(0 if i == 0 else 30, 9 if i else 30) for i, split in enumerate(splits)
            }

        def _generate_examples(self, start, count):
            for index in range(start, start + count):
                size = sizes[index % len(sizes)]
                file = folder / f"{dataset}_{index}.png"
                Image.fromarray(PIXELS[index, :, :, 0]).resize((size, size)).save(file)
                yield index, {"image": str(file), "label": index % 3, "other": index}

    Prepared(data_dir=folder, file_format="array_record").download_and_prepare()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path


def test_a_prepared_dataset_opens_in_its_own_splits(folder):
    prepare(folder, "tiny_digits")
    dataset = data.load("tfds:tiny_digits", clean_per_class=2)
    assert dataset.num_classes == 3 and dataset.name == "tfds:tiny_digits"
    assert dataset.train.images.shape == (24, 4, 4, 1) and dataset.clean.images.shape == (6, 4, 4, 1)
    assert dataset.test.images.dtype == np.float32 and dataset.test.labels.dtype == np.int32
    found = {image.tobytes(): label for image, label in zip(dataset.test.images, dataset.test.labels, strict=True)}
    expected = {(PIXELS[i] / np.float32(255)).tobytes(): i % 3 for i in range(30, 39)}
    assert found == expected


def test_validation_stands_in_for_a_missing_test_split(folder):
    prepare(folder, "tiny_validation", splits=("train", "validation"))
    assert len(data.load("tfds:tiny_validation:1.0.0", clean=0).test.images) == 9


def test_reading_is_silent(folder, caplog):
    prepare(folder, "tiny_silent")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        data.load("tfds:tiny_silent", clean=0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", ["mnist", "no_such_dataset", "cifar10:9.9.9", "a/b/c"])
def test_an_unprepared_dataset_says_how_to_prepare_it(name, folder):
    with pytest.raises(DataError, match=r"download_and_prepare\(\)") as caught:
        data.load(f"tfds:{name}")
    assert f"tfds:{name}" in str(caught.value) and str(folder) in str(caught.value)
    assert 'file_format="array_record"' in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": ("train",)}, "expected the splits train and test or validation, got train"),
        ({"splits": ("unlabelled", "test")}, "got test, unlabelled"),
        ({"supervised": ("image", "other")}, r"one class label .*got \('image', 'other'\)"),
        ({"supervised": None}, "got none"),
        ({"sizes": (4, 3)}, "images of one size"),
    ],
)
def test_a_dataset_that_does_not_fit_is_one_clear_error(options, message, folder):
    name = "tiny_" + "_".join(options)
    prepare(folder, name, **options)
    with pytest.raises(DataError, match=message) as caught:
        data.load(f"tfds:{name}")
    assert f"tfds:{name}" in str(caught.value)


def test_files_without_random_access_are_one_clear_error(folder):
    prepare(folder, "tiny_records")
    info = folder / "tiny_records" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match=r"got tfrecord files, which have no random access"):
        data.load("tfds:tiny_records")
