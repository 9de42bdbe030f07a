"""A model that can only be queried: batches, checked answers, a cache; scores of all images or an error."""

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxguard import methods
from jaxguard.endpoints import answers
from jaxguard.endpoints.answers import Classes, Kind
from jaxguard.endpoints.cache import Cache
from jaxguard.errors import DataError, EndpointError
from jaxguard.methods import Count

QueryFn = Callable[[np.ndarray], Any]
"""`images [N, H, W, C] float32 in [0, 1] -> scores [N, K]`: the one protocol of every suspect; an `Endpoint` is one."""

Progress = Callable[[int, int], None]
"""Called with `(images answered, images)`."""


@dataclass(frozen=True, repr=False)
class Endpoint:
    """A function `images -> scores` that queries a model in batches and checks every answer; see `http` and `local`.

    Attributes:
        name: of the model in errors; without secrets.
        identity: all that an answer depends on besides the pixels; only a hash of it is stored.
        pixels_fn: what is sent of images `[N, H, W, C]`; images with the same pixels are sent once.
        ask_fn: answers to pixels `[B, ...]`, unchecked; raises EndpointError. Called from several threads.
        batch_size: images per call.
        kind: `scores`, or `labels`, which become one-hot rows.
        num_classes: `K` if it is known; needed for labels.
        workers: calls in flight at a time.
        cache: file of answers; see `Cache`.
    """

    name: str
    identity: str
    pixels_fn: Callable[[np.ndarray], np.ndarray]
    ask_fn: QueryFn
    batch_size: int
    kind: Kind = "scores"
    num_classes: Classes | None = None
    workers: int = 1
    cache: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.num_classes is None and self.kind == "labels":
            raise EndpointError("num_classes: expected the number of classes with kind='labels', got none; pass it")

    def __repr__(self) -> str:
        return f"Endpoint({self.name}, {self.kind})"

    def __call__(self, images: np.ndarray, *, progress: Progress | None = None) -> np.ndarray:
        """Scores of all images.

        Args:
            images: `[N, H, W, C]` float32 in [0, 1].
            progress: called once for what the cache holds, and after every batch.

        Returns:
            `[N, K]` float64, finite.

        Raises:
            EndpointError: no answer, an answer that is not one row of finite numbers per image, or a `K` that changes.
                Earlier answers stay in the cache, if there is one.
            DataError: images of another shape, or values outside [0, 1].
        """
        pixels = self._pixels(_checked_images(images))
        keys = self._keys(pixels)
        counts = Counter(keys)
        with contextlib.nullcontext() if self.cache is None else Cache(self.cache) as cache:
            rows = {} if cache is None else cache.read(counts)
            self._check_kept(rows)
            first = {key: index for index, key in reversed([*enumerate(keys)])}
            missing = sorted(index for key, index in first.items() if key not in rows)
            done = sum(counts[key] for key in rows)
            if progress is not None and done:
                progress(done, len(keys))
            try:
                for place, batch, scores in self._asked(pixels, missing):
                    self._check_classes(scores.shape[1], rows, place)
                    fresh = {keys[index]: row for index, row in zip(batch, scores, strict=True)}
                    if cache is not None:
                        cache.write(fresh)
                    rows.update(fresh)
                    done += sum(counts[key] for key in fresh)
                    if progress is not None:
                        progress(done, len(keys))
            except EndpointError as error:
                raise EndpointError(f"{error}; {self._kept(done, len(keys))}") from error.__cause__
        return np.stack([rows[key] for key in keys])

    def _pixels(self, images: np.ndarray) -> np.ndarray:
        pixels = np.asarray(self.pixels_fn(images))
        if len(pixels) != len(images):
            raise EndpointError(
                f"{self.name}: expected pixels of {len(images)} images, got {len(pixels)}; "
                "let the encoding's pixels_fn keep the first axis"
            )
        return pixels

    def _keys(self, pixels: np.ndarray) -> list[bytes]:
        classes = self.num_classes if self.kind == "labels" else None
        asked = f"{self.identity} {self.kind} {classes} {pixels.shape[1:]} {pixels.dtype.str}"
        prefix = hashlib.sha256(asked.encode()).digest()
        return [hashlib.sha256(prefix + image.tobytes()).digest() for image in pixels]

    def _check_classes(self, found: int, rows: dict[bytes, np.ndarray], place: str) -> None:
        before = next(map(len, rows.values()), found)
        if found != before:
            raise EndpointError(
                f"{place}: expected {before} scores per image as in the answers before, got {found}; "
                "there is no verdict on a model whose classes change, pass num_classes= as they should be"
            )

    def _check_kept(self, rows: dict[bytes, np.ndarray]) -> None:
        """Cached rows were checked, but the model may have changed between the runs they are from."""
        found = sorted({len(row) for row in rows.values()})
        expected = found[:1] if self.num_classes is None else [self.num_classes]
        if found and found != expected:
            raise EndpointError(
                f"{self.cache}: expected {expected[0]} scores per image of {self.name}, got answers with "
                f"{' and '.join(map(str, found))}; where the model has changed, pass another version= or cache="
            )

    def _asked(self, pixels: np.ndarray, missing: list[int]) -> Iterator[tuple[str, list[int], np.ndarray]]:
        """Place, images and scores of each batch as they arrive; an error is raised after the calls in flight."""
        batches = [missing[start : start + self.batch_size] for start in range(0, len(missing), self.batch_size)]
        places = [
            f"{self.name}, batch {number} of {len(batches)} (images[{batch[0]}] to images[{batch[-1]}])"
            for number, batch in enumerate(batches, start=1)
        ]
        if self.workers == 1:
            for place, batch in zip(places, batches, strict=True):
                yield place, batch, self._checked(place, pixels[batch])
            return
        left = iter(range(len(batches)))
        pending: dict[concurrent.futures.Future[np.ndarray], int] = {}
        failed = None
        with concurrent.futures.ThreadPoolExecutor(self.workers, "jaxguard-endpoint") as executor:
            while True:
                # Only as many as there are workers: an answer that waits to be stored would be lost with the process.
                while failed is None and len(pending) < self.workers and (number := next(left, None)) is not None:
                    pending[executor.submit(self._checked, places[number], pixels[batches[number]])] = number
                if not pending:
                    break
                finished, _ = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in finished:
                    number = pending.pop(future)
                    try:
                        scores = future.result()
                    except EndpointError as error:
                        failed = failed or error
                    else:
                        yield places[number], batches[number], scores
        if failed is not None:
            raise failed

    def _checked(self, place: str, pixels: np.ndarray) -> np.ndarray:
        try:
            return answers.checked(self.ask_fn(pixels), len(pixels), self.kind, self.num_classes)
        except EndpointError as error:
            raise EndpointError(f"{place}: {error}") from error.__cause__

    def _kept(self, done: int, total: int) -> str:
        if self.cache is None:
            return (
                f"{done} of {total} answers were received and none is kept, pass cache=PATH to resume where a run ends"
            )
        return f"{done} of {total} answers are kept in {self.cache}, the next run requests only the others"


