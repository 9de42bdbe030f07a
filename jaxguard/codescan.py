"""The scan for code alone: what loaders of files would run, without reading a weight; needs no JAX."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from jaxguard.checkpoints import Code, examine
from jaxguard.errors import CheckpointError, UnsupportedError
from jaxguard.types import Finding, Provenance, Report, Verdict
from jaxguard.types.findings import CODE

NOT_SCORED = "no code that a loader would run was found; weights were not examined (--code-only)"
READERS = 4
"""Threads that read: most of the time is spent on the disk."""

_SHOWN = 3


def coded(finding: Finding, code: Code) -> Finding:
    """A finding with the code that was found in its file.

    Args:
        finding: by the weights.
        code: of `jaxguard.checkpoints.examine`.

    Returns:
        The finding with the verdict `CODE_EXECUTION` where a loader would run anything; scores are kept.

    >>> from jaxguard.checkpoints import Call
    >>> clean = Finding(Provenance("m.pt"), Verdict.NO_EVIDENCE)
    >>> coded(clean, Code((Call("os.system", "('id')"),))).reason
    "loading it calls os.system('id') at byte 0; do not load it elsewhere"
    """
    notes = (*finding.notes, *code.notes)
    if code.problem and finding.verdict is not Verdict.ERROR:
        notes = (*notes, f"Not followed to its end: {code.problem}.")
    if not code.calls:
        return replace(finding, notes=notes)
    shown = "; ".join(map(str, code.calls[:_SHOWN]))
    more = f" and {len(code.calls) - _SHOWN} more" if len(code.calls) > _SHOWN else ""
    reason = f"loading it calls {shown}{more}; do not load it elsewhere"
    if finding.verdict in (Verdict.SUSPECTED, Verdict.ERROR):
        by_weights = "a backdoor is suspected too" if finding.verdict is Verdict.SUSPECTED else "it could not be scored"
        reason = f"{reason}; {by_weights}: {finding.reason}"
    return replace(finding, verdict=Verdict.CODE_EXECUTION, reason=reason, notes=notes, code=code.calls)


def with_code(findings: Sequence[Finding], paths: Sequence[str]) -> list[Finding]:
    """Findings with the code in their files; an empty path stands for what is no file, such as a live network."""
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda path: examine(path) if path else Code(), paths)
        return [coded(*pair) for pair in zip(findings, found, strict=True)]


def unexamined(finding: Finding) -> Finding:
    """A finding of a file that could not be downloaded."""
    return replace(finding, notes=(*finding.notes, "Not examined for code: the file could not be downloaded."))


def in_skipped(skipped: Iterable[tuple[str, str]]) -> tuple[list[Finding], list[tuple[str, str]]]:
    """Files that were not opened as checkpoints, but from which a loader would run code.

    Args:
        skipped: `(path, why)`; what is no local file or folder stays.

    Returns:
        Findings of those that carry code, and the others.
    """
    files = list(skipped)
    with ThreadPoolExecutor(READERS) as pool:
        codes = list(pool.map(lambda one: examine(one[0]) if os.path.exists(one[0]) else Code(), files))
    found = [
        coded(
            Finding(Provenance(path, size=os.path.getsize(path)), Verdict.ERROR, why, kind=UnsupportedError.kind), code
        )
        for (path, why), code in zip(files, codes, strict=True)
        if code.calls
    ]
    return found, [one for one, code in zip(files, codes, strict=True) if not code.calls]


def scan_code(paths: Iterable[str | os.PathLike[str]]) -> Report:
    """Looks for code in files and in all files below folders; reads no tensor.

    Args:
        paths: local files and folders.

    Returns:
        A report with one finding per file: `CODE_EXECUTION`, `ERROR` where a file could not be followed to its end,
        else `INCONCLUSIVE`, as nothing is known of its weights.

    Raises:
        CheckpointError: a path that does not exist.
    """
    start, files = time.perf_counter(), list[str]()
    for path in (os.fspath(one) for one in paths):
        if os.path.isdir(path):
            files += sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
        elif os.path.isfile(path):
            files.append(path)
        else:
            raise CheckpointError(f"{path}: expected a local file or folder, got none; check the path")
    with ThreadPoolExecutor(READERS) as pool:
        findings = tuple(pool.map(_finding, dict.fromkeys(files)))
    title = f"Scan for code of {len(findings):,} files"
    return Report(title, findings=findings, seconds=time.perf_counter() - start)


def _finding(path: str) -> Finding:
    code = examine(path)
    where = Provenance(path, size=os.stat(path).st_size if os.path.exists(path) else 0)
    if code.problem:
        return coded(Finding(where, Verdict.ERROR, code.problem, looks=(CODE,)), code)
    return coded(Finding(where, Verdict.INCONCLUSIVE, NOT_SCORED, looks=(CODE,)), code)
