"""Checks of what a model answered: one row of finite numbers per image."""

from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval

from jaxguard.errors import EndpointError

Kind = Literal["scores", "labels"]
"""What an endpoint answers with: `scores`, a row `[K]` per image, or `labels`, one class index per image."""

MAX_CLASSES = 100_000
Classes = Annotated[int, Interval(ge=2, le=MAX_CLASSES)]
"""A number of classes that can be checked."""

_MAX_SCORE = float(np.finfo(np.float32).max)
_JSON_WORDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


def checked(found: Any, count: int, kind: Kind, num_classes: int | None) -> np.ndarray:
    """Checks the answers to one batch.

    Errors quote no text of the answer, so that secrets which a server echoes stay out of logs.

    Args:
        found: the answer for `count` images: an array, or nested lists from JSON.
        count: `B`, how many images were sent.
        kind: `scores`, `[B, K]`, or `labels`, `[B]`.
        num_classes: `K` if it is known; needed for labels.

    Returns:
        `[B, K]` float64; a label as a one-hot row.

    Raises:
        EndpointError: too many or too few answers, ragged rows, anything but real and finite numbers, another `K`, one
            score alone, or a label outside [0, K).

    >>> checked([[0.5, 1], [2, 0.25]], 2, "scores", None)
    array([[0.5 , 1.  ],
           [2.  , 0.25]])
    >>> checked(np.array([2, 0]), 2, "labels", 3)
    array([[0., 0., 1.],
           [1., 0., 0.]])
    """
    numbers = _of_lists(found, count, kind) if isinstance(found, list) else _of_array(found, count, kind)
    beyond = np.argwhere(~(np.abs(numbers) <= _MAX_SCORE))  # not `>`, which lets NaN through
    if len(beyond):
        value = numbers[tuple(beyond[0])]
        raise EndpointError(
            f"expected finite numbers in float32's range, got {value} in {_place(beyond[0])} "
            f"({len(beyond)} of {numbers.size} numbers); without them there is no verdict, ask the model's owner"
        )
    return _checked_scores(numbers, num_classes) if kind == "scores" else _one_hot(numbers, num_classes)


def _checked_scores(scores: np.ndarray, num_classes: int | None) -> np.ndarray:
    classes = scores.shape[1]
    if num_classes is not None and classes != num_classes:
        raise EndpointError(
            f"expected {num_classes} scores per image, got {classes}; pass num_classes={classes} if that is right"
        )
    if not 2 <= classes <= MAX_CLASSES:
        raise EndpointError(
            f"expected 2 to {MAX_CLASSES} scores per image, got {classes}; a single probability p is the pair "
            "(1 - p, p), to be made by the endpoint or by a function around it"
        )
    return scores


def _one_hot(labels: np.ndarray, num_classes: int | None) -> np.ndarray:
    classes = num_classes or 0
    outside = np.flatnonzero((labels != np.floor(labels)) | (labels < 0) | (labels >= classes))
    if len(outside):
        raise EndpointError(
            f"expected labels in [0, {classes}), got {labels[outside[0]]:g} in answers[{outside[0]}] of the batch; "
            "pass num_classes as the model has them"
        )
    rows = np.zeros((len(labels), classes))
    rows[np.arange(len(labels)), labels.astype(np.int64)] = 1
    return rows


def _of_array(found: Any, count: int, kind: Kind) -> np.ndarray:
    try:
        array = np.asarray(found)
    except Exception as error:  # torch tensors on a device, ragged tuples, and whatever else has an __array__
        raise EndpointError(
            f"expected an array, got {type(found).__name__} that numpy cannot read ({error}); return a numpy array"
        ) from error
    axes = 2 if kind == "scores" else 1
    if array.ndim != axes:
        raise EndpointError(
            f"expected {kind} of shape {_expected_shape(count, kind)}, got shape {array.shape} of "
            f"{type(found).__name__}; {_other_kind(kind, array.ndim)}"
        )
    if array.dtype.kind == "b" or not np.can_cast(array.dtype, np.float64):  # bfloat16 has kind V and can be cast
        raise EndpointError(f"expected real numbers, got dtype {array.dtype}; convert them to float32")
    _check_count(len(array), count, kind)
    return array.astype(np.float64)


def _of_lists(found: list[Any], count: int, kind: Kind) -> np.ndarray:
    _check_count(len(found), count, kind)
    if kind == "labels":
        _check_numbers(found, "an integer label", "answers[{}] of the batch", _other_kind(kind, 2))
    else:
        for index, row in enumerate(found):
            if not isinstance(row, list):
                raise EndpointError(
                    f"expected a list of scores per image, got {_word(row)} in answers[{index}] of the batch; "
                    f"{_other_kind(kind, 1)}"
                )
            if len(row) != len(found[0]):
                raise EndpointError(
                    f"expected as many scores for every image, got {len(found[0])} in answers[0] and {len(row)} in "
                    f"answers[{index}] of the batch; let the endpoint answer with the scores of all classes"
                )
            _check_numbers(row, "a number", f"answers[{index}][{{}}] of the batch", "without it there is no verdict")
    try:
        return np.array(found, np.float64)
    except OverflowError:
        raise EndpointError(
            "expected finite numbers in float32's range, got an integer that is larger; ask the model's owner"
        ) from None


def _check_numbers(values: list[Any], expected: str, place: str, remedy: str) -> None:
    for index, value in enumerate(values):
        if type(value) not in (float, int):  # True is an int too
            raise EndpointError(f"expected {expected}, got {_word(value)} in {place.format(index)}; {remedy}")


def _check_count(found: int, count: int, kind: Kind) -> None:
    if found != count:
        raise EndpointError(
            f"expected {kind} of shape {_expected_shape(count, kind)}, one for each of {count} images, got {found} "
            "answers; the endpoint leaves images out or answers some twice, try batch_size=1"
        )


def _expected_shape(count: int, kind: Kind) -> str:
    return f"[{count}, K]" if kind == "scores" else f"[{count}]"


def _other_kind(kind: Kind, axes: int) -> str:
    if kind == "scores" and axes == 1:
        return 'pass kind="labels" and num_classes if the model answers with one label per image'
    if kind == "labels" and axes == 2:
        return 'pass kind="scores" if the model answers with scores'
    return "return one row per image"


def _place(index: np.ndarray) -> str:
    return "answers" + "".join(f"[{axis}]" for axis in index) + " of the batch"


def _word(value: Any) -> str:
    return _JSON_WORDS.get(type(value), f"a {type(value).__name__}")
