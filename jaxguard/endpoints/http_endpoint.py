"""A model behind an HTTP endpoint."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxguard.endpoints import encodings
from jaxguard.endpoints.answers import Kind
from jaxguard.endpoints.encodings import Encoding
from jaxguard.endpoints.endpoint import Endpoint
from jaxguard.endpoints.exchange import Exchange
from jaxguard.endpoints.pace import Pace
from jaxguard.endpoints.target import Target
from jaxguard.endpoints.wire import Wire
from jaxguard.errors import EndpointError

MAX_ANSWER_BYTES = 2**26


@dataclass(frozen=True)
class HttpSource:
    """Asks an HTTP endpoint."""

    exchange: Exchange
    wire: Wire
    version: str = ""

    @property
    def where(self) -> str:
        """The URL, without its query."""
        return self.exchange.target.shown

    @property
    def identity(self) -> str:
        """All that an answer depends on beside the pixels."""
        return json.dumps(["http", self.exchange.target.url, self.wire.identity, self.version])

    def pixels(self, images: np.ndarray) -> np.ndarray:
        """What is sent of images."""
        return self.wire.encoding.pixels_fn(images)

    def ask(self, pixels: np.ndarray) -> Any:
        """The answers to one batch, unchecked.

        Raises:
            EndpointError: none came, or nothing like them.
        """
        content = self.exchange.post(self.wire.body(pixels))
        try:
            return self.wire.answers(content)
        except ValueError as error:
            expected, _, remedy = str(error).partition("; ")
            excerpt = self.exchange.target.excerpt(content)
            raise EndpointError(f"{expected}, found {excerpt}; {remedy}") from None


def http(
    url: str,
    *,
    batch_size: int = 16,
    encoding: str | Encoding = "floats",
    images_key: str = "instances",
    fields: Mapping[str, Any] | None = None,
    single: bool = False,
    scores_path: str = "predictions",
    kind: Kind = "scores",
    num_classes: int | None = None,
    headers: Mapping[str, str] | None = None,
    rate: float | None = None,
    timeout: float = 30.0,
    retries: int = 5,
    backoff: float = 1.0,
    workers: int = 1,
    cache: str | os.PathLike[str] | None = None,
    version: str = "",
    max_bytes: int = MAX_ANSWER_BYTES,
) -> Endpoint:
    """A model that answers JSON with JSON: `{"instances": [image, ...]}` with `{"predictions": [[score, ...], ...]}`.

    Args:
        url: http or https. Redirects are not followed: they end in an error that says where they lead. A key belongs
            into `headers` rather than into the URL, whose query other software may log.
        batch_size: images per request.
        encoding: how an image is sent, `floats` (`[H, W, C]` in [0, 1]), `floats-nchw`, `uint8` or `png`, see
            `ENCODINGS`; or an `Encoding` of your own, which is also the place for a normalisation.
        images_key: field of the request that holds the images.
        fields: further fields of the request, such as a model's name. Secrets belong into `headers`.
        single: a request holds one image, not a list of one, and its answer one row or label; `batch_size` is 1.
        scores_path: where the scores are in the answer, such as `outputs.*.scores`; an empty path is the whole answer.
        kind: `scores`, or `labels` where the endpoint answers with a class index per image; these become one-hot rows.
        num_classes: `K`, needed for labels; scores of another `K` are refused.
        headers: such as an API key. They are in no error, in no `repr` and not in the cache.
        rate: requests per second, attempts counted, over all workers.
        timeout: seconds to connect, until an answer begins, and for the rest of it; each.
        retries: further attempts after a status 429, 500, 502, 503 or 504, a timeout or a broken connection;
            `Retry-After` is honoured up to five minutes.
        backoff: seconds; the second retry waits for twice as long, every further one for twice the one before.
        workers: requests under way at a time.
        cache: SQLite file that keeps every answer as it comes, made where it is missing: what it holds is not asked for
            again, in this run or the next.
        version: what the cache is to tell the model by beside the URL and the format of the request, such as the value
            of a header that selects a model.
        max_bytes: largest body of an answer.

    Returns:
        A function `images [N, H, W, C] float32 in [0, 1] -> scores [N, K] float64`.

    Raises:
        EndpointError: an argument outside its range.

    >>> http("https://example.com/v1/models/m:predict?key=123456", headers={"X-Key": "secret"}, rate=5)
    Endpoint(https://example.com/v1/models/m:predict?..., scores)
    """
    if single:
        batch_size = 1
    _check_above_zero(rate=rate, timeout=timeout, max_bytes=max_bytes)
    if retries < 0 or not 0 <= backoff < math.inf:
        raise EndpointError(f"retries, backoff: expected 0 or more, found {retries} and {backoff}; pass 0 for none")
    wire = Wire(
        encodings.encoding(encoding), images_key, _checked_fields(fields or {}, images_key), single, scores_path
    )
    exchange = Exchange(
        Target(url, headers),
        Pace(rate),
        timeout=timeout,
        retries=retries,
        backoff=backoff,
        max_bytes=max_bytes,
        connections=workers,
    )
    return Endpoint(HttpSource(exchange, wire, version), batch_size, kind, num_classes, workers, cache)


def _checked_fields(fields: Mapping[str, Any], images_key: str) -> dict[str, Any]:
    try:
        json.dumps(fields, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise EndpointError(f"fields: expected what JSON has, found other values ({error}); convert them") from error
    if images_key in fields:
        raise EndpointError(f"fields: expected none named as images_key, found {images_key!r}; rename one of them")
    return dict(fields)


def _check_above_zero(**limits: float | None) -> None:
    for name, value in limits.items():
        if value is not None and not 0 < value < math.inf:
            raise EndpointError(f"{name}: expected more than 0, found {value}; leave it out for the default")
