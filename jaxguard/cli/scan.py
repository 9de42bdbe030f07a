"""`jaxguard scan`: one checkpoint or a hundred thousand."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jaxguard.cli import console, options
from jaxguard.cli.models import NO_OPTIONS, Models, takes_models

if TYPE_CHECKING:
    from jaxguard.fleet.executors import Executor
    from jaxguard.types import Report

FINDINGS, UNSCORED, INTERRUPTED = 1, 3, 130
SHOWN = 5
FAILURES = ("code", "suspected", "inconclusive", "error", "never")
"""`suspected` is a confirmed backdoor too."""


ProfileFile = Annotated[
    pathlib.Path | None, typer.Option("--profile", help="Reference profile to judge by, made by `jaxguard calibrate`.")
]
ReferenceFile = Annotated[
    pathlib.Path | None,
    typer.Option(
        "--reference",
        help="Clean networks to compare trigger searches with, made by `jaxguard calibrate --extend`.",
        show_default="those that ship with jaxguard",
    ),
]
Alpha = Annotated[float | None, typer.Option(help="Accepted rate of false accusations.", show_default="0.05")]
Control = Annotated[
    str | None,
    typer.Option(
        help="fdr: the false discovery rate among all; each: the error rate of each checkpoint alone.",
        show_default="fdr",
    ),
]
Out = Annotated[
    pathlib.Path | None,
    typer.Option(help="Folder of results (Parquet), from which a stopped scan resumes; by default none is kept."),
]
Shard = Annotated[
    str, typer.Option(help="i/n: the part of the checkpoints that this process scans; 0/4 is the first of four.")
]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Memory for checkpoints that are read ahead: 512MB, 2GiB.",
        show_default="768MiB, more with accelerators",
    ),
]
Readers = Annotated[int | None, typer.Option(help="Threads that read; four per core by default.", min=1)]
Hash = Annotated[
    str | None,
    typer.Option(
        "--hash",
        help="What contents are named by; searches, and profiles without blake3, need the slower sha256.",
        show_default="sha256, of more than 16 checkpoints blake3 where it can be",
    ),
]
VerifyContent = Annotated[
    bool,
    typer.Option(
        "--verify-content",
        help="Read checkpoints of --out again whose size and time of change are the same, which are skipped otherwise.",
    ),
]
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
    str | None,
    typer.Option(
        metavar="N|all",
        help="Search universal triggers in the N most suspicious checkpoints, or in all; 0 in none.",
        show_default="all of up to four",
    ),
]
Kinds = Annotated[
    list[str] | None,
    typer.Option(
        "--kind",
        help="Kind of triggers to search, repeatable: patch, additive, additive-l2, blended, warp, neural-cleanse, "
        "all-to-all, source-target; or all. Each costs its own time.",
        show_default="patch, blended and all-to-all",
    ),
]
Synthesise = Annotated[
    bool,
    typer.Option(
        "--synthesise",
        help="Without --data, search on images that match each network's BatchNorm statistics instead of procedural "
        "ones; slower.",
    ),
]
Quick = Annotated[bool, typer.Option("--quick", help="Search no universal triggers: seconds instead of minutes.")]
Budget = Annotated[
    str | None,
    typer.Option(help="Time for the search of universal triggers, such as 60s or 5m.", show_default="no limit"),
]
SaveTrigger = Annotated[
    pathlib.Path | None,
    typer.Option(help="File (npz) for the trigger that a search found; `--trigger` of other commands takes it."),
]
Format = Annotated[
    str | None,
    typer.Option("--format", help="Output format: table, json, jsonl, parquet, sarif, html.", show_default="table"),
]
Output = Annotated[pathlib.Path | None, typer.Option("--output", help="File for --format; standard output by default.")]
FailOn = Annotated[
    list[str] | None,
    typer.Option(
        help=f"What makes the exit code 1, repeatable: {', '.join(FAILURES)}.", show_default="code and suspected"
    ),
]


@takes_models()
def scan(  # noqa: PLR0917  # a command's options
    checkpoints: options.Checkpoints,
    models: Models = NO_OPTIONS,
    data: options.Data = None,
    attack: options.AttackName = None,
    trigger: options.Trigger = None,
    target: options.Target = None,
    pairing: options.Pairs = "dataflow",
    profile: ProfileFile = None,
    reference: ReferenceFile = None,
    alpha: Alpha = None,
    control: Control = None,
    out: Out = None,
    shard: Shard = "0/1",
    memory: Memory = None,
    readers: Readers = None,
    hash_: Hash = None,
    verify_content: VerifyContent = False,
    ray: Ray = None,
    deep: Deep = None,
    kind: Kinds = None,
    synthesise: Synthesise = False,
    quick: Quick = False,
    budget: Budget = None,
    save_trigger: SaveTrigger = None,
    format_: Format = None,
    output: Output = None,
    fail_on: FailOn = None,
    code_only: Annotated[
        bool,
        typer.Option("--code-only", help="Look only for code that loading a file would run; reads no weights."),
    ] = False,
    fail_on_inconclusive: Annotated[bool, typer.Option(help="Exit with 1 unless the verdict is conclusive.")] = False,
    seed: options.Seed = 0,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Judge one checkpoint, or all in a folder or bucket; no data needed.

    Universal triggers are searched in up to four networks that can be run, on
    images made from nothing or clean ones of --data; --deep searches more. With
    a --profile both judge together. The verdict is never `clean`. Ctrl-C ends
    the searches, and what was found is still told, with exit code 130.
    """
    chosen = options.output_format(format_, as_json=as_json, output=output)
    failures = _failures(fail_on or [], fail_on_inconclusive)
    if code_only:
        from jaxguard import codescan

        found = codescan.scan_code(checkpoints)
        console.show(replace(found, command=console.command()), chosen, output=output, folder=report)
        raise typer.Exit(_code(found, failures))
    searched = _deep(deep, is_quick=quick)
    rates = _rates(alpha, control, is_judged=profile is not None or searched != 0)
    if hash_ not in (None, "sha256", "blake3"):
        raise typer.BadParameter(f"expected sha256 or blake3, got {hash_!r}", param_hint="--hash")
    if synthesise and data:
        raise typer.BadParameter("expected --data or --synthesise, got both", param_hint="--synthesise")
    console.begin("scanning", checkpoints)
    _warn_of_code(checkpoints)
    given = models.options
    executor, seconds = executor_of(out, shard, memory, readers, ray), options.duration(budget)
    if verify_content:
        executor = _verifying(executor)
    pairs = options.checked_pairing(pairing)
    found = options.dataset(data, seed) if data else None
    known = options.attack(attack, trigger, target, found)

    from jaxguard import scanning

    # Libraries that talk must not do so between the results.
    with contextlib.redirect_stdout(sys.stderr):
        result = scanning.scan(
            [*checkpoints, *models.targets],
            profile=profile,
            reference=reference,
            **rates,
            executor=executor,
            options=given,
            pairing=pairs,
            deep=searched,
            content_hash=hash_,
            kinds=_kinds(kind or []),
            budget=seconds,
            clean=found.clean if found and len(found.clean.images) else None,
            synthesised=synthesise,
            test=found and found.test,
            attack=known,
            seed=seed,
            listener=scanning.Listener(console.fleet_progress, console.say, console.progress, console.quick_look),
        )
    result = replace(result, command=console.command(), environment={**result.environment, "seed": str(seed)})
    console.show(result, chosen, output=output, folder=report)
    if chosen != "table":
        for note in (*_unscored(result), *result.notes):
            console.say(note)
    if save_trigger is not None:
        _save_trigger(result, save_trigger)
    if out is not None:
        console.say(f"results: {out}; the same command resumes where this one ended")
    if result.interrupted:
        kept = f"what was searched is kept in {out}" if out is not None else "nothing of it is kept without --out"
        console.error("interrupted", f"not all triggers were searched; {kept}")
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(_code(result, failures))


