"""`jaxguard calibrate`: from checkpoints of known truth to a reference profile."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from jaxguard.cli import console, options, scan
from jaxguard.cli.models import NO_OPTIONS, Models, takes_models

if TYPE_CHECKING:
    from jaxguard.fleet.executors import Executor


@takes_models("manifest")
def calibrate(
    clean: Annotated[list[str], typer.Argument(help="Checkpoints known to be clean; folders, patterns, manifests.")],
    out: Annotated[pathlib.Path, typer.Option(help="Where to write the profile.")] = pathlib.Path("profile.json"),
    backdoored: Annotated[
        list[str] | None, typer.Option(help="Checkpoints known to be backdoored: what the power is measured on.")
    ] = None,
    results: scan.Out = None,
    alpha: scan.Alpha = None,
    models: Models = NO_OPTIONS,
    pairing: options.Pairs = "dataflow",
    memory: scan.Memory = None,
    readers: scan.Readers = None,
    ray: scan.Ray = None,
    responses: Annotated[
        bool,
        typer.Option(
            "--responses",
            help="Also examine responses to noise, here and in scans: finds more, at a fraction of a second each.",
        ),
    ] = False,
    extend: Annotated[
        pathlib.Path | None,
        typer.Option(help="Instead of a profile: a file for `scan --reference`, the networks that ship and these."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
) -> None:
    """Make the reference profile that a scan's verdicts rest on.

    A verdict that errs once in twenty times needs nineteen clean checkpoints of the same architecture, made like those
    that will be judged. With backdoored ones as well, the score learns what to weigh, and its power is known.
    """
    from jaxguard import scanning
    from jaxguard.checkpoints import atomic
    from jaxguard.detection import judging
    from jaxguard.detection.profile import to_json
    from jaxguard.errors import FleetError
    from jaxguard.report import table

    written = extend or out
    if written.exists() and not overwrite:
        raise FleetError(f"{written}: expected a path that is free, got a file; pass --overwrite, or another path")
    if extend is not None:
        if backdoored:
            raise typer.BadParameter("expected clean networks alone, got --backdoored too", param_hint="--extend")
        return _extended(extend, clean, scan.executor_of(results, "0/1", memory, readers, ray), models)
    rate = judging.ALPHA if alpha is None else alpha
    made = scanning.calibrate(
        clean,
        backdoored or [],
        looks=["weights", *(["responses"] if responses else [])],
        executor=scan.executor_of(results, "0/1", memory, readers, ray),
        options=models.options,
        pairing=options.checked_pairing(pairing),
        listener=scanning.Listener(console.fleet_progress, console.say),
    )
    with atomic.replacing(out, overwrite=True) as fresh:
        fresh.write_text(to_json(made), "utf-8")
    console.out.print(table.reference_table(judging.references(made, rate), rate))
    for note in made.notes:
        console.say(note)
    console.say(f"profile: {out}, {made.digest[:16]}")


def _extended(path: pathlib.Path, clean: list[str], executor: Executor | None, models: Models) -> None:
    """Writes the reference of the package with the user's networks."""
    from jaxguard import extending, scanning
    from jaxguard.checkpoints import atomic
    from jaxguard.detection import trigger_reference
    from jaxguard.types import Verdict

    listener = scanning.Listener(console.fleet_progress, console.say, console.progress)
    made, found = extending.extend_reference(clean, executor=executor, options=models.options, listener=listener)
    with atomic.replacing(path, overwrite=True) as fresh:
        fresh.write_text(trigger_reference.to_json(made), "utf-8")
    added = {one.sha256 for one in made.networks}
    for one in found.findings:
        if one.provenance.sha256 not in added:
            console.say(f"left out: {one.provenance.name}: {one.reason}")
        elif one.verdict is Verdict.SUSPECTED:
            console.say(f"would be suspected without being a reference: {one.provenance.name}: {one.reason}")
    console.say(f"reference: {path}, {len(made.networks)} networks")
