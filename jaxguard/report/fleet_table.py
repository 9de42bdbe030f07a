"""A fleet report for the terminal: how many got which verdict, the most suspicious, and what nobody could judge."""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jaxguard.report import fleet_wording, ownership_wording, table, wording
from jaxguard.types import FleetEntry, FleetReport

_STYLES = {"backdoor suspected": "bold red", "inconclusive": "yellow", "error": "red", fleet_wording.SKIPPED: "yellow"}


def fleet_table(report: FleetReport, top: int = 20) -> Group:
    """Tabulates a fleet: counts by verdict, the most suspicious checkpoints, what failed and what was skipped.

    Args:
        report: of any size.
        top: checkpoints that get a row, most suspicious first, and files that are named of those that failed and of
            those that were skipped; the rest is counted.

    Returns:
        A renderable for `rich.console.Console.print`.

    >>> from rich.console import Console
    >>> Console(width=60).print(fleet_table(FleetReport("", "", (), skipped=(("notes.txt", "no checkpoint"),))))
    ? Nothing was scanned; 1 file skipped.
    Of files that were skipped or could not be read nothing is
    known.
      1  – skipped
    <BLANKLINE>
    Skipped
      notes.txt: no checkpoint
    """
    headline = fleet_wording.headline(report)
    failed = [(entry.uri, entry.reason) for entry in report.entries if entry.verdict == "error"]
    return Group(
        table.verdict_text(headline.tone, f"{headline.lead}."),
        *([Text(headline.detail)] if headline.detail else []),
        *_counts(report),
        *_suspicious([entry for entry in report.entries if entry.verdict != "error"], top),
        *_named("Could not be read", failed, top),
        *_named("Skipped", report.skipped, top),
        *table.notes_below(("fleet", note) for note in report.notes),
    )


def _counts(report: FleetReport) -> Iterable[RenderableType]:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column()
    counts = zip(fleet_wording.VERDICTS.items(), fleet_wording.tally(report), strict=True)
    for (name, verdict), count in counts:
        if count:
            style = _STYLES.get(name, "")
            grid.add_row(Text(f"  {count:,}", style=style), Text(f"{verdict.sign} {verdict.label}", style=style))
    if grid.row_count:
        yield grid


def _suspicious(entries: Sequence[FleetEntry], top: int) -> Iterable[RenderableType]:
    shown = fleet_wording.by_suspicion(entries)[:top]
    if not shown:
        return
    rows = table.columns("checkpoint", "verdict", "score", "p", "q", "max z")
    folder = fleet_wording.common_folder([entry.uri for entry in shown])
    scores, zs = (
        ownership_wording.aligned(values) for values in zip(*((one.score, one.z) for one in shown), strict=True)
    )
    for entry, score, z in zip(shown, scores, zs, strict=True):
        verdict = fleet_wording.VERDICTS[fleet_wording.shown(entry.verdict)]
        style = _STYLES.get(fleet_wording.shown(entry.verdict), "")
        rows.add_row(
            Text(wording.printable(entry.uri.removeprefix(folder))),
            Text(f"{verdict.sign} {wording.printable(entry.verdict)}", style=style),
            score,
            *(fleet_wording.rate(value) for value in (entry.p_value, entry.q_value)),
            z,
        )
    yield Text()
    yield rows
    told = [f"The {len(shown):,} most suspicious of {len(entries):,}."] if len(shown) < len(entries) else []
    told += [f"Paths below {wording.printable(folder)}."] if folder else []
    if told:
        yield Text(" ".join(told))
    reasons = dict.fromkeys(entry.reason for entry in shown if entry.verdict == "inconclusive" and entry.reason)
    yield from (Text(f"Inconclusive: {wording.printable(reason)}.") for reason in list(reasons)[:3])


def _named(heading: str, files: Sequence[tuple[str, str]], top: int) -> Iterable[RenderableType]:
    """Files by the reason they share, the first of each named."""
    if not files:
        return
    yield Text()
    yield Text(heading, style="bold")
    groups: dict[str, list[str]] = {}
    for path, why in files:
        groups.setdefault(why.removeprefix(f"{path}: "), []).append(path)
    for why, paths in list(groups.items())[:top]:
        first = wording.printable(paths[0])
        more = f" and {fleet_wording.plural(len(paths) - 1, 'file')} more" if len(paths) > 1 else ""
        yield Text(f"  {first}{more}{f': {wording.printable(why)}' if why else ''}")
    left = sum(map(len, list(groups.values())[top:]))
    if left or any(len(paths) > 1 for paths in groups.values()):
        others = f"  {fleet_wording.plural(left, 'file')} for other reasons; all" if left else "  All"
        yield Text(f"{others} are named in the other forms of this report.")
