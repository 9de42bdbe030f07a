"""The rows of a fleet report's table: all files, the most suspicious first, as JSON columns inside the page."""

import json
import math
from collections.abc import Iterable
from typing import Any

from jaxguard.report import fleet_wording
from jaxguard.types import FleetEntry, FleetReport

DIGITS = 6
"""Significant digits of scores, p, q and z: more than any of them deserves, at half the size."""

_NUMBERS = {"score": "score", "p": "p_value", "q": "q_value", "z": "z"}
_TEXTS = ("verdict", "architecture", "bucket", "format", "reason")
_IN_HTML = {ord(char): f"\\u{ord(char):04x}" for char in "<>&"}


def rows(report: FleetReport) -> list[FleetEntry]:
    """All files of a report, the most suspicious first; one that nobody looked into has no bytes, and no numbers.

    >>> [row.verdict for row in rows(FleetReport("", "", (), skipped=(("notes.txt", "no checkpoint"),)))]
    ['skipped']
    """
    nan = math.nan
    skipped = [
        FleetEntry(path, "", 0, "", "", "", nan, nan, nan, nan, fleet_wording.SKIPPED, why)
        for path, why in report.skipped
    ]
    return fleet_wording.by_suspicion([*report.entries, *skipped])


def columns(files: list[FleetEntry]) -> dict[str, Any]:
    """Turns files into one list per column.

    Args:
        files: in the order of the table.

    Returns:
        `folder`, which all paths lie in, and lists of one item per file: `path` below that folder, `sha256`, `size` in
        bytes, `deep` (0 or 1), `score`, `p`, `q` and `z` with null for what is unknown. Columns of few different texts
        are numbers into a list in the plural: `verdict` into `verdicts`.

    >>> found = columns(rows(FleetReport("", "", (), skipped=(("runs/a", "empty"), ("runs/b", "empty")))))
    >>> found["folder"], found["path"], found["reason"], found["reasons"], found["score"]
    ('runs/', ['a', 'b'], [0, 0], ['empty'], [None, None])
    """
    folder = fleet_wording.common_folder([file.uri for file in files])
    table: dict[str, Any] = {
        "folder": folder,
        "path": [file.uri[len(folder) :] for file in files],
        "sha256": [file.sha256 for file in files],
        "size": [file.size for file in files],
        "deep": [int(file.deep) for file in files],
    }
    for name, field in _NUMBERS.items():
        table[name] = [_rounded(getattr(file, field)) for file in files]
    for name in _TEXTS:
        known = fleet_wording.VERDICTS if name == "verdict" else ()
        table[f"{name}s"], table[name] = _numbered((getattr(file, name) for file in files), known)
    return table


def embedded(table: dict[str, Any]) -> str:
    r"""Writes columns as JSON that may stand inside `<script type="application/json">`, whatever the texts are.

    Args:
        table: from `columns`.

    Returns:
        ASCII without `<`, `>`, `&`, line separators or any other character that means something to HTML.

    >>> embedded({"path": ["</script>"]})
    '{"path":["\\u003c/script\\u003e"]}'
    """
    return json.dumps(table, allow_nan=False, separators=(",", ":")).translate(_IN_HTML)


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _numbered(texts: Iterable[str], known: Iterable[str]) -> tuple[list[str], list[int]]:
    places = {text: index for index, text in enumerate(known)}
    numbers = [places.setdefault(text, len(places)) for text in texts]
    return list(places), numbers
