"""`jaxguard scan` on many checkpoints."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import re
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from jaxguard.cli import console, options

if TYPE_CHECKING:
    import numpy as np

    from jaxguard.detection.profile import Profile
    from jaxguard.fleet.looks import Look
    from jaxguard.fleet.scan import FleetScan
    from jaxguard.fleet.scoring import Settings
    from jaxguard.fleet.store import Row

FORMATS = ("table", "json", "jsonl", "parquet", "sarif", "html")
BINARY = ("parquet", "html")
FAILURES = ("suspected", "inconclusive", "error", "never")
OPTIONS = frozenset(
    {"profile", "alpha", "control", "out", "shard", "memory", "readers", "ray", "deep", "output", "fail_on"}
)
"""Those of `jaxguard scan` that mean a fleet, even one of a single checkpoint."""

RESULTS = pathlib.Path("jaxguard-scan")
UNSCORED = 3

Out = Annotated[
    pathlib.Path | None,
    typer.Option(
        help="Folder of results (Parquet), where a scan that was stopped goes on. For more than one checkpoint "
        f"{RESULTS} by default."
    ),
]
ProfileFile = Annotated[
    pathlib.Path | None, typer.Option("--profile", help="Reference profile to judge by, made by `jaxguard calibrate`.")
]
Alpha = Annotated[float, typer.Option(help="Accepted rate of false accusations.")]
Control = Annotated[
    str, typer.Option(help="fdr: of all that are suspected; each: for every checkpoint, as if it were alone.")
]
Shard = Annotated[str, typer.Option(help="i/n: this process's part of the checkpoints, 0/4 is the first of four.")]
Memory = Annotated[str, typer.Option(help="For stacks of checkpoints that are read ahead: 512MB, 2GiB.")]
Readers = Annotated[int | None, typer.Option(help="Threads that read; four per core by default.", min=1)]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Let a Ray cluster do the work: auto, HOST:PORT, ray://HOST:PORT, or local for one of its own. All nodes "
        "must be able to read the checkpoints; --memory and --readers are per worker, one for each GPU or four cores.",
    ),
]
Deep = Annotated[
    int,
    typer.Option(
        min=0,
        help="Search triggers too, in N of the checkpoints that their weights leave undecided, those nearest to being "
        "suspected first; on clean images of --data, else on noise. The profile must have been made with --deep.",
    ),
]
Format = Annotated[str, typer.Option("--format", help=f"What is printed: {', '.join(FORMATS)}.")]
Output = Annotated[pathlib.Path | None, typer.Option("--output", help="File for --format; standard output by default.")]
FailOn = Annotated[
    list[str] | None,
    typer.Option(help=f"What makes the exit code 1, repeatable: {', '.join(FAILURES)}.", show_default="suspected"),
]


def is_many(targets: list[str]) -> bool:
    """Whether a command line means a fleet: several targets, or one that may hold several checkpoints."""
    from jaxguard import checkpoints
    from jaxguard.fleet import discovery

    if len(targets) != 1 or checkpoints.is_url(targets[0]):
        return len(targets) != 1 or any(mark in targets[0] for mark in "*?[")
    path = pathlib.Path(targets[0])
    if path.is_dir():
        found = (one for one in checkpoints.below(path) if not one.reason)
        return len(list(itertools.islice(found, 2))) != 1
    if path.is_file():
        return path.suffix.lower() in discovery.MANIFESTS and not checkpoints.is_checkpoint(path)
    return any(mark in targets[0] for mark in "*?[")


def say_passed_over(target: str) -> None:
    """Name the files of a folder that are taken for the same model as the one that is scanned."""
    from jaxguard import checkpoints

    if not checkpoints.is_url(target) and pathlib.Path(target).is_dir():
        for one in checkpoints.below(target):
            if one.is_twin:
                console.say(f"passed over: {one.path}, {one.reason}")


def scan(
    targets: list[str],
    *,
    settings: Settings,
    out: pathlib.Path | None,
    profile: pathlib.Path | None,
    alpha: float,
    control: str,
    shard: str,
    memory: str,
    readers: int | None,
    ray: str | None,
    deep: int,
    data: str | None,
    seed: int,
    format_: str,
    output: pathlib.Path | None,
    fail_on: list[str],
    folder: pathlib.Path | None,
) -> None:
    """Scan, judge, tell; exits with 1 where `fail_on` says so, with 3 where something could not be scored."""
    from jaxguard import audit
    from jaxguard.detection import judging
    from jaxguard.fleet import looks, telling
    from jaxguard.fleet.scan import scan as scan_fleet
    from jaxguard.types import Verdict

    if data is not None and not deep:
        raise typer.BadParameter("expected --deep with it, for several checkpoints or a profile", param_hint="--data")
    if control not in (judging.FDR, judging.EACH):
        raise typer.BadParameter(f"expected fdr or each, got {control!r}", param_hint="--control")
    if not 0 < alpha < 1:
        raise typer.BadParameter(f"expected a rate between 0 and 1, got {alpha}", param_hint="--alpha")
    _check_output(format_, output, fail_on)
    part = _part(shard)
    known = _profile(profile)
    if deep and (known is None or not any(one.deep for one in known.buckets.values())):
        raise typer.BadParameter("expected a profile that `jaxguard calibrate --deep` made", param_hint="--profile")
    out = out or RESULTS
    with contextlib.ExitStack() as stack:
        # Libraries that talk must not do so between the results.
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        with console.fleet_progress("scanning") as watch:
            found = stack.enter_context(
                scan_fleet(
                    targets,
                    out=out,
                    settings=settings,
                    shard=part,
                    memory=size_of(memory),
                    readers=readers,
                    address=ray,
                    watch=watch,
                )
            )
        search = looks.triggers(clean_images(data, seed), seed=seed) if deep else None
        known_looks = telling.Looks(looks.asked(known), trigger_names=() if search is None else search.names)
        if known_looks.asked:
            rows = [row for row in found.rows if row.bucket in known_looks.asked]
            known_looks = replace(known_looks, answers=look_at(looks.answers(), rows, found, settings))
        judged = telling.judged(found, known, known_looks, alpha=alpha, control=control)
        if search is not None and known is not None:
            start, undecided = time.perf_counter(), looks.undecided(found, judged, known, alpha)
            triggers = look_at(search, undecided[:deep], found, settings)
            seconds, unsearched = time.perf_counter() - start, replace(known_looks, trigger_names=())
            alone = telling.judged(found, known, unsearched, alpha=alpha, control=control)
            judged = telling.judged(found, known, replace(known_looks, triggers=triggers), alpha=alpha, control=control)
            counts = [one.verdicts.count(Verdict.SUSPECTED) for one in (judged, alone)]
            console.say(
                f"triggers searched in {min(deep, len(undecided))} of {len(undecided)} undecided checkpoints in "
                f"{seconds:.1f} s: {counts[0]} suspected, {counts[1]} if only their weights counted"
            )
        report = telling.report(
            found,
            judged,
            title=f"Scan of {', '.join(targets[:3])}{', …' if len(targets) > 3 else ''}",
            command=console.command(),
            alpha=alpha,
            control=control,
            profile="" if known is None else f"{profile}, {known.digest[:16]}",
            references=() if known is None else telling.references(known, alpha, deep=deep > 0),
            environment=audit.environment(),
        )
    console.show(report, format_, output=output, folder=folder)
    console.say(f"results: {out}; the same command goes on where this one ended")
    verdicts = {finding.verdict for finding in report.findings}
    names = {"suspected": Verdict.SUSPECTED, "inconclusive": Verdict.INCONCLUSIVE, "error": Verdict.ERROR}
    if any(names.get(name) in verdicts for name in fail_on or ["suspected"]):
        raise typer.Exit(1)
    if (Verdict.ERROR in verdicts or not report.findings) and "never" not in fail_on:
        raise typer.Exit(UNSCORED)


def look_at(look: Look, rows: list[Row], found: FleetScan, settings: Settings) -> dict[str, np.ndarray]:
    """Take a look, and tell how far it is; see `jaxguard.fleet.looks.take`."""
    from jaxguard.fleet import looks

    with console.fleet_progress(look.title) as watch:
        return looks.take(look, rows, found, settings, watch=watch, say=console.say)


def clean_images(data: str | None, seed: int) -> np.ndarray | None:
    """The defender's clean images of a data set."""
    import numpy as np

    return None if data is None else np.asarray(options.dataset(data, seed).clean.images)


