"""Reports for the terminal: rich renderables that fit 80 columns and read the same without colour."""

from collections.abc import Iterable

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jaxguard.report import wording
from jaxguard.types import AuditReport, Metrics, RepairReport

_STYLES: dict[wording.Tone, str] = {"good": "green", "bad": "red", "open": "yellow"}


def scan_table(report: AuditReport) -> Group:
    """Tabulates what the scans found, one row per checkpoint; rates in percent.

    Args:
        report: its `scans` are shown; their notes follow below the table, numbered by checkpoint.

    Returns:
        A renderable for `rich.console.Console.print`.

    >>> from rich.console import Console
    >>> Console(width=60).print(scan_table(AuditReport(title="", command="")))
    No checkpoint was scanned.
    """
    if not report.scans:
        return Group(Text("No checkpoint was scanned."))
    table = columns("#", "checkpoint", "verdict", "max z", "above", "ACC %", "ASR %", "RA %", "s")
    for index, scan in enumerate(report.scans, 1):
        headline = wording.scan_headline(scan)
        above, total = wording.above_count(scan.layers)
        table.add_row(
            str(index),
            Text(wording.printable(scan.checkpoint)),
            verdict_text(headline.tone, wording.printable(scan.verdict)),
            wording.number(scan.score),
            f"{above} of {total}",
            *_rates(scan.metrics),
            _seconds(scan.seconds),
        )
    numbered = ((f"{index}", note) for index, scan in enumerate(report.scans, 1) for note in scan.notes)
    undefined = (
        (f"{index}", f"{count} channels have no score.")
        for index, scan in enumerate(report.scans, 1)
        if (count := wording.undefined_count(scan.layers))
    )
    return Group(table, *notes_below([*undefined, *numbered]))


def repair_table(report: AuditReport) -> Group:
    """Tabulates what the repairs did, one row per method: rates in percent before → after, DER, channels cut.

    Args:
        report: its `repairs` are shown; the outcome of each in words, what it found and its notes follow below.

    Returns:
        A renderable for `rich.console.Console.print`.

    >>> from rich.console import Console
    >>> Console(width=60).print(repair_table(AuditReport(title="", command="")))
    No repair was tried.
    """
    if not report.repairs:
        return Group(Text("No repair was tried."))
    table = columns("method", "ACC %", "ASR %", "RA %", "DER %", "cut", "s")
    outcomes: list[RenderableType] = []
    for repair in report.repairs:
        before, after = _rates(repair.before), _rates(repair.after)
        cut, total = wording.cut_count(repair.layers)
        table.add_row(
            Text(wording.method_name(repair.method), style="bold"),
            *("–" if old == new == "–" else f"{old} → {new}" for old, new in zip(before, after, strict=True)),
            _rate(repair.der),
            f"{cut} of {total}" if repair.layers else "–",
            _seconds(repair.seconds),
        )
        headline = wording.repair_headline(repair)
        outcomes.append(verdict_text(headline.tone, f"{headline.lead}."))
        if evidence := _evidence(repair):
            outcomes.append(Padding(Text(evidence), (0, 0, 0, 2), expand=False))
    notes = [(wording.method_name(repair.method), note) for repair in report.repairs for note in repair.notes]
    return Group(table, *outcomes, *notes_below(notes))


def metrics_table(metrics: Metrics, checkpoint: str) -> Table:
    """Tabulates one measurement; rates in percent.

    Args:
        metrics: what was measured.
        checkpoint: whose model it was.

    Returns:
        A renderable for `rich.console.Console.print`.
    """
    table = columns("checkpoint", "ACC %", "ASR %", "RA %", "images", "triggered")
    counts = (str(metrics.num_images), str(metrics.num_triggered) if metrics.asr is not None else "–")
    table.add_row(Text(wording.printable(checkpoint)), *_rates(metrics), *counts)
    return table


def _evidence(repair: RepairReport) -> str:
    found = [wording.suspicion(repair.trigger)] if repair.trigger is not None else []
    return "; ".join([*found, *([wording.cuts_kept(repair.path)] if repair.path is not None else [])])


def columns(*headings: str) -> Table:
    """A table without frame; columns of words stand left, columns of numbers right, nothing is cut off."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in headings:
        is_text = heading in ("checkpoint", "verdict", "method", "suspect", "owner")
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold")
    return table


def verdict_text(tone: wording.Tone, words: str) -> Text:
    """Words with the sign and the colour of their tone."""
    return Text(f"{wording.SYMBOLS[tone]} {words}", style=_STYLES[tone])


def _rate(rate: float | None) -> str:
    return wording.percent(rate).removesuffix(" %")


def _rates(metrics: Metrics | None) -> tuple[str, str, str]:
    if metrics is None:
        return "–", "–", "–"
    return _rate(metrics.acc), _rate(metrics.asr), _rate(metrics.ra)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 10 else f"{seconds:.0f}"


def notes_below(notes: Iterable[tuple[str, str]]) -> list[Text]:
    """Notes under a heading, each with what it is about; nothing where there are none."""
    lines = [Text(f"[{owner}] {wording.printable(note)}") for owner, note in notes]
    return [Text(), Text("Notes", style="bold"), *lines] if lines else []
