"""What the annotation of an option says: the type and range of its values, and how their text is read."""

from __future__ import annotations

import json
import operator
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import jax
import numpy as np
from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen
from jax.core import Tracer

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
Momentum = Annotated[float, Interval(ge=0, lt=1)]
Count = Annotated[int, Ge(1)]
Steps = Annotated[int, Ge(0)]


@dataclass(frozen=True)
class Named:
    """Annotation of an option that takes a function: the names the function has on the command line.

    Attributes:
        values: name -> value.
    """

    values: Mapping[str, Any]


def _split(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Bare type and metadata of an annotation."""
    if get_origin(annotation) is Annotated:
        bare, *metadata = get_args(annotation)
        return bare, tuple(metadata)
    return annotation, ()


def _members(bare: Any) -> tuple[Any, ...]:
    """Types of a union, None left out, and the type itself for anything else."""
    if get_origin(bare) in (Union, types.UnionType):
        return tuple(member for member in get_args(bare) if member is not types.NoneType)
    return (bare,)


def _is_optional(bare: Any) -> bool:
    return types.NoneType in get_args(bare)


_WORDS: Mapping[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_HOLDS = {"gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le}
_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def _bounds(metadata: Sequence[Any]) -> dict[str, float]:
    """Comparison -> bound."""
    return {
        name: bound
        for item in metadata
        if isinstance(item, Gt | Ge | Lt | Le | Interval)
        for name in _HOLDS
        if (bound := getattr(item, name, None)) is not None
    }


def expects(annotation: Any) -> str:
    """What a value looks like, in words.

    Args:
        annotation: of an option.

    Returns:
        A noun phrase for messages and tables.

    Example:
        >>> expects(Share), expects(Literal["up", "down"])
        ('a number in [0, 1]', 'one of up, down')
    """
    bare, metadata = _split(annotation)
    for item in metadata:
        if isinstance(item, Named):
            return f"one of {', '.join(item.values)}, or a function"
    text = " or ".join(_expects_one(member) for member in _members(bare))
    bounds = _bounds(metadata)
    match list(bounds):
        case [("ge" | "gt") as low, ("le" | "lt") as high]:
            text += f" in {'[' if low == 'ge' else '('}{bounds[low]}, {bounds[high]}{']' if high == 'le' else ')'}"
        case _:
            text += "".join(f" {_SIGNS[name]} {bound}" for name, bound in bounds.items())
    text += "".join(f", at least {item.min_length}" for item in metadata if isinstance(item, MinLen))
    return f"{text}, or none" if _is_optional(bare) else text


def _expects_one(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return expects(kind)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)} numbers"
    if origin in (tuple, Sequence):
        return f"a list, each {expects(arguments[0])}"
    return _WORDS.get(kind, f"a value of type {getattr(kind, '__name__', kind)}")


def converted(value: Any, annotation: Any) -> Any:
    """A value of the annotated type.

    Args:
        value: such a value, or its text.
        annotation: of an option.

    Returns:
        The value.

    Raises:
        ValueError: it does not fit.
        TypeError: it does not fit.

    Example:
        >>> converted("0.5", Share), converted("[1, 2]", tuple[float, float])
        (0.5, (1.0, 2.0))
    """
    bare, metadata = _split(annotation)
    for item in metadata:
        if isinstance(item, Named):
            if isinstance(value, str):
                if value not in item.values:
                    raise ValueError(value)
                return item.values[value]
            if not (callable(value) or (value is None and _is_optional(bare))):
                raise TypeError(value)
            return value
    if _is_optional(bare) and (value is None or (isinstance(value, str) and value in ("none", "null"))):
        return None
    failure: Exception = TypeError(value)
    for member in _members(bare):
        try:
            found = _of_type(value, member)
        except (TypeError, ValueError) as error:
            failure = error
            continue
        # A traced hyper-parameter, as under `jax.vmap`, has no value to compare.
        bounds = {} if isinstance(found, Tracer) else _bounds(metadata)
        is_short = any(len(found) < item.min_length for item in metadata if isinstance(item, MinLen))
        if is_short or not all(_HOLDS[name](found, bound) for name, bound in bounds.items()):
            raise ValueError(value)
        return found
    raise failure


def _of_type(value: Any, kind: Any) -> Any:  # noqa: PLR0911
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return converted(value, kind)
    if origin is Literal:
        return arguments[arguments.index(value)]
    if origin is Mapping:
        return dict(json.loads(value) if isinstance(value, str) else value)
    if origin in (tuple, Sequence):
        items = json.loads(value) if isinstance(value, str) else value
        kinds = [arguments[0]] * len(items) if origin is Sequence or Ellipsis in arguments else arguments
        return tuple(converted(item, kind) for item, kind in zip(items, kinds, strict=True))
    if kind not in (bool, int, float):
        if isinstance(kind, type) and not isinstance(value, kind):
            raise TypeError(value)
        return value
    if isinstance(value, str):
        value = json.loads(value.lower()) if kind is bool else kind(value)
    if isinstance(value, bool | np.bool_) != (kind is bool):
        raise TypeError(value)
    if kind is bool:
        return bool(value)
    if kind is int:
        return operator.index(value)
    if not isinstance(value, Tracer) and np.isnan(value):
        raise ValueError(value)
    return value if isinstance(value, Tracer) else float(value)


def plain(value: Any, annotation: Any) -> Any:
    """A value as JSON can hold it.

    Args:
        value: of an option.
        annotation: of the option.

    Returns:
        A function's name, a list for a sequence, an array's shape; everything else as it is.
    """
    for item in _split(annotation)[1]:
        if isinstance(item, Named):
            return next((name for name, known in item.values.items() if known == value), repr(value))
    if isinstance(value, np.ndarray | jax.Array) and np.ndim(value):
        return f"an array of shape {np.shape(value)}"
    if isinstance(value, tuple | list):
        return [plain(item, None) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