def _checked_images(images: np.ndarray) -> np.ndarray:
    found = np.asarray(images)
    if found.ndim != 4 or not found.size:
        raise DataError(f"images: expected at least one, [N, H, W, C], got shape {found.shape}; reshape them")
    if not np.issubdtype(found.dtype, np.floating) or not (found.min() >= 0 and found.max() <= 1):
        raise DataError(
            f"images: expected floating-point numbers in [0, 1], got {found.dtype} from {found.min()} to "
            f"{found.max()}; divide 0..255 by 255"
        )
    return np.ascontiguousarray(found, np.float32)


@methods.checked
def local(
    fn: QueryFn,
    *,
    batch_size: Count = 256,
    kind: Kind = "scores",
    num_classes: Classes | None = None,
    cache: str | os.PathLike[str] | None = None,
    version: str = "",
) -> Endpoint:
    """A Python function as an endpoint: a jitted model, a torch module in a lambda, a vendor's client.

    Args:
        fn: `images [B, H, W, C] float32 in [0, 1] -> scores [B, K]`, or labels `[B]`, as anything that numpy can read.
        batch_size: images per call; the last call may have fewer.
        kind: `scores`, or `labels` where the function returns a class index per image; these become one-hot rows.
        num_classes: `K`, needed for labels; scores of another `K` are refused.
        cache: SQLite file that stores every answer as it arrives; worth it if calls cost money.
        version: name of the model in the cache, which cannot tell one function from another; required with `cache`.

    Returns:
        A function `images [N, H, W, C] float32 in [0, 1] -> scores [N, K] float64`, with every answer checked.

    Raises:
        OptionError: an argument outside its range.
        EndpointError: labels without the number of classes, or a cache without a version.

    >>> def mean(images):
    ...     return np.stack([images.mean((1, 2, 3)), 1 - images.mean((1, 2, 3))], axis=1)
    >>> local(mean)(np.zeros((1, 2, 2, 1), np.float32))
    array([[0., 1.]])
    """
    if cache is not None and not version:
        raise EndpointError(
            "version: expected a name for the model with cache=, got none; pass one, and another for another model"
        )
    inner = fn.func if isinstance(fn, functools.partial) else fn
    name = getattr(inner, "__qualname__", None) or type(inner).__name__
    identity = json.dumps(["function", version])
    return Endpoint(name, identity, lambda images: images, _reporting(fn), batch_size, kind, num_classes, 1, cache)


def _reporting(fn: QueryFn) -> QueryFn:
    """The function with whatever it raises as an EndpointError."""

    def ask(pixels: np.ndarray) -> Any:
        try:
            return fn(pixels)
        except Exception as error:
            raise EndpointError(
                f"expected an answer, got {type(error).__name__}: {error}; call the function on images of shape "
                f"{pixels.shape} yourself"
            ) from error

    return ask


def query(model: QueryFn, images: np.ndarray, *, progress: Progress | None = None) -> np.ndarray:
    """Scores of any model for images, checked.

    Args:
        model: an `Endpoint`, or a function for `local`.
        images: `[N, H, W, C]` float32 in [0, 1].
        progress: called with the number of images answered, and of all images.

    Returns:
        `[N, K]` float64.

    Raises:
        EndpointError: an answer is missing or malformed; partial scores are never returned.
        DataError: images of another shape, or values outside [0, 1].
    """
    endpoint = model if isinstance(model, Endpoint) else local(model)
    return endpoint(images, progress=progress)
