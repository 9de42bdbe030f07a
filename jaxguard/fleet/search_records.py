"""A trigger search as text, for the results of a scan on disk, and back.

    text = encoded(search)
    search = decoded(text)

Dataclasses become objects by field, arrays `{"dtype": ..., "shape": ..., "data": base64}`, bit by bit.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import numpy as np

from jaxguard.types import KindResult, TriggerRow, TriggerSearch

KINDS = "biuf"
"""Kinds of NumPy types that are read back; an object array would be a program."""


def encoded(found: TriggerSearch) -> str:
    """Writes a search.

    Args:
        found: by `jaxguard.inversion.search`.

    Returns:
        JSON, NaN and infinity spelt as Python does.
    """
    return json.dumps(_plain(found))


def decoded(text: str) -> TriggerSearch:
    """Reads what `encoded` wrote.

    Args:
        text: from a folder of results; not trusted.

    Returns:
        The search, every array as it was.

    Raises:
        ValueError: it is something else.

    Example:
        >>> decoded(encoded(TriggerSearch(problem="it answers all images alike", shape=(8, 8, 1)))).shape
        (8, 8, 1)
    """
    try:
        fields = _value(json.loads(text))
        rows, results = (fields.pop(name) for name in ("rows", "results"))
        rows, results = tuple(TriggerRow(**row) for row in rows), tuple(KindResult(**one) for one in results)
        return TriggerSearch(rows=rows, results=results, **fields)
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"no trigger search ({error})") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        return {
            "dtype": array.dtype.str,
            "shape": list(array.shape),
            "data": base64.b64encode(array.tobytes()).decode(),
        }
    return value


def _value(found: Any) -> Any:
    if isinstance(found, list):
        return tuple(map(_value, found))
    if not isinstance(found, dict):
        return found
    if found.keys() == {"dtype", "shape", "data"}:
        dtype = np.dtype(found["dtype"])
        if dtype.kind not in KINDS:
            raise ValueError(f"an array of {dtype}")
        return np.frombuffer(base64.b64decode(found["data"]), dtype).reshape(found["shape"]).copy()
    return {name: _value(item) for name, item in found.items()}
