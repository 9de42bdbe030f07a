"""Fleet reports as files: each format by what reads it, whole or not at all."""

import json
import math

import pyarrow.parquet as pq
import pytest
from fleets import fleet, hostile, unjudged
from samples import HOSTILE

from jaxguard.errors import JaxguardError
from jaxguard.report import fleet_files
from jaxguard.types import FleetReport

EMPTY = FleetReport("", "", ())


def test_parquet_has_a_row_per_checkpoint(tmp_path):
    report = fleet(40)
    fleet_files.write(report, tmp_path / "r.parquet", "parquet")
    found = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert len(found) == 40
    for row, entry in zip(found, report.entries, strict=True):
        assert "layers" not in row
        for name, value in row.items():
            expected = getattr(entry, name)
            assert value == expected or (math.isnan(value) and math.isnan(expected))


@pytest.mark.parametrize("report", [EMPTY, unjudged(), hostile(HOSTILE), hostile("\udcff")])
@pytest.mark.parametrize("name", fleet_files.FORMATS)
def test_every_format_takes_every_report(tmp_path, report, name):
    path = tmp_path / "report"
    fleet_files.write(report, path, name)
    if name == "parquet":
        assert pq.read_table(path).num_rows == len(report.entries)
    elif name == "jsonl":
        assert len([json.loads(line) for line in path.read_text().splitlines()]) == (
            len(report.entries) + len(report.skipped)
        )
    elif name in ("json", "sarif"):
        assert json.loads(path.read_text())
    else:
        assert path.read_text("utf-8")


@pytest.mark.parametrize("name", ["table", "json", "jsonl", "sarif"])
def test_what_is_printed_is_what_is_written(tmp_path, name):
    report = fleet(30)
    fleet_files.write(report, tmp_path / "r", name)
    assert "".join(fleet_files.text(report, name)).rstrip("\n") == (tmp_path / "r").read_text("utf-8").rstrip("\n")


def test_all_of_them(tmp_path):
    page = fleet_files.write_all(fleet(30), tmp_path / "a" / "b")
    assert page == tmp_path / "a" / "b" / "report.html"
    assert {path.suffix for path in page.parent.iterdir()} == {".html", ".json", ".jsonl", ".parquet", ".sarif"}


def test_what_cannot_be_written_is_one_error_and_the_old_file_stays(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")
    with pytest.raises(JaxguardError, match=r"expected a folder .* choose another"):
        fleet_files.write_all(EMPTY, tmp_path / "file")
    with pytest.raises(JaxguardError, match=r"choose another path"):
        fleet_files.write(EMPTY, tmp_path / "absent" / "r.json", "json")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(JaxguardError, match="No space left"):
        fleet_files.write(fleet(3), tmp_path / "file", "json")
    assert (tmp_path / "file").read_text() == "old"
