"""Fleet reports as JSON say everything, in strict JSON, one line at a time."""

import dataclasses
import json
import math

import numpy as np
import pytest
from fleets import fleet, hostile, unjudged
from samples import HOSTILE

from jaxguard.report import fleet_lines
from jaxguard.types import FleetEntry, FleetReport, LayerSummary, Reference


def refuse(constant: str):
    raise AssertionError(f"{constant} is no JSON")


def strict(text: str):
    assert text.isascii()
    return json.loads(text, parse_constant=refuse)


def revived(kind, fields: dict):
    """A dataclass from its JSON, by the types of its fields; null is NaN."""
    values = {}
    for item in dataclasses.fields(kind):
        value = fields[item.name]
        values[item.name] = math.nan if value is None else value
    return kind(**values)


def same(one, other) -> bool:
    """Equal, and NaN where the other is: `repr` is exact."""
    return repr(dataclasses.astuple(one)) == repr(dataclasses.astuple(other))


REPORTS = (fleet(60), unjudged(), hostile(HOSTILE), hostile("\udcff\u2028\n"), FleetReport("", "", ()))


@pytest.mark.parametrize("report", REPORTS)
def test_lines_hold_every_entry(report):
    lines = list(fleet_lines.to_jsonl(report))
    assert not any("\n" in line for line in lines)
    told = [strict(line) for line in lines]
    for fields, entry in zip(told, report.entries, strict=False):
        layers = tuple(revived(LayerSummary, layer) for layer in fields["layers"])
        assert same(dataclasses.replace(revived(FleetEntry, fields), layers=()), dataclasses.replace(entry, layers=()))
        assert all(same(one, other) for one, other in zip(layers, entry.layers, strict=True))
    assert told[len(report.entries) :] == [
        {"uri": path, "verdict": "skipped", "reason": why} for path, why in report.skipped
    ]


def test_lines_come_one_by_one():
    """Only what is asked for is made: the second entry cannot be written, the first is told before."""
    (first,) = fleet(1, suspected=0, errors=0).entries
    lines = fleet_lines.to_jsonl(FleetReport("", "", (first, object()), ()))  # pyright: ignore[reportArgumentType]
    assert strict(next(lines))["uri"] == first.uri


@pytest.mark.parametrize("report", REPORTS)
def test_the_whole_report_mirrors_its_type(report):
    text = fleet_lines.to_json(report)
    document = strict(text)
    assert list(document) == ["schema", *(item.name for item in dataclasses.fields(FleetReport))]
    assert document["schema"] == "jaxguard.fleet/1"
    assert document["entries"] == [strict(line) for line in fleet_lines.to_jsonl(report)][: len(report.entries)]
    assert [tuple(pair) for pair in document["skipped"]] == list(report.skipped)
    for told, known in zip(document["references"], report.references, strict=True):
        read = revived(Reference, told)
        np.testing.assert_array_equal(np.array(read.scores, float), known.scores)
        assert (read.bucket, read.power, tuple(read.interval)) == (known.bucket, known.power, known.interval)
    for name in ("title", "command", "alpha", "profile", "seconds", "bytes_read", "reused", "environment"):
        assert document[name] == getattr(report, name)
    assert sum(len(line) > 2 for line in text.splitlines()) >= len(report.entries)
