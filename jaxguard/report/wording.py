"""How reports write values and names: rates, scores, sizes, p-values, paths that need no trust."""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_ACRONYMS = frozenset({
    "abl", "akh", "anp", "bnp", "clp", "ep", "ft", "jc", "nad", "npd", "otbr", "rnp", "sac", "sam", "tafa", "tsbd",
    "zest",
})  # fmt: skip
_NAMES = {
    "fine-pruning": "Fine-Pruning",
    "i-bau": "i-BAU",
    "ipguard": "IPGuard",
    "liteguard": "LiteGuard",
    "metav": "MetaV",
    "neural-cleanse": "Neural Cleanse",
    "shapley": "ShapPruning",
}


def percent(rate: float | None) -> str:
    """Writes a rate in [0, 1] as a percentage with one decimal that never rounds to a false 0 or 100.

    Args:
        rate: in [0, 1]; None where it was not measured, NaN where it has no value.

    Returns:
        Such as `99.7 %`; `–` for None, `undefined` for NaN.

    >>> [percent(rate) for rate in (0.997, 1.0, 0.9999, 0.0, 0.0001, None)]
    ['99.7 %', '100.0 %', '>99.9 %', '0.0 %', '<0.1 %', '–']
    """
    if rate is None:
        return "–"
    if not math.isfinite(rate):
        return "undefined"
    if 0 < rate < 0.0005:
        return "<0.1 %"
    if 0.9995 <= rate < 1:
        return ">99.9 %"
    return f"{100 * rate:.1f} %"


def change(before: float | None, after: float | None) -> str:
    """Writes two rates as `98.9 % → 98.1 %`, or `–` where neither was measured.

    >>> change(0.989, 0.981)
    '98.9 % → 98.1 %'
    """
    if before is None and after is None:
        return "–"
    return f"{percent(before)} → {percent(after)}"


def number(value: float) -> str:
    """Writes a score with three significant digits; `undefined` where it is not finite.

    >>> number(2.6), number(22.134), number(float("nan"))
    ('2.6', '22.1', 'undefined')
    """
    return f"{value:.3g}" if math.isfinite(value) else "undefined"


def pixels(norm: float) -> str:
    """Writes an L1 norm with three significant digits, and never an exponent.

    >>> [pixels(norm) for norm in (7.119, 44.0, 1024.4, 0.0, float("nan"))]
    ['7.12', '44.0', '1024', '0', 'undefined']
    """
    if not math.isfinite(norm) or norm == 0:
        return number(norm)
    decimals = max(2 - math.floor(math.log10(abs(norm))), 0)
    return f"{norm:.{min(decimals, 3)}f}"


def deviations(index: float) -> str:
    """Writes an anomaly index with two decimals.

    >>> deviations(4.653), deviations(-0.2), deviations(float("inf"))
    ('4.65', '-0.20', 'undefined')
    """
    return f"{index:.2f}" if math.isfinite(index) else "undefined"


def estimates(values: Iterable[float], errors: Iterable[float]) -> list[str]:
    """Writes a column of values with their standard errors, all to two digits of the smallest error.

    Args:
        values: NaN where undefined.
        errors: one per value; not finite where unknown.

    Returns:
        One text per value, all with the same decimals, so that the column lines up.

    >>> estimates([0.3124, 0.04], [0.0118, 0.0031])
    ['0.3124 ± 0.0118', '0.0400 ± 0.0031']
    """
    pairs = list(zip(values, errors, strict=True))
    known = [error for _, error in pairs if math.isfinite(error) and error > 0]
    decimals = min(max(1 - math.floor(math.log10(min(known))), 2), 8) if known else 4

    def text(value: float) -> str:
        return f"{value:.{decimals}f}" if math.isfinite(value) else "undefined"

    return [f"{text(value)} ± {text(error)}" for value, error in pairs]


