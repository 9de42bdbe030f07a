"""How an image travels in a JSON request: the table ENCODINGS."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from jaxguard.errors import DataError, EndpointError


@dataclass(frozen=True)
class Encoding:
    """Images as JSON values, in two steps.

    Attributes:
        name: identifies it in the cache; encodings with the same name must send the same.
        pixels_fn: images `[N, H, W, C]` float32 in [0, 1] -> what is sent of them, `[N, ...]`; images with the same
            pixels are sent once.
        value_fn: one image of those pixels -> a JSON value.
    """

    name: str
    pixels_fn: Callable[[np.ndarray], np.ndarray]
    value_fn: Callable[[np.ndarray], Any]


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1] as 0..255, rounded to the nearest, so that uint8 / 255 round-trips.

    >>> to_uint8(np.array([0, 0.5, 1], np.float32))
    array([  0, 128, 255], dtype=uint8)
    """
    return np.rint(images * np.float32(255)).astype(np.uint8)


def _as_lists(image: np.ndarray) -> list[Any]:
    return image.tolist()


def _as_png(image: np.ndarray) -> dict[str, str]:
    if image.shape[2] not in (1, 2, 3, 4):
        raise DataError(
            f"images: expected 1 to 4 channels for encoding='png', got {image.shape[2]}; use encoding='floats'"
        )
    file = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(file, "PNG")
    return {"b64": base64.b64encode(file.getvalue()).decode("ascii")}


ENCODINGS = {
    encoding.name: encoding
    for encoding in (
        Encoding("floats", lambda images: images, _as_lists),
        Encoding("floats-nchw", lambda images: images.transpose(0, 3, 1, 2), _as_lists),
        Encoding("uint8", to_uint8, _as_lists),
        Encoding("png", to_uint8, _as_png),
    )
}
"""Name -> encoding.

`floats`: nested lists `[H, W, C]` in [0, 1], as TensorFlow Serving and KServe v1 take them, exact for float32;
`floats-nchw`: the same, `[C, H, W]`; `uint8`: nested lists of 0..255, rounded; `png`: `{"b64": ...}`, base64 of a PNG.
"""


def encoding(given: str | Encoding) -> Encoding:
    """The encoding of that name.

    Raises:
        EndpointError: no such name.

    >>> encoding("png").name
    'png'
    """
    if isinstance(given, Encoding):
        return given
    if given not in ENCODINGS:
        raise EndpointError(
            f"encoding: expected one of {', '.join(ENCODINGS)}, got {given!r}; or pass an Encoding of your own"
        )
    return ENCODINGS[given]