def _save_trigger(report: Report, path: pathlib.Path) -> None:
    """Writes the trigger of the most suspicious network, part by part."""
    import numpy as np

    from jaxguard.report import headlines

    found = (one.search for one in headlines.by_suspicion(report.findings) if one.search is not None)
    search = next((one for one in found if one.trigger is not None), None)
    if search is None or search.trigger is None or search.trigger.labels is None:
        console.say(f"no trigger was found: {path} was not written")
        return
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, labels=search.trigger.labels, **search.trigger.arrays)
    console.say(f"trigger of {search.goal}: --trigger {path}")


def _warn_of_code(paths: list[str]) -> None:
    """Says at once, before JAX is imported, what loading one of the files would run."""
    from jaxguard.checkpoints import examine

    for path in paths[:SHOWN]:
        calls = examine(path).calls if os.path.isfile(path) else ()
        if calls:
            console.error("code execution", f"{path}: loading it calls {calls[0]}; do not load it elsewhere")


def executor_of(
    out: pathlib.Path | None, shard: str, memory: str | None, readers: int | None, ray: str | None
) -> Executor | None:
    """What the options ask for; None where nothing does.

    Raises:
        typer.BadParameter: no such part, or no size.
    """
    part, size = options.part(shard), options.size(memory)
    if out is None and memory is None and readers is None and ray is None and part == (0, 1):
        return None

    from jaxguard.fleet.executors import Ray, Stream

    if ray is not None:
        return Ray(out, part, size, readers, address=ray)
    return Stream(out, part, size, readers)


