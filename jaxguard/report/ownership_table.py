"""Ownership for the terminal: a verdict per suspect, and the scores of owners against suspects."""

from collections.abc import Iterable

import numpy as np
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jaxguard.report import ownership_wording, table, wording
from jaxguard.types import AuditReport, FingerprintMatrix, OwnershipReport

MAX_COLUMNS = 8
"""Suspects that stand side by side; of more only the best of each owner are told."""

MAX_BEST = 15
"""Suspects told of one owner; several owners share them, with three each at least."""


def ownership_table(report: AuditReport) -> Group:
    """Tabulates verdicts, one table per certificate and one row per suspect.

    Args:
        report: its `ownerships` are shown; what each certificate rests on and their notes follow below.

    Returns:
        A renderable for `rich.console.Console.print`.

    >>> from rich.console import Console
    >>> Console(width=60).print(ownership_table(AuditReport(title="", command="")))
    No suspect was judged.
    """
    if not report.ownerships:
        return Group(Text("No suspect was judged."))
    shown: list[RenderableType] = []
    for one in report.ownerships:
        shown += [*([Text()] if shown else []), _verdicts(one), Text(), _facts(_certificate(one))]
    notes = [(wording.method_name(one.method), note) for one in report.ownerships for note in one.notes]
    return Group(*shown, *table.notes_below(dict.fromkeys(notes)))


def matrix_table(report: AuditReport) -> Group:
    """Tabulates scores of owners against suspects; with many suspects, the best of each owner.

    Args:
        report: its `matrices` are shown, one below the other.

    Returns:
        A renderable for `rich.console.Console.print`.

    Raises:
        DataError: a matrix has not one score per owner and suspect.

    >>> from rich.console import Console
    >>> Console(width=60).print(matrix_table(AuditReport(title="", command="")))
    No owners were compared with suspects.
    """
    if not report.matrices:
        return Group(Text("No owners were compared with suspects."))
    shown: list[RenderableType] = []
    for matrix in report.matrices:
        form = _side_by_side if len(matrix.suspects) <= MAX_COLUMNS else _best
        name = wording.method_name(matrix.method)
        title = f"{name} scores of {len(matrix.owners)} × {len(matrix.suspects)} models, higher is more alike"
        shown += [*([Text()] if shown else []), Text(title, style="bold"), *form(matrix)]
    closing = "Only scores against the same owner compare, and they accuse nobody: that takes independent models."
    return Group(*shown, Text(closing))


def _verdicts(one: OwnershipReport) -> RenderableType:
    if not one.verifications:
        return Text("No suspect was asked.")
    with_null = any(found.null_p_value is not None for found in one.verifications)
    rows = table.columns("suspect", "verdict", "score", "p", *(["null p"] if with_null else []))
    scores = ownership_wording.aligned(found.score for found in one.verifications)
    for found, score in zip(one.verifications, scores, strict=True):
        tone = ownership_wording.tone(found.verdict)
        ps = (found.p_value, found.null_p_value)[: 1 + with_null]
        rows.add_row(
            Text(wording.printable(found.suspect)),
            table.verdict_text(tone, wording.printable(found.verdict)),
            score,
            *map(ownership_wording.p_value, ps),
        )
    return rows


def _certificate(one: OwnershipReport) -> Iterable[tuple[str, str]]:
    yield "owner", one.owner
    options = ", ".join(f"{name}={value}" for name, value in one.options.items())
    asked = f"{wording.method_name(one.method)}, {one.num_probes} questions, {one.seconds:.3g} s"
    yield "method", f"{asked}; {options}" if options else asked
    yield "compared with", ownership_wording.references(one)
    yield "by chance", ownership_wording.accused_by_chance(one)
    yield "made for", one.sees
    yield "blind to", one.blind
    yield "certificate", one.certificate


def _facts(facts: Iterable[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        if value:
            grid.add_row(Text(name, style="bold"), Text(wording.printable(value)))
    return grid


def _side_by_side(matrix: FingerprintMatrix) -> list[RenderableType]:
    texts = np.array(ownership_wording.aligned(ownership_wording.checked_scores(matrix).ravel()), object)
    numbers = [str(index) for index in range(1, len(matrix.suspects) + 1)]
    rows = table.columns("owner", *numbers)
    for owner, cells in zip(matrix.owners, texts.reshape(len(matrix.owners), len(matrix.suspects)), strict=True):
        rows.add_row(Text(wording.printable(owner)), *map(str, cells))
    legend = _facts(zip(numbers, matrix.suspects, strict=True))
    return [rows, Padding(legend, (1, 0, 1, 0), expand=False)]


def _best(matrix: FingerprintMatrix) -> list[RenderableType]:
    rows = table.columns("owner", "suspect", "score")
    count = max(MAX_BEST // max(len(matrix.owners), 1), 3)
    for owner, found in ownership_wording.best_suspects(matrix, count):
        for place, (suspect, score) in enumerate(found):
            first = "" if place else wording.printable(owner)
            rows.add_row(Text(first), Text(wording.printable(suspect)), score)
    told = f"The {count} best of {len(matrix.suspects)} suspects of each owner."
    return [rows, Text(told)]
