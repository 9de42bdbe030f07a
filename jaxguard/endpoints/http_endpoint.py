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
from jaxguard.endpoints.client import Client
from jaxguard.endpoints.encodings import Encoding
from jaxguard.endpoints.endpoint import Endpoint
from jaxguard.endpoints.target import Target
from jaxguard.errors import EndpointError

MAX_ANSWER_BYTES = 2**26


@dataclass(frozen=True)
class HttpSource:
    """Asks an HTTP endpoint: pixels -> request, answer -> scores.

    Attributes:
        client: sends requests.
        encoding: how an image is sent.
        images_key: field of the request that holds the images.
        fields: further fields of the request.
        single: a request holds one image rather than a list of images, and its answer one row.
        scores_path: where the scores are in the answer: keys and indices separated by dots; `*` stands for every item
            of a list, and an empty path is the whole answer.
        version: name of the model for the cache, besides the URL.
    """

    client: Client
    encoding: Encoding
    images_key: str
    fields: Mapping[str, Any]
    single: bool
    scores_path: str
    version: str

    def __repr__(self) -> str:
        return f"HttpSource({self.client.target.shown})"

    @property
    def identity(self) -> str:
        """All that an answer depends on besides the pixels."""
        request = [self.encoding.name, self.images_key, dict(self.fields), self.single, self.scores_path]
        return json.dumps(["http", self.client.target.url, json.dumps(request, sort_keys=True), self.version])

    def ask(self, pixels: np.ndarray) -> Any:
        """The answers to one batch, unchecked.

        Raises:
            EndpointError: no answer, one that is not JSON, or none at `scores_path`.
        """
        content = self.client.post(self._body(pixels))
        excerpt = self.client.target.excerpt
        try:
            found = json.loads(content)  # takes NaN and Infinity, which the check of the numbers reports
        except (ValueError, RecursionError):
            raise EndpointError(
                f"expected JSON, got {excerpt(content)}; check that the URL is the model's, not a page's"
            ) from None
        try:
            found = _at(found, self.scores_path.split(".") if self.scores_path else [])
        except (KeyError, IndexError, TypeError, ValueError):
            where = f"scores at {self.scores_path!r}"
            raise EndpointError(
                f"expected JSON with {where}, got {excerpt(content)}; pass the right scores_path="
            ) from None
        return [found] if self.single else found

    def _body(self, pixels: np.ndarray) -> bytes:
        values = [self.encoding.value_fn(image) for image in pixels]
        request = {**self.fields, self.images_key: values[0] if self.single else values}
        try:
            return json.dumps(request, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise EndpointError(
                f"encoding {self.encoding.name!r}: expected values that JSON has, got others ({error}); "
                "let value_fn return numbers, strings, lists and dictionaries"
            ) from error


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
    patience: float = 900.0,
    workers: int = 1,
    cache: str | os.PathLike[str] | None = None,
    version: str = "",
    max_bytes: int = MAX_ANSWER_BYTES,
) -> Endpoint:
    """A model behind an HTTP API: `{"instances": [image, ...]}` gets `{"predictions": [[score, ...], ...]}`.

    Args:
        url: http or https. Redirects are not followed but are an error that says where they lead. Keys belong in
            `headers` rather than in the URL, whose query other software may log.
        batch_size: images per request.
        encoding: how an image is sent, `floats` (`[H, W, C]` in [0, 1]), `floats-nchw`, `uint8` or `png`, see
            `ENCODINGS`; or an `Encoding` of your own, which is also the place for a normalisation.
        images_key: field of the request that holds the images.
        fields: further fields of the request, such as a model's name. Secrets belong in `headers`.
        single: a request holds one image, not a list of one, and its answer one row or label; `batch_size` is 1.
        scores_path: where the scores are in the answer, such as `outputs.*.scores`; an empty path is the whole answer.
        kind: `scores`, or `labels` where the endpoint answers with a class index per image; these become one-hot rows.
        num_classes: `K`, needed for labels; scores of another `K` are refused.
        headers: such as an API key; they appear in no error, no `repr` and not in the cache.
        rate: requests per second of all workers together, retries included.
        timeout: seconds for one attempt, from connecting to the last byte of the answer.
        retries: further attempts after a status 429, 500, 502, 503 or 504, a timeout or a broken connection;
            `Retry-After` is honoured up to five minutes.
        backoff: seconds before the first retry, doubled for each further one up to 60, with random jitter on top.
        patience: seconds for all attempts of one request; no retry starts that would exceed them.
        workers: requests in flight at a time.
        cache: SQLite file that stores every answer as it arrives; created if it is missing. Stored answers are not
            requested again, in this run or the next.
        version: distinguishes models in the cache besides the URL and the format of the request, such as the value of a
            header that selects a model.
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
    _check_above_zero(rate=rate, timeout=timeout, patience=patience, max_bytes=max_bytes)
    if retries < 0 or not 0 <= backoff < math.inf:
        raise EndpointError(f"retries, backoff: expected 0 or more, got {retries} and {backoff}; pass 0 for none")
    client = Client(
        Target(url, headers),
        rate=rate,
        timeout=timeout,
        retries=retries,
        backoff=backoff,
        patience=patience,
        max_bytes=max_bytes,
        connections=workers,
    )
    checked_fields = _checked_fields(fields or {}, images_key)
    source = HttpSource(client, encodings.encoding(encoding), images_key, checked_fields, single, scores_path, version)
    name, pixels_fn = client.target.shown, source.encoding.pixels_fn
    return Endpoint(name, source.identity, pixels_fn, source.ask, batch_size, kind, num_classes, workers, cache)


def _checked_fields(fields: Mapping[str, Any], images_key: str) -> dict[str, Any]:
    try:
        json.dumps(fields, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise EndpointError(f"fields: expected what JSON has, got other values ({error}); convert them") from error
    if images_key in fields:
        raise EndpointError(f"fields: expected none named as images_key, got {images_key!r}; rename one of them")
    return dict(fields)


def _at(found: Any, path: list[str]) -> Any:
    """Follows a path through lists and objects.

    >>> _at({"outputs": [{"p": [1, 2]}, {"p": [3, 4]}]}, ["outputs", "*", "p"])
    [[1, 2], [3, 4]]
    """
    for depth, step in enumerate(path):
        if not isinstance(found, list):
            found = {**found}[step]
        elif step == "*":
            return [_at(item, path[depth + 1 :]) for item in found]
        else:
            found = found[int(step)]
    return found


def _check_above_zero(**limits: float | None) -> None:
    for name, value in limits.items():
        if value is not None and not 0 < value < math.inf:
            raise EndpointError(f"{name}: expected more than 0, got {value}; leave it out for the default")
