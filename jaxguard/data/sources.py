"""The table of data sources, and `load`."""

from collections.abc import Callable, Mapping

import numpy as np

from jaxguard.data import digits, images, npz, splits, tfds_source
from jaxguard.data.source import Source
from jaxguard.errors import DataError
from jaxguard.types import Batch, Dataset

SOURCES: Mapping[str, Callable[..., Source]] = {
    "digits": digits.read,
    "npz": npz.read,
    "tfds": tfds_source.read,
}
"""Prefix -> `(text after the colon, *, seed) -> Source`."""


def load(
    spec: str,
    *,
    seed: int = 0,
    clean: float = 0.05,
    clean_per_class: int | None = None,
    image_size: int | None = None,
) -> Dataset:
    """Loads a dataset and gives the defender a small, class-balanced part of its official training split.

    Args:
        spec: `digits` (offline, 16x16 grey), `npz:PATH`, or `tfds:NAME`.
        seed: draws the clean images and, for `digits`, the test images.
        clean: fraction of the official training split that the defender owns; 0 for none.
        clean_per_class: number of clean images per class instead of `clean`.
        image_size: side to resize all images to, in pixels.

    Returns:
        Three disjoint splits, images `[N, H, W, C]` float32 in [0, 1], labels `[N]` int32; a test-only pack has
        `train` and `clean` of shape `[0, H, W, C]`.

    Raises:
        DataError: an unknown specification, missing or malformed data, or too few images for `clean`.

    >>> dataset = load("digits", clean_per_class=1)
    >>> dataset.test.images.shape, sorted(dataset.clean.labels.tolist()), dataset.num_classes
    ((359, 16, 16, 1), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 10)
    """
    prefix, _, name = spec.partition(":")
    if prefix not in SOURCES or (prefix != "digits" and not name):
        raise DataError(
            f"{spec!r}: expected digits, npz:PATH or tfds:NAME, got an unknown specification; "
            "add the prefix of a pack, such as npz:cifar10.npz"
        )
    splits.check_request(seed, clean, clean_per_class)
    source = SOURCES[prefix](name, seed=seed)
    size = source.image_size if image_size is None else image_size
    train, test = (_resized(split, size) for split in (source.train, source.test))
    train, owned = splits.split_clean(
        train, num_classes=source.num_classes, seed=seed, clean=clean, clean_per_class=clean_per_class, where=spec
    )
    return Dataset(spec, train, owned, test, source.num_classes)


def _resized(batch: Batch, image_size: int | None) -> Batch:
    if image_size is None:
        return batch
    return Batch(images.resize(np.asarray(batch.images), image_size), batch.labels)
