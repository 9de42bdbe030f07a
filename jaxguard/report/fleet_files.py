"""A fleet report as files: JSON, JSON lines, Parquet, SARIF, HTML, or the terminal's table as text."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from collections.abc import Callable, Iterable, Mapping

from jaxguard.errors import JaxguardError
from jaxguard.report import fleet_html, fleet_lines, fleet_table, replacing, sarif
from jaxguard.types import FleetReport


def write(report: FleetReport, path: pathlib.Path, format: str) -> None:
    """Write one file, whole or not at all.

    Args:
        report: what to write.
        path: replaced where it exists.
        format: a key of `FORMATS`.

    Raises:
        JaxguardError: it cannot be written.
    """
    try:
        replacing(path, FORMATS[format](report))
    except OSError as error:
        raise JaxguardError(
            f"expected to write the report to {path}, got '{error.strerror or error}'; choose another path or free "
            "disk space"
        ) from error


def write_all(report: FleetReport, folder: pathlib.Path) -> pathlib.Path:
    """Write `report.html`, `.json`, `.jsonl`, `.parquet` and `.sarif`.

    Args:
        report: what to write.
        folder: created where it does not exist.

    Returns:
        Path of the page.

    Raises:
        JaxguardError: the folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JaxguardError(
            f"expected a folder to write a report into, got '{error.strerror or error}' at {folder}; choose another"
        ) from error
    for format in ("json", "jsonl", "parquet", "sarif", "html"):
        write(report, folder / f"report.{format}", format)
    return folder / "report.html"


def text(report: FleetReport, format: str) -> Iterable[str]:
    """The lines of a text format, for standard output."""
    if format == "jsonl":
        return (f"{line}\n" for line in fleet_lines.to_jsonl(report))
    return [FORMATS[format](report).decode("utf-8"), "\n"]


def to_parquet(report: FleetReport) -> bytes:
    """One row per checkpoint, with the columns of `FleetEntry`; layers are left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [field.name for field in dataclasses.fields(report.entries[0])] if report.entries else ["uri"]
    columns = {name: [getattr(entry, name) for entry in report.entries] for name in names if name != "layers"}
    columns = {name: [_text(value) for value in values] for name, values in columns.items()}
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, compression="zstd")
    return file.getvalue()


def _text(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return value


def _table(report: FleetReport) -> bytes:
    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=120, highlight=False).print(fleet_table.fleet_table(report))
    return file.getvalue().encode("utf-8")


FORMATS: Mapping[str, Callable[[FleetReport], bytes]] = {
    "table": _table,
    "json": lambda report: fleet_lines.to_json(report).encode("utf-8", "backslashreplace"),
    "jsonl": lambda report: "".join(text(report, "jsonl")).encode("utf-8", "backslashreplace"),
    "parquet": to_parquet,
    "sarif": lambda report: sarif.to_sarif(report).encode("utf-8", "backslashreplace"),
    "html": lambda report: fleet_html.to_html(report).encode("utf-8", "backslashreplace"),
}
"""Name -> how a report is written in it."""
