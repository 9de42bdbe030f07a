"""The rows of a page's table: all files, the most suspicious first, as JSON columns inside the page."""

import json
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from jaxguard.report import headlines, wording
from jaxguard.types import Finding, Report

DIGITS = 6
"""Significant digits of scores, p and q: more than any of them deserves, at half the size."""

_IN_HTML = {ord(char): f"\\u{ord(char):04x}" for char in "<>&"}


class Row(NamedTuple):
    """One file; a skipped one has no numbers."""

    path: str
    verdict: str
    reason: str
    content: str = ""
    size: int = 0
    format: str = ""
    architecture: str = ""
    cohort: str = ""
    looks: str = ""
    kind: str = ""
    score: float = math.nan
    p: float = math.nan
    q: float = math.nan
    unsearched: str = ""


def rows(report: Report, ranked: Iterable[Finding]) -> list[Row]:
    """All files: findings in their order, then those that were not opened.

    >>> [row.verdict for row in rows(Report("", skipped=(("notes.txt", "no checkpoint"),)), ())]
    ['skipped']
    """
    found = []
    for one in ranked:
        where, looks = one.provenance, ", ".join(one.looks)
        facts = where.content, where.size, where.format, where.architecture, one.cohort, looks, one.kind
        found.append(
            Row(where.name, one.verdict, one.reason, *facts, one.score, one.p_value, one.q_value, one.unsearched)
        )
    return found + [Row(path, headlines.SKIPPED, why) for path, why in report.skipped]


def columns(files: list[Row]) -> dict[str, Any]:
    """Turns files into one list per column.

    Args:
        files: in the order of the table.

    Returns:
        `folder`, which all paths lie in, and lists of one item per file: `path` below that folder, `content`, `size` in
        bytes, `score`, `p` and `q` with null for what is unknown. Columns of few different texts are numbers into
        a list in the plural: `verdict` into `verdicts`.

    >>> found = columns([Row("runs/a", "skipped", "empty"), Row("runs/b", "skipped", "empty")])
    >>> found["folder"], found["path"], found["reason"], found["reasons"], found["score"]
    ('runs/', ['a', 'b'], [0, 0], ['empty'], [None, None])
    """
    folder = wording.common_folder([file.path for file in files])
    table: dict[str, Any] = {
        "folder": folder,
        "path": [file.path[len(folder) :] for file in files],
        "content": [file.content for file in files],
        "size": [file.size for file in files],
    }
    for name in ("score", "p", "q"):
        table[name] = [_rounded(getattr(file, name)) for file in files]
    for name in ("verdict", "architecture", "cohort", "format", "reason", "looks", "kind", "unsearched"):
        places = {text: index for index, text in enumerate(headlines.SIGNS if name == "verdict" else ())}
        table[name] = [places.setdefault(getattr(file, name), len(places)) for file in files]
        table[f"{name}s"] = list(places)
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
