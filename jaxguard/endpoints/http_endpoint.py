"""A model behind an HTTP endpoint."""

import json
import os
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from annotated_types import Lt

from jaxguard import methods
from jaxguard.endpoints import encodings
from jaxguard.endpoints.answers import Classes, Kind
from jaxguard.endpoints.client import Client
from jaxguard.endpoints.encodings import Encoding
from jaxguard.endpoints.endpoint import Endpoint
from jaxguard.endpoints.target import Target
from jaxguard.errors import EndpointError
from jaxguard.methods import Count, NonNegative, Positive, Steps

MAX_ANSWER_BYTES = 2**26
Finite = Annotated[NonNegative, Lt(float("inf"))]


@methods.checked
def http(
    url: str,
    *,
    batch_size: Count = 16,
    encoding: str | Encoding = "floats",
    images_key: str = "instances",
    fields: Mapping[str, Any] | None = None,
    single: bool = False,
    scores_path: str = "predictions",
    kind: Kind = "scores",
    num_classes: Classes | None = None,
    headers: Mapping[str, str] | None = None,
    rate: Positive | None = None,
    timeout: Positive = 30.0,
    retries: Steps = 5,
    backoff: Finite = 1.0,
    patience: Positive = 900.0,
    workers: Count = 1,
    cache: str | os.PathLike[str] | None = None,
    version: str = "",
    max_bytes: Count = MAX_ANSWER_BYTES,
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
        OptionError: an argument outside its range.
        EndpointError: a URL, header, encoding or field that cannot be sent.

    >>> http("https://example.com/v1/models/m:predict?key=123456", headers={"X-Key": "secret"}, rate=5)
    Endpoint(https://example.com/v1/models/m:predict?..., scores)
    """
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
    chosen, more = encodings.encoding(encoding), _checked_fields(fields or {}, images_key)

    def ask(pixels: np.ndarray) -> Any:
        values = [chosen.value_fn(image) for image in pixels]
        body = _body({**more, images_key: values[0] if single else values}, chosen)
        found = _found(client.post(body), scores_path, client.target)
        return [found] if single else found

    # All that an answer depends on besides the pixels.
    request = json.dumps([chosen.name, images_key, more, single, scores_path], sort_keys=True)
    identity = json.dumps(["http", url, request, version])
    batch_size = 1 if single else batch_size
    name = client.target.shown
    return Endpoint(name, identity, chosen.pixels_fn, ask, batch_size, kind, num_classes, workers, cache)


def _body(request: dict[str, Any], encoding: Encoding) -> bytes:
    try:
        return json.dumps(request, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise EndpointError(
            f"encoding {encoding.name!r}: expected values that JSON has, got others ({error}); "
            "let value_fn return numbers, strings, lists and dictionaries"
        ) from error


def _found(content: bytes, scores_path: str, target: Target) -> Any:
    """The answers to one batch, unchecked, as they are in the body."""
    try:
        found = json.loads(content)  # takes NaN and Infinity, which the check of the numbers reports
    except (ValueError, RecursionError):
        raise EndpointError(
            f"expected JSON, got {target.excerpt(content)}; check that the URL is the model's, not a page's"
        ) from None
    try:
        return _at(found, scores_path.split(".") if scores_path else [])
    except (KeyError, IndexError, TypeError, ValueError):
        raise EndpointError(
            f"expected JSON with scores at {scores_path!r}, got {target.excerpt(content)}; pass the right scores_path="
        ) from None


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
