"""Types of options in a specification, with conversion from and to text."""

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """One option of an architecture.

    Attributes:
        default: value if the specification sets none.
        parse: text to value; raises ValueError for an invalid one.
        expects: description of a value, for messages.
        choices: all values of a choice.
    """

    default: Any
    parse: Callable[[str], Any]
    expects: str
    choices: tuple[str, ...] = ()


def number(default: float, expects: str) -> Option:
    """A positive, finite number."""

    def parse(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(text)
        return value

    return Option(default, parse, expects)


def count(default: int, expects: str, least: int) -> Option:
    """A whole number from `least` to 999."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,3}", text, re.ASCII) or int(text) < least:
            raise ValueError(text)
        return int(text)

    return Option(default, parse, expects)


def sizes(default: tuple[int, ...], expects: str, length: int | None = None) -> Option:
    """Positive whole numbers joined by x, `length` of them or any number.

    >>> sizes((3, 3, 9, 3), "blocks").parse("1x1x2x1")
    (1, 1, 2, 1)
    """

    def parse(text: str) -> tuple[int, ...]:
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text, re.ASCII):
            raise ValueError(text)
        values = tuple(int(size) for size in text.split("x"))
        if length not in (None, len(values)):
            raise ValueError(text)
        return values

    return Option(default, parse, expects)


def choice(*choices: str) -> Option:
    """One of several words; the first is the default."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return Option(choices[0], parse, " or ".join(choices), choices)


def hidden_choice(*choices: str) -> Option:
    """A choice that no leaf shows: identification does not try its values, it takes the first one.

    >>> hidden_choice("relu", "tanh").choices
    ()
    """
    return dataclasses.replace(choice(*choices), choices=())


def to_text(value: Any) -> str:
    """A value as text of a specification.

    >>> to_text((256, 128)), to_text(0.5), to_text("cifar")
    ('256x128', '0.5', 'cifar')
    """
    if isinstance(value, tuple):
        return "x".join(str(size) for size in value)
    return f"{value:.12g}" if isinstance(value, float) else str(value)
