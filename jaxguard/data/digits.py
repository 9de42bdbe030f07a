"""The offline default: the 1,797 handwritten digits, 8x8 grey, that scikit-learn ships."""

import numpy as np

from jaxguard.data import images, splits
from jaxguard.data.source import Source
from jaxguard.errors import DataError
from jaxguard.types import Batch

DEFAULT_IMAGE_SIZE = 16
TEST_FRACTION = 0.2
_NUM_CLASSES = 10
_WHITE = 16


def read(name: str, *, seed: int) -> Source:
    """Reads the digits and draws a stratified 20 % for testing, since they have no official split.

    Args:
        name: must be empty.
        seed: draws the test images.

    Raises:
        DataError: `name` is not empty.
    """
    from sklearn import datasets

    if name:
        raise DataError(f"digits:{name}: expected the specification `digits`, got {name!r} after it; remove it")
    rows, classes = (np.asarray(array) for array in datasets.load_digits(return_X_y=True))
    everything = images.batch(rows.reshape(-1, 8, 8).astype(np.float32) / _WHITE, classes, "digits")
    pixels, labels = np.asarray(everything.images), np.asarray(everything.labels)
    counts = np.round(TEST_FRACTION * np.bincount(labels, minlength=_NUM_CLASSES)).astype(int)
    is_test = splits.draw(labels, counts, np.random.default_rng([seed, 0]))
    return Source(
        train=Batch(pixels[~is_test], labels[~is_test]),
        test=Batch(pixels[is_test], labels[is_test]),
        num_classes=_NUM_CLASSES,
        image_size=DEFAULT_IMAGE_SIZE,
    )
