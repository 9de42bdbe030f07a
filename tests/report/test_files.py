"""Reports as files: each format by what reads it, whole or not at all."""

import json
import os
import stat

import pyarrow.parquet as pq
import pytest
from fleets import fleet, hostile, unjudged
from samples import HOSTILE

from jaxguard.errors import JaxguardError
from jaxguard.report import files, schema
from jaxguard.types import Report


@pytest.mark.parametrize("report", [Report(""), unjudged(), hostile(HOSTILE), hostile("\udcff")])
@pytest.mark.parametrize("name", files.FORMATS)
def test_every_format_takes_every_report(tmp_path, report, name):
    path = tmp_path / "report"
    files.write(report, path, name)
    if name == "parquet":
        assert pq.read_table(path).num_rows == len(report.findings)
    elif name == "jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(lines) == len(report.findings) + len(report.skipped)
    elif name in ("json", "sarif"):
        assert json.loads(path.read_text())
    else:
        assert path.read_text("utf-8")


@pytest.mark.parametrize("name", ["table", "json", "jsonl", "sarif"])
def test_what_is_printed_is_what_is_written(tmp_path, full, name):
    for report in (fleet(30), full):
        files.write(report, tmp_path / "r", name)
        assert "".join(files.text(report, name)) == (tmp_path / "r").read_text("utf-8")


def test_unknown_formats_name_the_known():
    for call in (lambda: files.text(Report(""), "xml"), lambda: files.write(Report(""), "r", "xml")):
        with pytest.raises(JaxguardError, match=r"among table, json, .*, got 'xml'"):
            call()


def test_all_of_them(tmp_path, full):
    page = files.write_all(full, tmp_path / "a" / "b")
    assert page == tmp_path / "a" / "b" / "report.html"
    assert {path.suffix for path in page.parent.iterdir()} == {".html", ".json", ".jsonl", ".parquet", ".sarif"}
    assert schema.from_json((page.parent / "report.json").read_text()).title == full.title
    assert "FT-SAM takes the backdoor out" in page.read_text(encoding="utf-8")


def test_files_are_replaced_and_respect_the_umask(tmp_path):
    (tmp_path / "report.json").write_text("old")
    mask = os.umask(0o027)
    try:
        files.write_all(fleet(3), tmp_path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "report.json").stat().st_mode) == 0o640
    assert schema.from_json((tmp_path / "report.json").read_text()).title == fleet(3).title


def test_what_cannot_be_written_is_one_error_and_the_old_file_stays(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")
    with pytest.raises(JaxguardError, match=r"expected a folder .*file; choose another"):
        files.write_all(Report(""), tmp_path / "file")
    with pytest.raises(JaxguardError, match=r"choose another path"):
        files.write(Report(""), tmp_path / "absent" / "r.json", "json")
    (tmp_path / "report.json").mkdir()  # cannot be replaced by a file
    with pytest.raises(JaxguardError, match=r"report\.json"):
        files.write_all(Report(""), tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(JaxguardError, match="No space left"):
        files.write(fleet(3), tmp_path / "file", "json")
    assert (tmp_path / "file").read_text() == "old"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
