"""The JSON of a request and of its answer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxguard.endpoints.encodings import Encoding
from jaxguard.errors import EndpointError


@dataclass(frozen=True)
class Wire:
    """Pixels -> request, answer -> scores; by default as TensorFlow Serving and KServe v1 have them.

    Attributes:
        encoding: how an image is sent.
        images_key: field of the request that holds the images.
        fields: further fields of the request.
        single: whether a request holds one image itself rather than a list of images, and its answer one row.
        scores_path: where the scores are in the answer: keys and indices, divided by dots; `*` goes into every item
            of a list, and an empty path is the whole answer.
    """

    encoding: Encoding
    images_key: str = "instances"
    fields: Mapping[str, Any] = field(default_factory=dict)
    single: bool = False
    scores_path: str = "predictions"

    @property
    def identity(self) -> str:
        """All that a request and its answer depend on beside the pixels."""
        parts = [self.encoding.name, self.images_key, dict(self.fields), self.single, self.scores_path]
        return json.dumps(parts, sort_keys=True)

    def body(self, pixels: np.ndarray) -> bytes:
        """The request for pixels `[B, ...]`.

        Raises:
            EndpointError: values that JSON does not have.
        """
        values = [self.encoding.value_fn(image) for image in pixels]
        request = {**self.fields, self.images_key: values[0] if self.single else values}
        try:
            return json.dumps(request, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise EndpointError(
                f"encoding {self.encoding.name!r}: expected values that JSON has, found others ({error}); "
                "let value_fn return numbers, strings, lists and dictionaries"
            ) from error

    def answers(self, content: bytes) -> Any:
        """The answers in a body, unchecked: one for each image of the request.

        Raises:
            ValueError: no JSON, or nothing at `scores_path`; the message says what was expected and what to do.
        """
        try:
            found = json.loads(content)  # also NaN and Infinity, which the check of the numbers names
        except (ValueError, RecursionError):
            raise ValueError("expected JSON; check that the URL is the model's, not a page's") from None
        try:
            found = _at(found, self.scores_path.split(".") if self.scores_path else [])
        except (KeyError, IndexError, TypeError, ValueError):
            raise ValueError(f"expected JSON with scores at {self.scores_path!r}; pass scores_path= as it is") from None
        return [found] if self.single else found


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
