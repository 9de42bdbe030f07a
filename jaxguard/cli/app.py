"""The commands: parse, call `jaxguard.audit`, print."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

import jaxguard
from jaxguard.cli import calibration, catalogue, console, fingerprints, fleet, options

app = typer.Typer(
    help="Audit neural-network checkpoints: find backdoors, take them out, recognise stolen models.",
    epilog="Exit codes: 0 nothing found, 1 findings, 2 error, 3 something could not be scored, 4 usage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


app.add_typer(fingerprints.app, name="fingerprint")
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
def scan(
    context: typer.Context,
    checkpoints: options.Checkpoints,
    arch: options.Arch = None,
    apply: options.Apply = None,
    init: options.Init = None,
    input_: options.Input = None,
    mean: options.Mean = None,
    std: options.Std = None,
    data: options.Data = None,
    attack: options.AttackName = None,
    trigger: options.Trigger = None,
    target: options.Target = 0,
    u: Annotated[
        float | None,
        typer.Option(help="Deviations above the layer's mean that make a channel suspicious.", show_default="3.0"),
    ] = None,
    pairing: Annotated[str, typer.Option(help="dataflow, or module_order as in the reference code.")] = "dataflow",
    profile: fleet.ProfileFile = None,
    alpha: fleet.Alpha = 0.05,
    control: fleet.Control = "fdr",
    out: fleet.Out = None,
    shard: fleet.Shard = "0/1",
    memory: fleet.Memory = "768MiB",
    readers: fleet.Readers = None,
    ray: fleet.Ray = None,
    deep: fleet.Deep = 0,
    format_: fleet.Format = "table",
    output: fleet.Output = None,
    fail_on: fleet.FailOn = None,
    fail_on_inconclusive: Annotated[bool, typer.Option(help="Exit with 1 unless the verdict is conclusive.")] = False,
    seed: options.Seed = 0,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Score every channel of a checkpoint, or of all in a store; no data needed.

    Without a reference profile the verdict is `inconclusive`, never `clean`.
    """
    from jaxguard import audit
    from jaxguard.types import Report, Verdict

    failures = [*(fail_on or []), *(["suspected", "inconclusive"] if fail_on_inconclusive else [])]
    given = {name for name in context.params if _is_given(context, name)}
    if fleet.is_many(checkpoints) or given & fleet.OPTIONS or format_ not in ("table", "json"):
        for name in sorted(given & {"apply", "init", "attack", "trigger", "target", "u", "mean", "std"}):
            what = f"expected it with a single checkpoint, and without {_named(given & fleet.OPTIONS) or 'a profile'}"
            raise typer.BadParameter(what, param_hint=f"--{name}")
        if profile is None:
            for name in sorted(given & {"alpha", "control"}):
                raise typer.BadParameter(
                    "expected --profile with it: nobody is suspected without", param_hint=f"--{name}"
                )
        fleet.scan(
            checkpoints,
            settings=options.fleet_settings(arch, input_, pairing),
            out=out,
            profile=profile,
            alpha=alpha,
            control=control,
            shard=shard,
            memory=memory,
            readers=readers,
            ray=ray,
            deep=deep,
            data=data,
            seed=seed,
            format_="json" if as_json else format_,
            output=output,
            fail_on=failures,
            folder=report,
        )
        return
    checkpoint, pairs = checkpoints[0], options.checked_pairing(pairing)
    fleet.say_passed_over(checkpoint)
    found = options.dataset(data, seed) if data else None
    known = options.attack(attack, trigger, target, found)
    suspect = options.suspect(checkpoint, arch, input_, mean=mean, std=std, apply=apply, init=init)
    test = found and found.test
    result = audit.scan(suspect, u=3.0 if u is None else u, pairing=pairs, test=test, attack=known)
    example = audit.trigger_example(known, test) if known and test else None
    title = f"Scan of {pathlib.Path(checkpoint).name}"
    whole = Report(title, console.command(), (result,), trigger=example, environment=audit.environment(seed=seed))
    console.show(whole, "json" if as_json else format_, folder=report)
    inconclusive = result.verdict is Verdict.INCONCLUSIVE
    if not inconclusive or fail_on_inconclusive:
        raise typer.Exit(1)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _named(names: set[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in sorted(names))


@app.command()
def repair(
    checkpoint: options.Checkpoint,
    out: Annotated[pathlib.Path, typer.Option(help="Where the repaired checkpoint goes.", show_default=False)],
    method: options.Method = "clp",
    assignments: options.Set = None,
    arch: options.Arch = None,
    apply: options.Apply = None,
    init: options.Init = None,
    input_: options.Input = None,
    mean: options.Mean = None,
    std: options.Std = None,
    data: options.Data = None,
    clean: Annotated[float, typer.Option(help="Share of the training split that the defender owns.")] = 0.05,
    images_per_class: Annotated[int | None, typer.Option(help="Instead of --clean: so many per class.")] = None,
    mixed: options.Mixed = None,
    attack: options.AttackName = None,
    trigger: options.Trigger = None,
    target: options.Target = 0,
    format_: Annotated[
        str | None, typer.Option("--format", help="safetensors, orbax or msgpack; the source's.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing checkpoint.")] = False,
    seed: options.Seed = 0,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Take a backdoor out, and prove it where there is test data.

    The defense gets at most the clean and the mixed images; test images and trigger are for the proof.
    """
    import jax

    from jaxguard import audit, repairs, suspects
    from jaxguard.data import load_images
    from jaxguard.types import Report

    chosen = options.hyperparameters(assignments or [])
    found = options.dataset(data, seed, clean, images_per_class) if data else None
    known = options.attack(attack, trigger, target, found)
    suspect = options.suspect(checkpoint, arch, input_, mean=mean, std=std, apply=apply, init=init)
    suspects.require_writable(out, suspect, format=format_, overwrite=overwrite)
    with console.progress(f"repairing with {method}") as progress:
        repaired, result = repairs.repair(
            suspect,
            method,
            jax.random.key(seed),
            clean=found and found.clean,
            mixed=mixed and load_images(mixed),
            test=found and found.test,
            attack=known,
            progress=progress,
            options=chosen,
        )
    suspects.save(repaired, out, format=format_, overwrite=overwrite)
    example = audit.trigger_example(known, found.test) if known and found else None
    title = f"Repair of {pathlib.Path(checkpoint).name}"
    environment = audit.environment(seed=seed)
    console.show(
        Report(title, console.command(), repairs=(result,), trigger=example, environment=environment),
        "json" if as_json else "table",
        folder=report,
    )
    console.say(f"repaired checkpoint: {out}")


@app.command()
def evaluate(
    checkpoint: options.Checkpoint,
    data: Annotated[str, typer.Option(help="digits, tfds:NAME or npz:PATH.", show_default=False)],
    arch: options.Arch = None,
    apply: options.Apply = None,
    init: options.Init = None,
    input_: options.Input = None,
    mean: options.Mean = None,
    std: options.Std = None,
    attack: options.AttackName = None,
    trigger: options.Trigger = None,
    target: options.Target = 0,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Measure accuracy, and with a trigger its success rate, on the whole test split."""
    import dataclasses
    import json

    from jaxguard import audit
    from jaxguard.report import table

    found = options.dataset(data, seed)
    known = options.attack(attack, trigger, target, found)
    suspect = options.suspect(checkpoint, arch, input_, mean=mean, std=std, apply=apply, init=init)
    metrics = audit.measure(suspect, found.test, known)
    if as_json:
        print(json.dumps(dataclasses.asdict(metrics)))
    else:
        console.out.print(table.metrics_table(metrics, checkpoint))


@app.command()
def inspect(
    checkpoint: options.Checkpoint,
    arch: options.Arch = None,
    apply: options.Apply = None,
    init: options.Init = None,
    input_: options.Input = None,
) -> None:
    """Show format, leaves, architecture and channels of a checkpoint."""
    from jaxguard import checkpoints
    from jaxguard.cli import inspection

    console.out.print(inspection.leaves(checkpoints.load(checkpoint)))
    suspect = options.suspect(checkpoint, arch, input_, apply=apply, init=init)
    if suspect.network is None:
        console.out.print(inspection.structure(suspect))
    else:
        console.out.print(inspection.channels(suspect.network.graph, suspect.architecture))
