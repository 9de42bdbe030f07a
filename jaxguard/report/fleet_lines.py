"""Fleet reports for machines: one JSON object per checkpoint and line, or the whole report as `jaxguard.fleet/1`.

Both are strict ASCII JSON. Keys are the fields of `jaxguard.types`; what JSON cannot say (NaN, infinity) is null.
"""

import json
from collections.abc import Iterator
from typing import Any

from jaxguard.report import fleet_wording, schema
from jaxguard.types import FleetEntry, FleetReport

SCHEMA = "jaxguard.fleet/1"


def entry_line(entry: FleetEntry) -> str:
    """Writes one checkpoint as one line, for results that are told as they come.

    Args:
        entry: any.

    Returns:
        A JSON object without a line break.

    >>> nan = float("nan")
    >>> entry_line(FleetEntry("a.npz", "ab", 1, "npz", "cnn", "cnn", 2.5, nan, nan, nan, "inconclusive", "no profile"))
    '{"uri":"a.npz","sha256":"ab","size":1,"format":"npz","architecture":"cnn","bucket":"cnn","z":2.5,"score":null,...}'
    """
    return _compact(schema.plain(entry))


def to_jsonl(report: FleetReport) -> Iterator[str]:
    """Writes one line per checkpoint, in the order of discovery, then one per file that nobody looked into.

    Args:
        report: of any size: one line at a time is in memory.

    Yields:
        A JSON object without a line break; of a skipped file only `uri`, the verdict `skipped` and the `reason`.

    >>> list(to_jsonl(FleetReport("", "", (), skipped=(("notes.txt", "no checkpoint"),))))
    ['{"uri":"notes.txt","verdict":"skipped","reason":"no checkpoint"}']
    """
    yield from map(entry_line, report.entries)
    for path, why in report.skipped:
        yield _compact({"uri": path, "verdict": fleet_wording.SKIPPED, "reason": why})


def to_json(report: FleetReport) -> str:
    """Writes a whole report: one line per field, per checkpoint and per skipped file.

    Args:
        report: any.

    Returns:
        ASCII text ending in a newline; it mirrors `FleetReport` field by field, plus the key `schema`.

    >>> print(to_json(FleetReport("demo", "jaxguard scan runs", (), skipped=(("notes.txt", "no checkpoint"),))))
    {
    "schema": "jaxguard.fleet/1",
    "title": "demo",
    "command": "jaxguard scan runs",
    "entries": [],
    "skipped": [
    ["notes.txt","no checkpoint"]
    ],
    ...
    """
    fields = [
        f"{json.dumps(name)}: {_lines(value)}" for name, value in {"schema": SCHEMA, **schema.plain(report)}.items()
    ]
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _lines(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(map(_compact, value)) + "\n]"
    return _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
