"""Random disjoint splits, drawn class by class from a seed."""

import numpy as np

from jaxguard.errors import DataError
from jaxguard.types import Batch


def draw(labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws `counts[k]` images of every class `k` without replacement.

    Every class is shuffled as a whole: with the same seed, a larger draw contains a smaller one.

    Args:
        labels: `[N]` integers in [0, K).
        counts: `[K]`, each at most the images of its class.
        rng: source of randomness.

    Returns:
        `[N]` bool, True where drawn.

    >>> draw(np.array([0, 0, 1, 1, 1]), np.array([2, 0]), np.random.default_rng(0))
    array([ True,  True, False, False, False])
    """
    drawn = np.zeros(len(labels), bool)
    for label, count in enumerate(counts):
        members = rng.permutation(np.flatnonzero(labels == label))
        drawn[members[:count]] = True
    return drawn


def check_request(seed: int, clean: float, clean_per_class: int | None) -> None:
    """Checks the arguments of the clean split, before anything is read.

    Raises:
        DataError: a negative seed, a fraction outside [0, 1], or a negative number per class.
    """
    if seed < 0:
        raise DataError(f"seed: expected an integer of at least 0, got {seed}; pass seed=0")
    if not 0 <= clean <= 1:
        raise DataError(
            f"clean: expected a fraction of the training images in [0, 1], got {clean}; "
            "for a number of images per class pass clean_per_class"
        )
    if clean_per_class is not None and clean_per_class < 0:
        raise DataError(f"clean_per_class: expected at least 0, got {clean_per_class}; pass 0 for no clean images")


def split_clean(
    train: Batch, *, num_classes: int, seed: int, clean: float, clean_per_class: int | None, where: str
) -> tuple[Batch, Batch]:
    """Splits off the same number of images of every class for the defender.

    Args:
        train: the official training split; if empty, for a test-only pack, both parts are.
        num_classes: `K`; classes without a training image are skipped.
        seed: draws the images.
        clean: fraction of the training images, divided equally: `round(clean N / K)` per class, at least one unless 0.
        clean_per_class: the number per class; overrides `clean`.
        where: the data's specification, for the message.

    Returns:
        `(train, clean)`, disjoint, both in the order of the official split.

    Raises:
        DataError: a class has fewer images than its share.
    """
    images, labels = np.asarray(train.images), np.asarray(train.labels)
    available = np.bincount(labels, minlength=num_classes)
    present = available > 0
    share = clean_per_class
    if share is None:
        share = max(round(clean * len(labels) / max(present.sum(), 1)), 1) if clean > 0 else 0
    if np.any(available[present] < share):
        label = int(np.flatnonzero(present & (available < share))[0])
        argument = f"clean={clean}" if clean_per_class is None else f"clean_per_class={clean_per_class}"
        raise DataError(
            f"{where}: expected {share} training images of every class for {argument}, got {available[label]} "
            f"of class {label}; ask for fewer with clean_per_class"
        )
    owned = draw(labels, np.where(present, share, 0), np.random.default_rng([seed, 1]))
    return Batch(images[~owned], labels[~owned]), Batch(images[owned], labels[owned])