def _verifying(executor: Executor | None) -> Executor:
    """The executor, told to read all checkpoints."""
    from jaxguard.fleet.executors import Stream

    if not isinstance(executor, Stream) or executor.out is None:
        raise typer.BadParameter("expected --out with it, got none", param_hint="--verify-content")
    return replace(executor, verify_content=True)


def _deep(deep: str | None, *, is_quick: bool) -> int | Literal["all"] | None:
    """In how many networks triggers are searched."""
    if is_quick and deep not in (None, "0"):
        raise typer.BadParameter("expected --quick or --deep, got both", param_hint="--quick")
    if is_quick or deep is None:
        return 0 if is_quick else None
    if deep != "all" and not re.fullmatch(r"\d{1,9}", deep, re.ASCII):
        raise typer.BadParameter(f"expected a number of checkpoints, or all, got {deep!r}", param_hint="--deep")
    return "all" if deep == "all" else int(deep)


def _kinds(named: list[str]) -> list[str] | None:
    """Those named, or all there are; None for the usual ones."""
    if not named:
        return None

    from jaxguard.inversion.kinds import KINDS

    if wrong := [one for one in named if one not in KINDS and one != "all"]:
        told = f"expected kinds among {', '.join(KINDS)}, or all, got {wrong[0]!r}"
        raise typer.BadParameter(told, param_hint="--kind")
    return list(KINDS) if "all" in named else list(dict.fromkeys(named))


def _rates(alpha: float | None, control: str | None, *, is_judged: bool) -> dict[str, Any]:
    """The rates that were given; without a profile and a search nothing is suspected, whatever they are."""
    given = {name: value for name, value in (("alpha", alpha), ("control", control)) if value is not None}
    if given and not is_judged:
        raise typer.BadParameter("expected --profile with it, got none", param_hint=f"--{next(iter(given))}")
    if control not in (None, "fdr", "each"):
        raise typer.BadParameter(f"expected fdr or each, got {control!r}", param_hint="--control")
    if alpha is not None and not 0 < alpha < 1:
        raise typer.BadParameter(f"expected a rate between 0 and 1, got {alpha}", param_hint="--alpha")
    return given


def _failures(fail_on: list[str], is_inconclusive: bool) -> set[str]:
    for name in fail_on:
        if name not in FAILURES:
            raise typer.BadParameter(f"expected one of {', '.join(FAILURES)}, got {name!r}", param_hint="--fail-on")
    return {*(fail_on or ["code", "suspected"]), *(["code", "suspected", "inconclusive"] if is_inconclusive else [])}


def _unscored(report: Report) -> list[str]:
    """Why the first ones could not be scored; the report holds all."""
    from jaxguard.types.findings import Verdict

    errors = [one.reason for one in report.findings if one.verdict is Verdict.ERROR]
    return errors[:SHOWN] + [f"{len(errors) - SHOWN} more could not be scored"] * (len(errors) > SHOWN)


def _code(report: Report, failures: set[str]) -> int:
    """1 where there is what makes the command fail, 3 where something could not be scored."""
    from jaxguard.types.findings import Verdict

    verdicts = {finding.verdict for finding in report.findings}
    names = {
        "code": {Verdict.CODE_EXECUTION},
        "suspected": {Verdict.SUSPECTED, Verdict.CONFIRMED},
        "inconclusive": {Verdict.INCONCLUSIVE},
        "error": {Verdict.ERROR},
    }
    if any(verdicts & names.get(name, set()) for name in failures):
        return FINDINGS
    is_unscored = Verdict.ERROR in verdicts or not report.findings
    return UNSCORED if is_unscored and "never" not in failures else 0
