"""Packs and triggers in plain `.npz` files, read without pickle."""

import os
import pathlib
import zipfile
import zlib

import numpy as np

from jaxguard.data import images
from jaxguard.data.source import Source
from jaxguard.errors import DataError
from jaxguard.types import Batch, Trigger


def read(name: str, *, seed: int) -> Source:
    """Reads `train_images`, `train_labels`, `test_images`, `test_labels`; the training pair may be missing.

    Args:
        name: path of the pack.
        seed: not used, the splits are the pack's own.

    Returns:
        The splits; `K` is the scalar `num_classes` if the pack has it, else one more than the largest label.

    Raises:
        DataError: no such file, not an npz, missing keys, or arrays that are no labelled images.
    """
    del seed
    arrays = _arrays(name, expected="test_images, test_labels (and train_images, train_labels)")
    test = _split(arrays, "test", name)
    if len(test.images) == 0:
        raise DataError(f"npz:{name}: expected test images, got none; store the test split in the pack")
    train = Batch(test.images[:0], test.labels[:0])
    if "train_images" in arrays or "train_labels" in arrays:
        train = _split(arrays, "train", name)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"npz:{name}: expected train_images of the test images' shape {test.images.shape[1:]}, "
            f"got {train.images.shape[1:]}; store both at one size"
        )
    return Source(train, test, _num_classes(arrays, train, test, name))


def load_trigger(path: str | os.PathLike[str]) -> Trigger:
    """Reads a trigger.

    Args:
        path: npz with parts of a `Trigger`: `mask`, `[H, W]`, `[H, W, 1]` or `[H, W, C]`, and `pattern`, `[H, W]` or
            `[H, W, C]`, uint8 or floating-point numbers in [0, 1]; `delta`, `[H, W]` or `[H, W, C]` in [-1, 1]; or
            `flow`, `[H, W, 2]` in pixels. With `labels`, int `[K]`: what images of each class are to be taken for.

    Returns:
        The trigger, its parts float32 with all axes.

    Raises:
        DataError: no such file, not an npz, missing keys, bad dtype or range, shapes that do not fit, or a trigger
            that does nothing.
    """
    name = os.fspath(path)
    arrays = _arrays(name, expected="mask and pattern")
    labels = arrays.get("labels")
    if labels is not None:
        is_whole = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
        if not is_whole or len(labels) < 2 or not ((labels >= 0) & (labels < len(labels))).all():
            raise DataError(
                f"{name} (labels): expected a class in [0, K) for each of K classes, got {labels.dtype}"
                f"{list(labels.shape)}; save the trigger again with `jaxguard scan --save-trigger`"
            )
    if not {"delta", "flow"} & set(arrays):
        return Trigger(*_mask_and_pattern(arrays, name), labels=labels)
    parts: dict[str, np.ndarray] = {}
    if "mask" in arrays:
        parts["mask"], parts["pattern"] = _mask_and_pattern(arrays, name)
    for key, depth, most in (("delta", None, 1.0), ("flow", 2, np.inf)):
        if key in arrays:
            parts[key] = _bounded(arrays[key], f"{name} ({key})", depth, most)
    edges = {part.shape[:2] for part in parts.values()}
    if len(edges) > 1:
        raise DataError(f"{name}: expected parts of one size, got {sorted(edges)}; store all at that of the input")
    return Trigger(**parts, labels=labels)


def _mask_and_pattern(arrays: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    mask, pattern = (images.unit_range(_required(arrays, key, name), f"{name} ({key})") for key in ("mask", "pattern"))
    mask, pattern = (array[..., None] if array.ndim == 2 else array for array in (mask, pattern))
    fits = mask.ndim == pattern.ndim == 3 and mask.shape in (pattern.shape, (*pattern.shape[:2], 1))
    if not fits:
        raise DataError(
            f"{name}: expected pattern [H, W, C] and mask [H, W, 1] or [H, W, C], got {pattern.shape} and "
            f"{mask.shape}; store both at the size of the model's input"
        )
    if not mask.any():
        raise DataError(f"{name}: expected a mask above 0 somewhere, got 0 everywhere; the trigger would do nothing")
    return mask, pattern


def _bounded(part: np.ndarray, where: str, depth: int | None, most: float) -> np.ndarray:
    """Changes of pixels or shifts, `[H, W, C]`, of at most so much."""
    part = part[..., None] if part.ndim == 2 else part
    if part.ndim != 3 or depth not in (None, part.shape[-1]) or not np.issubdtype(part.dtype, np.floating):
        raise DataError(
            f"{where}: expected floating-point numbers [H, W, {depth or 'C'}], got {part.dtype}{list(part.shape)}; "
            "store them at the size of the model's input"
        )
    largest = np.abs(part).max(initial=0)
    if not 0 < largest <= most or not np.isfinite(largest):
        raise DataError(f"{where}: expected finite numbers up to {most:g}, not all 0, got {largest:g}; scale them")
    return part.astype(np.float32)


def load_images(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads images without labels.

    Args:
        path: npz with `images`, see `jaxguard.data.images.nhwc`.

    Returns:
        float32 `[N, H, W, C]` in [0, 1], N >= 1.

    Raises:
        DataError: no such file, not an npz, a missing key, bad dtype or range, or no images.
    """
    name = os.fspath(path)
    found = images.nhwc(_required(_arrays(name, expected="images"), "images", name), f"{name} (images)")
    if len(found) == 0:
        raise DataError(f"{name}: expected images, got none; store some in the file")
    return found


def _arrays(name: str, *, expected: str) -> dict[str, np.ndarray]:
    if not pathlib.Path(name).is_file():
        raise DataError(f"{name}: expected an npz file, got no such file; check the path")
    try:
        file = np.load(name, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("a single array")
        with file:
            return {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(
            f"{name}: expected an npz with {expected}, got {error}; write it with numpy.savez, without objects"
        ) from error


def _required(arrays: dict[str, np.ndarray], key: str, name: str) -> np.ndarray:
    if key not in arrays:
        raise DataError(
            f"{name}: expected the key {key}, got {', '.join(sorted(arrays)) or 'none'}; rename it in the file"
        )
    return arrays[key]


def _split(arrays: dict[str, np.ndarray], split: str, name: str) -> Batch:
    pixels, labels = (_required(arrays, f"{split}_{kind}", name) for kind in ("images", "labels"))
    return images.batch(pixels, labels, f"npz:{name} ({split}_images, {split}_labels)")


def _num_classes(arrays: dict[str, np.ndarray], train: Batch, test: Batch, name: str) -> int:
    largest = int(max(np.max(test.labels), np.max(train.labels, initial=0)))
    if "num_classes" not in arrays:
        return largest + 1
    declared = arrays["num_classes"]
    if declared.shape != () or not np.issubdtype(declared.dtype, np.integer) or declared <= largest:
        raise DataError(
            f"npz:{name}: expected num_classes to be an integer above the largest label {largest}, "
            f"got {declared!r}; correct it or leave it out"
        )
    return int(declared)
