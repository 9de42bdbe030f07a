"""What the command line prints: errors, tables, progress bars."""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from jaxguard.fleet.progress import Progress as ScanProgress
    from jaxguard.fleet.progress import Watch
    from jaxguard.training import Progress
    from jaxguard.types import Finding, Report

out = Console(highlight=False)
"""Results."""

err = Console(stderr=True, highlight=False)
"""Everything a pipe must not see: errors, progress, remarks."""

QUICK = 5
"""Checkpoints of which a terminal shows what is known before triggers are searched."""


def command() -> str:
    """The command line as reports quote it: what stands behind `--header` may be a secret."""
    words = ["jaxguard"]
    for word, before in zip(sys.argv[1:], sys.argv, strict=False):
        is_secret = before == "--header" or word.startswith("--header=")
        words.append("--header=..." if word.startswith("--header=") else "..." if is_secret else word)
    return " ".join(words)


def error(kind: str, message: object) -> None:
    """Print one error."""
    err.print(Text.assemble((f"{kind}: ", "bold red"), str(message)))


def say(message: str) -> None:
    """Print a remark."""
    err.print(Text(message, style="dim"))


def begin(what: str, names: Sequence[str]) -> None:
    """Say what was asked for, before anything slow is imported; on a terminal only."""
    if err.is_terminal:
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        say(f"{what} {names[0]}{more}: starting JAX" if names else f"{what}: starting JAX")


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A progress bar with the time left on a terminal, nothing elsewhere.

    Args:
        title: what is going on.

    Yields:
        A callback `(done, total, metrics)`.
    """
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[left]}"))
    first: list[tuple[float, int]] = []  # when the first part was done, and how much it was
    with Bars(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        task = bars.add_task(title, total=None, left="")

        def advance(done: int, total: int, metrics: Mapping[str, Any]) -> None:
            loss = f"loss {float(metrics['loss']):.3f}" if "loss" in metrics else ""
            stage = f"{title}: {metrics['stage']}" if "stage" in metrics else title
            first[:] = first or [(time.monotonic(), done)]
            (start, begun), now = first[0], time.monotonic()
            left = f"{time_left(done - begun, total - begun, now - start)} {loss}"
            bars.update(task, completed=done, total=total, left=left, description=stage)

        yield advance


def time_left(done: int, total: int, seconds: float) -> str:
    """What is left of the waiting, at the mean speed so far; empty before a fiftieth is done.

    >>> time_left(25, 100, 10.0), time_left(1, 100, 10.0)
    ('about 30 s left', '')
    """
    from jaxguard.report import wording

    return f"about {wording.duration(seconds * (total - done) / done)} left" if done > 0 and total <= 50 * done else ""


def quick_look(findings: Sequence[Finding]) -> None:
    """What a scan knows after seconds, before it searches triggers; on a terminal only."""
    if not err.is_terminal:
        return
    from jaxguard.report import evidence, wording

    for one in findings[:QUICK]:
        where = one.provenance
        facts = [where.architecture, wording.size(where.size)] if where.size else [where.architecture]
        facts += [f"{name} {value}" for name, value in evidence.numbers(one)]
        say(f"quick look: {wording.printable(where.name)}: {', '.join(facts)}; {wording.printable(one.reason)}")
    if len(findings) > QUICK:
        say(f"quick look: {len(findings) - QUICK:,} more")


@contextmanager
def fleet_progress(title: str) -> Iterator[Watch]:
    """A progress bar with speed and time left on a terminal, elsewhere a line of JSON every ten seconds.

    Args:
        title: what is going on.

    Yields:
        What a scan calls with its progress.
    """
    from rich.filesize import decimal
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from jaxguard.fleet.progress import Heartbeat

    if not err.is_terminal:
        yield Heartbeat(lambda line: print(line, file=sys.stderr, flush=True))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, TextColumn("{task.fields[speed]}"), console=err, transient=True) as bars:
        task = bars.add_task(title, total=None, speed="")

        def watch(state: ScanProgress) -> None:
            speed = f"{state.checkpoints_per_second:.0f}/s, {decimal(int(state.bytes_per_second))}/s"
            failed = f", {state.failed} failed" if state.failed else ""
            bars.update(task, completed=state.done, total=state.total, speed=speed + failed)

        yield watch


def show(
    report: Report, format_: str = "table", *, output: pathlib.Path | None = None, folder: pathlib.Path | None = None
) -> None:
    """Print a report or write it to a file, and write all its files.

    Args:
        report: what to show.
        format_: row of `jaxguard.report.files.FORMATS`.
        output: file to write; standard output by default.
        folder: where the page and all other formats go; None for nowhere.
    """
    from jaxguard.report import files

    if output is not None:
        files.write(report, output, format_)
    elif format_ == "table":
        from jaxguard.report import table

        out.print(table.render(report))
    else:
        sys.stdout.writelines(files.text(report, format_))
    if folder is not None:
        say(f"report: {files.write_all(report, folder)}")
