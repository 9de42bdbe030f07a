"""A model as a Python function, and the one way to query any."""

import functools
import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxguard.endpoints.answers import Kind
from jaxguard.endpoints.endpoint import Endpoint, Progress, QueryFn
from jaxguard.errors import EndpointError


@dataclass(frozen=True)
class FunctionSource:
    """Asks a function of this process."""

    fn: QueryFn
    version: str = ""

    @property
    def where(self) -> str:
        """The function's name."""
        fn = self.fn.func if isinstance(self.fn, functools.partial) else self.fn
        return getattr(fn, "__qualname__", None) or type(fn).__name__

    @property
    def identity(self) -> str:
        """All that an answer depends on beside the pixels."""
        return json.dumps(["function", self.version])

    def pixels(self, images: np.ndarray) -> np.ndarray:
        """The images as they are."""
        return images

    def ask(self, pixels: np.ndarray) -> Any:
        """The answers to one batch, unchecked.

        Raises:
            EndpointError: from whatever the function raised.
        """
        try:
            return self.fn(pixels)
        except Exception as error:
            raise EndpointError(
                f"expected an answer, found {type(error).__name__}: {error}; call the function on images of shape "
                f"{pixels.shape} yourself"
            ) from error


def local(
    fn: QueryFn,
    *,
    batch_size: int = 256,
    kind: Kind = "scores",
    num_classes: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    version: str = "",
) -> Endpoint:
    """A Python function as an endpoint: a jitted model, a torch module in a lambda, a vendor's client.

    Args:
        fn: `images [B, H, W, C] float32 in [0, 1] -> scores [B, K]`, or labels `[B]`, as anything that numpy can read.
        batch_size: images per call; the last call has what is left, fewer perhaps.
        kind: `scores`, or `labels` where the function returns a class index per image; these become one-hot rows.
        num_classes: `K`, needed for labels; scores of another `K` are refused.
        cache: SQLite file that keeps every answer as it comes; worth it where calls cost money.
        version: names the model to the cache, which cannot tell one function from another; needed with it.

    Returns:
        A function `images [N, H, W, C] float32 in [0, 1] -> scores [N, K] float64`, with every answer checked.

    Raises:
        EndpointError: an argument outside its range, or a cache without a version.

    >>> def mean(images):
    ...     return np.stack([images.mean((1, 2, 3)), 1 - images.mean((1, 2, 3))], axis=1)
    >>> local(mean)(np.zeros((1, 2, 2, 1), np.float32))
    array([[0., 1.]])
    """
    if cache is not None and not version:
        raise EndpointError(
            "version: expected a name for the model with cache=, found none; pass one, and another for another model"
        )
    return Endpoint(FunctionSource(fn, version), batch_size, kind, num_classes, 1, cache)


def query(model: QueryFn, images: np.ndarray, *, progress: Progress | None = None) -> np.ndarray:
    """Scores of any model for images, checked.

    Args:
        model: an `Endpoint`, or a function for `local`.
        images: `[N, H, W, C]` float32 in [0, 1].
        progress: called with how many images are answered, and how many there are.

    Returns:
        `[N, K]` float64.

    Raises:
        EndpointError: no answer, or none that can be believed; there are no scores then, not even some.
        DataError: images of another shape, or values outside [0, 1].
    """
    endpoint = model if isinstance(model, Endpoint) else local(model)
    return endpoint(images, progress=progress)
