"""The commands: parse, call, print."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import typer

import jaxguard
from jaxguard.cli import calibration, catalogue, console, fingerprints, options, scan
from jaxguard.cli.models import NO_OPTIONS, Models, takes_models

app = typer.Typer(
    help="Audit neural-network checkpoints: find backdoors, take them out, recognise stolen models.",
    epilog="Exit codes: 0 nothing found, 1 findings, 2 error, 3 something could not be scored, 4 usage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


app.add_typer(fingerprints.app, name="fingerprint")
app.command()(scan.scan)
app.command()(calibration.calibrate)
app.command("methods")(catalogue.methods)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"jaxguard {jaxguard.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show and exit.")
    ] = False,
) -> None:
    del version


@app.command()
def demo(
    out: Annotated[pathlib.Path, typer.Option(help="Folder for the report and the checkpoints.")] = pathlib.Path(
        "demo"
    ),
    seed: options.Seed = 0,
) -> None:
    """Train a backdoored and a clean network, scan both, repair the first."""
    from jaxguard import demo as main_job

    report = main_job.run(out, seed=seed, stage=console.progress, command=console.command())
    console.show(report, folder=out)


@app.command()
@takes_models()
def repair(
    checkpoint: options.Checkpoint,
    out: Annotated[pathlib.Path, typer.Option(help="Where to write the repaired checkpoint.", show_default=False)],
    method: options.Method = "clp",
    assignments: options.Set = None,
    models: Models = NO_OPTIONS,
    data: options.Data = None,
    clean: Annotated[float, typer.Option(help="Share of the training split that the defender owns.")] = 0.05,
    images_per_class: Annotated[
        int | None, typer.Option(help="Instead of --clean: this many images per class.")
    ] = None,
    mixed: options.Mixed = None,
    attack: options.AttackName = None,
    trigger: options.Trigger = None,
    target: options.Target = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="safetensors, orbax or msgpack; by default the source's.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing checkpoint.")] = False,
    seed: options.Seed = 0,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Remove a backdoor; with test data, prove it.

    The defense gets at most the clean and the mixed images; test images and trigger are for the proof.
    """
    import jax

    from jaxguard import evaluation, repairs, suspects
    from jaxguard.data import load_images
    from jaxguard.environment import environment
    from jaxguard.suspects import normalization
    from jaxguard.types import Report

    chosen = options.hyperparameters(assignments or [])
    found = options.dataset(data, seed, clean, images_per_class) if data else None
    known = options.attack(attack, trigger, target, found)
    path, opening = models.opening(checkpoint)
    suspect = opening.load(path)
    suspects.require_writable(out, suspect, format=format_, overwrite=overwrite)
    splits = [] if found is None else [opening.relabelled(one) for one in (found.clean, found.test)]
    clean_images, test = splits or (None, None)
    with console.progress(f"repairing with {method}") as progress:
        repaired, result = repairs.repair(
            suspect,
            method,
            jax.random.key(seed),
            clean=clean_images,
            mixed=mixed and load_images(mixed),
            test=test,
            attack=known,
            progress=progress,
            options=chosen,
        )
    lost = suspects.save(repaired, out, format=format_, overwrite=overwrite)
    example = evaluation.trigger_example(known, test) if known and test else None
    title = f"Repair of {pathlib.Path(path).name}"
    doubts = normalization.doubts(suspect, test) if test else ()
    made = Report(title, console.command(), repairs=(result,), trigger=example, environment=environment(seed=seed))
    console.show(
        dataclasses.replace(made, notes=(*suspect.notes, *lost, *doubts)),
        "json" if as_json else "table",
        folder=report,
    )
    console.say(f"repaired checkpoint: {out}")


@app.command()
@takes_models()
def evaluate(
    checkpoint: options.Checkpoint,
    data: Annotated[str, typer.Option(help="digits, tfds:NAME or npz:PATH.", show_default=False)],
    models: Models = NO_OPTIONS,
    attack: options.AttackName = None,
    trigger: options.Trigger = None,
    target: options.Target = None,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Measure accuracy, and with a trigger its success rate, on the whole test split."""
    import json

    from jaxguard import evaluation
    from jaxguard.report import table
    from jaxguard.suspects import normalization

    found = options.dataset(data, seed)
    known = options.attack(attack, trigger, target, found)
    path, opening = models.opening(checkpoint)
    suspect, test = opening.load(path), opening.relabelled(found.test)
    network = suspect.require_network()
    metrics = evaluation.evaluate(network, test, known)
    notes = (*suspect.notes, *normalization.doubts(suspect, test))
    if as_json:
        print(json.dumps({**dataclasses.asdict(metrics), "notes": notes}))
    else:
        console.out.print(table.metrics_table(metrics, path))
    for note in notes:
        console.say(note)


@app.command()
@takes_models("mean", "std", "precision")
def inspect(
    checkpoint: options.Checkpoint,
    models: Models = NO_OPTIONS,
) -> None:
    """Show format, leaves, architecture and channels of a checkpoint."""
    from jaxguard import checkpoints
    from jaxguard.cli import inspection

    path, opening = models.opening(checkpoint)
    console.out.print(inspection.leaves(checkpoints.load(path, weights=opening.weights)))
    suspect = opening.load(path)
    if suspect.network is None:
        console.out.print(inspection.structure(suspect))
    else:
        console.out.print(inspection.channels(suspect.network.graph, suspect.architecture, suspect.notes))
    console.out.print(inspection.accounts(suspect))
