"""`jaxguard calibrate`: from checkpoints of known truth to a reference profile."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from jaxguard.cli import console, options, scan
from jaxguard.cli.models import NO_OPTIONS, Models, takes_models


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
    overwrite: Annotated[bool, typer.Option(help="Replace an existing profile.")] = False,
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

    if out.exists() and not overwrite:
        raise FleetError(f"{out}: expected a path that is free, got a file; pass --overwrite, or another path")
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
