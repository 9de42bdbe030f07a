"""Reports as strict JSON and back: schema `jaxguard.audit/1`.

The document mirrors `jaxguard.types.AuditReport` field by field, plus the key `schema`. Rates stay fractions in [0, 1],
arrays become nested lists, and what JSON cannot say (NaN, infinity) becomes null. Reading turns null back into NaN, and
into infinity for a layer's `threshold`, where it means that none could be set. What a report
does not have, such as a layer's `errors` or a repair's `trigger` and `path`, is null too. Unknown keys are ignored, and
keys whose field has a default may be absent: readers of version 1 stay valid as fields are added, whoever is newer.
"""

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxguard.errors import JaxguardError
from jaxguard.types import AuditReport

SCHEMA = "jaxguard.audit/1"

IMAGE_DECIMALS = 5
"""Decimals of pixel values: 390 times finer than the 8 bits they came from, at a third of the size."""

_NULL = {"threshold": math.inf}
_DTYPES = {"mask": bool, "undefined": bool, "shown": int}
_NUMBERS_ON_LINES = re.compile(r"\[\n\s+([^\[\]{}\"]*?)\n\s+\]")


def to_json(report: AuditReport) -> str:
    """Writes a report as strict JSON, keys in the order of the dataclasses, one line per list of numbers.

    Args:
        report: any report; values of `options` that JSON cannot hold are written as their `str`.

    Returns:
        ASCII text ending in a newline.

    >>> print(to_json(AuditReport(title="demo", command="jaxguard scan m.npz")), end="")
    {
      "schema": "jaxguard.audit/1",
      "title": "demo",
      "command": "jaxguard scan m.npz",
      "scans": [],
      "repairs": [],
      "trigger": null,
      "ownerships": [],
      "matrices": [],
      "environment": {}
    }
    """
    text = json.dumps({"schema": SCHEMA, **plain(report)}, indent=2, allow_nan=False)
    # A line break can only stand between values (inside a string it is escaped), so no string is ever touched.
    return _NUMBERS_ON_LINES.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def from_json(text: str) -> AuditReport:
    """Reads what `to_json` wrote.

    Args:
        text: a `jaxguard.audit/1` document; not trusted.

    Returns:
        The report, arrays as float64 or bool. `options` hold JSON values: tuples come back as lists.

    Raises:
        JaxguardError: not JSON, another schema, or a value of the wrong kind; the message gives its path.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JaxguardError(
            f"expected a JSON document of schema {SCHEMA}, got text that is not JSON ({error}) in the report; "
            "pass the whole content of a report.json"
        ) from error
    found = document.get("schema") if isinstance(document, dict) else None
    if found != SCHEMA:
        raise JaxguardError(
            f"expected schema {SCHEMA!r}, got {found!r} at key 'schema' of the report; "
            "read it with the jaxguard version that wrote it, or write it again with this one"
        )
    return _decode(AuditReport, document, "report")


def plain(value: Any) -> Any:  # noqa: PLR0911  # one return per kind of value
    """Turns a value into what `json` can write strictly."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.bool_):
        return bool(value)
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.ndim == 4 and array.dtype.kind == "f":
            array = np.round(array.astype(np.float64), IMAGE_DECIMALS)
        return plain(array.tolist())
    return str(value)


def _decode(hint: Any, value: Any, where: str) -> Any:  # noqa: PLR0911  # one return per kind of value
    """Builds a value of type `hint` from JSON; `where` is its path, for messages."""
    if hint is Any:
        return value
    if isinstance(hint, types.UnionType):  # only `X | None` occurs
        return None if value is None else _decode(typing.get_args(hint)[0], value, where)
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(hint, value, where)
    if hint is float and value is None:
        return _NULL.get(where.rpartition(".")[2], math.nan)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str) and type(value) is hint:
        return value
    if hint is np.ndarray and isinstance(value, list):
        return _decode_array(value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    raise _wrong_kind(getattr(hint, "__name__", str(hint)), value, where)


def _decode_array(value: list[Any], where: str) -> np.ndarray:
    dtype = _DTYPES.get(where.rpartition(".")[2], float)
    if dtype is int and not all(type(item) is int for item in value):
        raise _wrong_kind("a list of whole numbers", value, where)
    try:
        return np.array(value, dtype=dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise _wrong_kind("a regular list of numbers", value, where) from error


def _decode_dataclass(hint: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong_kind(f"an object ({hint.__name__})", value, where)
    hints = typing.get_type_hints(hint)
    arguments = {}
    for item in dataclasses.fields(hint):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if item.name in value:
            arguments[item.name] = _decode(hints[item.name], value[item.name], f"{where}.{item.name}")
        elif required:
            raise JaxguardError(
                f"expected key {item.name!r}, got only {sorted(value)} at {where} of the report; "
                "write the report again: this one is incomplete"
            )
    return hint(**arguments)


def _wrong_kind(expected: str, value: Any, where: str) -> JaxguardError:
    shown = json.dumps(value)
    return JaxguardError(
        f"expected {expected}, got {shown[:60]}{'…' if len(shown) > 60 else ''} at {where}; "
        "write the report again: this one was changed or made by another program"
    )
