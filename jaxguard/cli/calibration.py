"""`jaxguard calibrate`: from checkpoints whose truth is known to a reference profile."""

from __future__ import annotations

import contextlib
import pathlib
from dataclasses import replace
from typing import Annotated

import typer

from jaxguard.cli import console, fleet, options


def calibrate(
    clean: Annotated[list[str], typer.Argument(help="Checkpoints known to be clean; folders, patterns, manifests.")],
    out: Annotated[pathlib.Path, typer.Option(help="Where the profile goes.")] = pathlib.Path("profile.json"),
    backdoored: Annotated[
        list[str] | None, typer.Option(help="Checkpoints known to be backdoored: what the power is measured on.")
    ] = None,
    results: fleet.Out = None,
    alpha: fleet.Alpha = 0.05,
    arch: options.Arch = None,
    input_: options.Input = None,
    pairing: Annotated[str, typer.Option(help="dataflow, or module_order as in the reference code.")] = "dataflow",
    memory: fleet.Memory = "768MiB",
    readers: fleet.Readers = None,
    ray: fleet.Ray = None,
    answers: Annotated[
        bool,
        typer.Option(
            "--answers",
            help="Ask all for their answers to noise too, and those that will be judged: finds more, at a fraction of "
            "a second each.",
        ),
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Search triggers in all references too, for scans with --deep.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="Images to search triggers on, digits, tfds:NAME or npz:PATH; noise by default.")
    ] = None,
    seed: options.Seed = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing profile.")] = False,
) -> None:
    """Make the reference profile that a scan's verdicts rest on.

    A verdict that errs once in twenty times needs nineteen clean checkpoints of the same architecture, made as those
    that will be judged. With backdoored ones beside them the score learns what to look at, and its power is known.
    """
    from jaxguard.checkpoints import atomic
    from jaxguard.detection import calibration
    from jaxguard.detection.profile import to_json
    from jaxguard.errors import FleetError
    from jaxguard.fleet import looks, telling
    from jaxguard.fleet.scan import scan as scan_fleet
    from jaxguard.report import table
    from jaxguard.suspects import UNKNOWN

    if out.exists() and not overwrite:
        raise FleetError(f"{out}: expected a path that is free, found a file; pass --overwrite, or another path")
    settings = options.fleet_settings(arch, input_, pairing)
    search = looks.triggers(fleet.clean_images(data, seed), seed=seed) if deep else None
    names: dict[str, tuple[str, ...]] = {}
    sides = []
    for title, targets in (("clean", clean), ("backdoored", backdoored or [])):
        records = []
        if targets:
            with contextlib.ExitStack() as stack:
                with console.fleet_progress(f"scanning {title} references") as watch:
                    scanning = scan_fleet(
                        targets,
                        out=results,
                        settings=settings,
                        memory=fleet.size_of(memory),
                        readers=readers,
                        address=ray,
                        watch=watch,
                    )
                    found = stack.enter_context(scanning)
                for row in found.rows:
                    if row.error:
                        console.say(f"left out: {row.error}")
                rows = [row for row in found.rows if not row.error and row.architecture != UNKNOWN]
                seen = telling.Looks()
                if answers:
                    asked = frozenset(row.bucket for row in rows)
                    seen = replace(seen, asked=asked, answers=fleet.look_at(looks.answers(), rows, found, settings))
                if search is not None:
                    found_triggers = fleet.look_at(search, rows, found, settings)
                    seen = replace(seen, triggers=found_triggers, trigger_names=search.names)
                records = telling.records_of(found, seen)
                names |= telling.names_of(found, seen)
        sides.append(records)
    made = calibration.calibrate(*sides, names=names, deep_names=() if search is None else search.names)
    with atomic.replacing(out, overwrite=True) as fresh:
        fresh.write_text(to_json(made), "utf-8")
    console.out.print(table.reference_table(telling.references(made, alpha), alpha))
    for note in made.notes:
        console.say(note)
    console.say(f"profile: {out}, {made.digest[:16]}")