def printable(text: str) -> str:
    r"""Escapes whatever could drive a terminal or reorder a line: control codes, bidirectional marks, lone surrogates.

    >>> printable("model\x1b[2J.npz")
    'model\\x1b[2J.npz'
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def unshared(names: Sequence[str]) -> list[str]:
    """Paths without the folders and file names that all of them share; one path alone stays whole.

    >>> unshared(["runs/a/m.npz", "runs/b/c/m.npz"]), unshared(["runs/a.npz", "runs/a.npz"])
    (['a', 'b/c'], ['runs/a.npz', 'runs/a.npz'])
    """
    if len(set(names)) < 2:
        return list(names)
    parts = [name.split("/") for name in names]
    rest = [part[_alike(parts) :] for part in parts]
    end = min(_alike([part[::-1] for part in rest]), max(min(map(len, rest)) - 1, 0))
    short = ["/".join(part[: len(part) - end]) for part in rest]
    return short if all(short) else list(names)


def shorten(name: str, length: int = 32) -> str:
    """Cuts the middle out of a long name: its ends tell layers apart.

    >>> shorten("encoder/stage3/block11/attention/query/conv[17]")
    'encoder/stage3/…/query/conv[17]'
    """
    name = printable(name).replace(" -> ", " → ")
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def distinct(names: Sequence[str]) -> list[str]:
    """Short names that still differ: without what all paths share, and numbered where they would be alike.

    >>> distinct(["runs/a/resnet20-a-very-long-name-that-says-little-1/m.npz", "runs/b/m.npz"])
    ['a/resnet20-a-ve…t-says-little-1', 'b']
    """
    short = [shorten(name) for name in unshared(names)]
    if len(set(short)) == len(set(names)):
        return short
    return [f"{k}: {name}" for k, name in enumerate(short, 1)]


def options(values: Mapping[str, Any]) -> str:
    """Writes hyper-parameters as `u=3.0, pairing=dataflow`."""
    return ", ".join(f"{printable(name)}={printable(str(value))}" for name, value in values.items())


def sentence(text: str) -> str:
    """Text with a capital and a full stop; empty stays empty.

    >>> sentence("no profile"), sentence("It ends."), sentence("a/b.pt: gone"), sentence("")
    ('No profile.', 'It ends.', 'a/b.pt: gone.', '')
    """
    first = text.split(" ", 1)[0]
    # A path or a name of code stays as it is.
    text = f"{text[:1].upper()}{text[1:]}" if re.fullmatch(r"[A-Za-z'-]+[,;]?", first) else text
    return text and f"{text}{'' if text.endswith(('.', '!', '?')) else '.'}"


def _alike(parts: Sequence[Sequence[str]]) -> int:
    """How many first items all lists share."""
    columns = zip(*parts, strict=False)
    return next((k for k, column in enumerate(columns) if len(set(column)) > 1), min(map(len, parts)))


def method_name(method: str) -> str:
    """Names a method as its paper does.

    >>> method_name("ft-sam"), method_name("i-bau"), method_name("shapley"), method_name("my_own")
    ('FT-SAM', 'i-BAU', 'ShapPruning', 'My-own')
    """
    if method.lower() in _NAMES:
        return _NAMES[method.lower()]
    words = [word.upper() if word.lower() in _ACRONYMS else word for word in re.split("[_-]", printable(method))]
    name = "-".join(words)
    return name[:1].upper() + name[1:]


def common_folder(paths: Sequence[str]) -> str:
    """The folder that all paths lie in, with the slash at its end; empty where there is none.

    >>> common_folder(["runs/a/m.npz", "runs/b/m.npz"]), common_folder(["runs/a", "gs://b"]), common_folder(["/m"])
    ('runs/', '', '/')
    """
    prefix = os.path.commonprefix(list(paths))  # noqa: RUF071  # character by character, cut back to a slash
    return prefix[: prefix.rfind("/") + 1]


def plural(count: int, noun: str) -> str:
    """A number with its noun.

    >>> plural(1, "file"), plural(12_000, "file")
    ('1 file', '12,000 files')
    """
    return f"{count:,} {noun}{'s' * (count != 1)}"


def size(count: int) -> str:
    """Bytes in decimal units with three digits.

    >>> [size(count) for count in (0, 999, 1000, 44_712_345, 999_999, 3 * 10**15)]
    ['0 B', '999 B', '1.00 kB', '44.7 MB', '1.00 MB', '3.00 PB']
    """
    if count < 1000:
        return f"{count} B"
    value, units = float(count), iter(("kB", "MB", "GB", "TB", "PB"))
    unit = ""
    while value >= 999.5 and unit != "PB":
        value, unit = value / 1000, next(units)
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {unit}"


def rate(value: float | None) -> str:
    """Writes a p or q value with two digits, `–` where there is none.

    >>> rate(0.03125), rate(1.0), rate(3.21e-41), rate(float("nan")), rate(None)
    ('0.031', '1', '3.2e-41', '–', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.2g}" if value else "<1e-300"


def odds(rate: float) -> str:
    """Writes a rate as people say it; never rarer than it is.

    >>> [odds(rate) for rate in (0.025, 1 / 32713, 0.37, 1.0, 1e-9)]
    ['1 time in 40', '1 time in 32,700', '37 times in 100', 'always', 'less than 1 time in a million']
    """
    if not math.isfinite(rate):
        return "undefined"
    if rate > 0.995:
        return "always"
    if rate > 0.1:
        return f"{math.ceil(round(100 * rate, 6))} times in 100"
    if rate < 1e-6:
        return "less than 1 time in a million"
    times = math.floor(round(1 / rate, 6))
    digits = 10 ** max(len(str(times)) - 3, 0)
    return f"1 time in {times // digits * digits:,}"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> [duration(seconds) for seconds in (0.25, 59.6, 3725)]
    ['0.25 s', '60 s', '1 h 2 min']
    """
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def aligned(values: Iterable[float], digits: int = 3) -> list[str]:
    """Writes scores with the same decimals, so many digits of their spread; `–` where undefined.

    >>> aligned([-0.5, 0.25, float("nan")]), aligned([7.0, 7.0])
    (['-0.500', '0.250', '–'], ['7.00', '7.00'])
    """
    numbers = list(map(float, values))
    known = [value for value in numbers if math.isfinite(value)]
    spread = (max(known) - min(known) or abs(known[0])) if known else 0.0
    decimals = min(max(digits - 1 - math.floor(math.log10(spread)), 0), 8) if spread > 0 else digits - 1
    return [f"{value:.{decimals}f}" if math.isfinite(value) else "–" for value in numbers]
