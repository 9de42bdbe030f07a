"""One report, told three ways: `table` for the terminal, `schema` for machines, `html` for people."""

import contextlib
import pathlib
import uuid

from jaxguard.errors import JaxguardError
from jaxguard.types import AuditReport

__all__ = ["replacing", "write"]


def write(report: AuditReport, folder: str | pathlib.Path) -> list[pathlib.Path]:
    """Writes `report.html` and `report.json`.

    Both are rendered before anything is written, and each file appears whole or not at all: a reader never sees half a
    report, and a crash leaves the previous one in place.

    Args:
        report: what to write.
        folder: created where it does not exist; files of the same names are replaced.

    Returns:
        Paths of the two files, the page first.

    Raises:
        JaxguardError: the folder cannot be created or written.
        DataError: the trigger example is not a pair of equal image arrays.
    """
    from jaxguard.report import html, schema

    folder = pathlib.Path(folder)
    texts = {"report.html": html.to_html(report), "report.json": schema.to_json(report)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            replacing(folder / name, text.encode("utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise JaxguardError(
            f"expected a folder to write {' and '.join(texts)} into, got '{reason}' at {error.filename or folder}; "
            "choose another folder or free its path, permissions or disk space"
        ) from error
    return [folder / name for name in texts]


def replacing(path: pathlib.Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
