"""Image classification datasets of TensorFlow Datasets, read by random access without TensorFlow."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxguard.data import images
from jaxguard.data.source import Source
from jaxguard.errors import DataError
from jaxguard.logs import quiet_absl
from jaxguard.types import Batch

_TEST_SPLITS = ("test", "validation")


def read(name: str, *, seed: int) -> Source:
    """Reads a dataset that is prepared under `TFDS_DATA_DIR` (or `~/tensorflow_datasets`); downloads nothing.

    Args:
        name: TFDS's name, such as `cifar10`, `mnist:3.0.1` or `cifar10_corrupted/fog_3`.
        seed: not used; the splits are the dataset's own: `train`, and `test` or else `validation`.

    Raises:
        DataError: not prepared, no image with a class label, missing splits, or images of different sizes.
    """
    del seed
    with quiet_absl():
        builder = _builder(name)
        image_key, label_key = _keys(builder.info, name)
        test_split = next((split for split in _TEST_SPLITS if split in builder.info.splits), None)
        if "train" not in builder.info.splits or test_split is None:
            raise DataError(
                f"tfds:{name}: expected the splits train and {' or '.join(_TEST_SPLITS)}, got "
                f"{', '.join(sorted(builder.info.splits)) or 'none'}; choose another dataset, or write a pack "
                "for npz:PATH"
            )
        train, test = (
            _collected(_opened(builder, split, name), image_key, label_key, f"tfds:{name} ({split})")
            for split in ("train", test_split)
        )
    return Source(train, test, int(builder.info.features[label_key].num_classes))


def _builder(name: str) -> Any:
    import tensorflow_datasets as tfds

    data_dir = os.environ.get("TFDS_DATA_DIR")
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except (ValueError, TypeError, ImportError, OSError, RuntimeError, AttributeError, AssertionError) as error:
        raise _unprepared(name, f"no such dataset ({str(error).splitlines()[0]})") from error
    if not builder.is_prepared():
        raise _unprepared(name, "nothing there")
    return builder


def _opened(builder: Any, split: str, name: str) -> Sequence[dict[str, Any]]:
    try:
        return builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise _unprepared(name, f"{builder.info.file_format.value} files, which have no random access") from error


def _unprepared(name: str, found: str) -> DataError:
    folder = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return DataError(
        f"tfds:{name}: expected a dataset prepared for random access in {folder} (TFDS_DATA_DIR), got {found}; "
        "check the name, then prepare it once where TensorFlow is installed: "
        f'tfds.builder("{name}", file_format="array_record").download_and_prepare()'
    )


def _keys(info: Any, name: str) -> tuple[str, str]:
    """The names of the image and of the label among the features."""
    import tensorflow_datasets as tfds

    keys = info.supervised_keys or ()
    if (
        len(keys) == 2
        and isinstance(info.features[keys[0]], tfds.features.Image)
        and isinstance(info.features[keys[1]], tfds.features.ClassLabel)
    ):
        return keys
    raise DataError(
        f"tfds:{name}: expected an image with one class label as supervised keys, got {keys or 'none'}; "
        "choose an image classification dataset, or write a pack for npz:PATH"
    )


def _collected(examples: Sequence[dict[str, Any]], image_key: str, label_key: str, where: str) -> Batch:
    if len(examples) == 0:
        raise DataError(f"{where}: expected images, got none; prepare the dataset again")
    first = np.asarray(examples[0][image_key])
    pixels = np.empty((len(examples), *first.shape), first.dtype)
    labels = np.empty(len(examples), np.int64)
    for index in range(len(examples)):
        example = examples[index]
        image = np.asarray(example[image_key])
        if image.shape != first.shape:
            raise DataError(
                f"{where}: expected images of one size, got {first.shape} and {image.shape}; "
                "resize them into a pack for npz:PATH"
            )
        pixels[index], labels[index] = image, example[label_key]
    return images.batch(pixels, labels, where)
