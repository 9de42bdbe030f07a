"""A report as files, each whole or not at all: page, JSON, JSON lines, Parquet, SARIF, or the table as text."""

from __future__ import annotations

import contextlib
import io
import pathlib
import uuid
from collections.abc import Callable, Iterable, Mapping

from jaxguard.errors import JaxguardError
from jaxguard.types import Report

BINARY = ("parquet", "html")
"""Formats that are not meant for standard output."""


def write(report: Report, path: str | pathlib.Path, format: str) -> None:
    """Write one file; a reader never sees half of it, and a crash leaves the previous one in place.

    Args:
        report: what to write.
        path: replaced where it exists.
        format: a key of `FORMATS`.

    Raises:
        JaxguardError: no such format, or the file cannot be written.
        DataError: arrays of the report do not fit each other.
    """
    content = _writer(format)(report)
    try:
        _replacing(pathlib.Path(path), content)
    except OSError as error:
        raise JaxguardError(
            f"expected to write the report to {path}, got '{error.strerror or error}'; choose another path or free "
            "disk space"
        ) from error


def write_all(report: Report, folder: str | pathlib.Path) -> pathlib.Path:
    """Write `report.html`, `.json`, `.jsonl`, `.parquet` and `.sarif`; all are rendered before any is written.

    Args:
        report: what to write.
        folder: created where it does not exist; files of the same names are replaced.

    Returns:
        Path of the page.

    Raises:
        JaxguardError: the folder cannot be created or written.
        DataError: arrays of the report do not fit each other.
    """
    folder = pathlib.Path(folder)
    contents = {f"report.{name}": FORMATS[name](report) for name in FORMATS if name != "table"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            _replacing(folder / name, content)
    except OSError as error:
        raise JaxguardError(
            f"expected a folder to write {', '.join(contents)} into, got '{error.strerror or error}' at "
            f"{error.filename or folder}; choose another folder or free its path, permissions or disk space"
        ) from error
    return folder / "report.html"


def text(report: Report, format: str) -> Iterable[str]:
    """The text of a format, for standard output; of `jsonl` line by line.

    Raises:
        JaxguardError: no such format.
    """
    if format == "jsonl":
        from jaxguard.report import schema

        return (f"{line}\n" for line in schema.to_jsonl(report))
    return [_writer(format)(report).decode("utf-8")]


def _writer(format: str) -> Callable[[Report], bytes]:
    if format not in FORMATS:
        raise JaxguardError(f"expected a format among {', '.join(FORMATS)}, got {format!r}; choose one of them")
    return FORMATS[format]


def _replacing(path: pathlib.Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


# Each imports what renders it: a scan that prints a table draws no figures.


def _table(report: Report) -> bytes:
    from rich.console import Console

    from jaxguard.report import table

    file = io.StringIO()
    Console(file=file, width=120, highlight=False).print(table.render(report))
    return _encoded(file.getvalue())


def _json(report: Report) -> bytes:
    from jaxguard.report import schema

    return _encoded(schema.to_json(report))


def _parquet(report: Report) -> bytes:
    from jaxguard.report import schema

    return schema.to_parquet(report)


def _sarif(report: Report) -> bytes:
    from jaxguard.report import sarif

    return _encoded(sarif.to_sarif(report))


def _html(report: Report) -> bytes:
    from jaxguard.report import page

    return _encoded(page.to_html(report))


FORMATS: Mapping[str, Callable[[Report], bytes]] = {
    "table": _table,
    "json": _json,
    "jsonl": lambda report: _encoded("".join(text(report, "jsonl"))),
    "parquet": _parquet,
    "sarif": _sarif,
    "html": _html,
}
"""Name -> how a report is written in it; each imports what it needs, as most commands write one format only."""