def _profile(path: pathlib.Path | None) -> Profile | None:
    from jaxguard.detection.profile import from_json
    from jaxguard.errors import FleetError

    if path is None:
        return None
    try:
        return from_json(path.read_bytes(), str(path))
    except OSError as error:
        raise FleetError(
            f"{path}: expected a profile made by `jaxguard calibrate`, found {error.strerror or error}"
        ) from error


def _check_output(format_: str, output: pathlib.Path | None, fail_on: list[str]) -> None:
    if format_ not in FORMATS:
        raise typer.BadParameter(f"expected one of {', '.join(FORMATS)}, got {format_!r}", param_hint="--format")
    if format_ in BINARY and output is None:
        raise typer.BadParameter(f"expected --output FILE with --format {format_}", param_hint="--format")
    for name in fail_on:
        if name not in FAILURES:
            raise typer.BadParameter(f"expected one of {', '.join(FAILURES)}, got {name!r}", param_hint="--fail-on")


def _part(shard: str) -> tuple[int, int]:
    """Raises typer.BadParameter where that is no part."""
    from jaxguard.errors import FleetError
    from jaxguard.fleet import discovery

    try:
        return discovery.parse_shard(shard)
    except FleetError as error:
        raise typer.BadParameter(str(error), param_hint="--shard") from error


def size_of(text: str) -> int:
    """Parse `512MB`, `2GiB`, `1073741824`.

    Raises:
        typer.BadParameter: that is no size.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if match is None or not float(match[1]):
        raise typer.BadParameter(f"expected a size such as 512MB or 2GiB, got {text!r}", param_hint="--memory")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " kmgt".index(match[2] or " "))
