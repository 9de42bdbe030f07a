"""`jaxguard fingerprint make | verify | matrix`: is that model a stolen copy of mine?"""

from __future__ import annotations

import glob
import os
import pathlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxguard.cli import console, options
from jaxguard.cli.models import NO_OPTIONS, Models, opened, takes_models

if TYPE_CHECKING:
    from jaxguard.types import Batch

app = typer.Typer(
    help="Is that model a stolen copy of mine?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Method = Annotated[
    str,
    typer.Option(
        help="With images: sac, akh, ipguard, zest, lite-guard, metav. Without any, for ReLU networks: tafa-hinge."
    ),
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="Setting of the method NAME=VALUE, repeatable.", show_default=False)
]
Data = Annotated[
    str | None,
    typer.Option(help="digits, tfds:NAME or npz:PATH; its test split makes the probes.", show_default=False),
]
Trigger = Annotated[
    pathlib.Path | None,
    typer.Option(help="Trigger (npz of `scan --save-trigger`) to stamp on these images: copies inherit a backdoor."),
]
Suspects = Annotated[
    list[str],
    typer.Argument(help="Checkpoints, or http(s) addresses of models that answer in JSON.", show_default=False),
]
Alpha = Annotated[float, typer.Option(help="Accepted rate of accusing an independent model.")]


@app.command()
@takes_models()
def make(
    owner: options.Checkpoint,
    out: Annotated[pathlib.Path, typer.Option(help="Where to write the certificate; ends in .safetensors.")],
    method: Method = "sac",
    assignments: Assignments = None,
    data: Data = None,
    trigger: Trigger = None,
    independent: Annotated[
        list[str] | None,
        typer.Option(help="Checkpoint known to be independent, or a pattern such as 'others/*'; repeatable."),
    ] = None,
    models: Models = NO_OPTIONS,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing certificate.")] = False,
    seed: options.Seed = 0,
) -> None:
    """Make a certificate: probes, the owner's signature, and what independent models score.

    A verdict that errs once in twenty times needs nineteen independent models.
    """
    import jax

    from jaxguard import ownership
    from jaxguard.errors import CheckpointError
    from jaxguard.fingerprints import certificate
    from jaxguard.suspects import normalization

    if out.exists() and not overwrite:
        raise CheckpointError(f"{out}: expected a path that is free, got a file; pass --overwrite, or another path")
    path, opening = models.opening(owner)
    mine, independents = opened(path, opening), models.suspects(_files(independent or []))
    images = _images(data, trigger, seed)
    if images is not None:
        images = opening.relabelled(images)
        for doubt in normalization.doubts(mine, images) if mine.network is not None else ():
            console.say(f"{path}: {doubt}")
    with console.progress(f"fingerprint by {method}") as progress:
        made = ownership.certify(
            mine,
            method,
            jax.random.key(seed),
            data=images,
            independents=independents,
            options=options.hyperparameters(assignments or []),
            progress=progress,
        )
    certificate.save(made, out, overwrite=overwrite)
    count = len(made.references)
    console.out.print(f"certificate {out}: {len(made.probes.images)} probes, {count} independent models")
    console.out.print(f"sha256 {made.digest}")
    for note in made.probes.notes:
        console.say(note)


@app.command()
@takes_models()
def verify(
    certificate: Annotated[pathlib.Path, typer.Argument(help="Made by `fingerprint make`.", show_default=False)],
    suspects: Suspects,
    alpha: Alpha = 0.05,
    models: Models = NO_OPTIONS,
    gives: Annotated[str, typer.Option(help="What an endpoint returns: logits or probs.")] = "logits",
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            help="Setting of endpoints NAME=VALUE, repeatable: encoding, scores_path, rate, cache, batch_size, ..."
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(help="Header for endpoints: 'Authorization: Bearer $TOKEN'; variables are filled in."),
    ] = None,
    fail_on_inconclusive: Annotated[bool, typer.Option(help="Exit with 1 unless the verdict is conclusive.")] = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Judge suspects by a certificate, each with a p-value."""
    from jaxguard import endpoints, methods, ownership
    from jaxguard.environment import environment
    from jaxguard.fingerprints.certificate import load
    from jaxguard.types import Report, Verdict

    if gives not in ("logits", "probs"):
        raise typer.BadParameter(f"expected logits or probs, got {gives!r}", param_hint="--gives")
    held = load(certificate)
    settings = methods.check(endpoints.http, options.hyperparameters(endpoint or []))
    judged: list[Any] = [
        endpoints.http(path, headers=_headers(header or []), **settings)
        if path.startswith(("http://", "https://"))
        else opened(path, opening)
        for path, opening in models.openings(suspects)
    ]
    found = ownership.verify(held, judged, alpha=alpha, gives=gives)
    title = f"Is it a copy of {pathlib.Path(held.owner).name}?"
    console.show(
        Report(title, console.command(), ownerships=(found,), environment=environment()),
        "json" if as_json else "table",
        folder=report,
    )
    verdicts = {one.verdict for one in found.verifications}
    if Verdict.SUSPECTED in verdicts or (fail_on_inconclusive and Verdict.INCONCLUSIVE in verdicts):
        raise typer.Exit(1)


@app.command()
@takes_models()
def matrix(
    owners: Annotated[list[str], typer.Argument(help="Owners; also the suspects where none are named.")],
    against: Annotated[
        list[str] | None, typer.Option(help="Suspect, or a pattern such as 'market/*'; repeatable.")
    ] = None,
    method: Method = "sac",
    assignments: Assignments = None,
    data: Data = None,
    trigger: Trigger = None,
    models: Models = NO_OPTIONS,
    seed: options.Seed = 0,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare every owner with every suspect."""
    import jax

    from jaxguard import ownership
    from jaxguard.environment import environment
    from jaxguard.types import Report

    mine = models.suspects(_files(owners))
    others = models.suspects(_files(against)) if against else mine
    with console.progress(f"matrix by {method}") as progress:
        found = ownership.matrix(
            mine,
            others,
            method,
            jax.random.key(seed),
            data=_images(data, trigger, seed),
            options=options.hyperparameters(assignments or []),
            progress=progress,
        )
    title = f"{len(found.owners)} owners, {len(found.suspects)} suspects"
    whole = Report(title, console.command(), matrices=(found,), environment=environment(seed=seed))
    console.show(whole, "json" if as_json else "table", folder=report)


def _images(spec: str | None, trigger: pathlib.Path | None, seed: int) -> Batch | None:
    """What probes are made of: test images, with the trigger where there is one."""
    found = options.dataset(spec, seed) if spec else None
    known = options.attack(None, trigger, None, found)
    if found is None or known is None:
        return found and found.test

    import jax.numpy as jnp

    return found.test._replace(images=known.stamp(jnp.asarray(found.test.images)))


def _files(patterns: list[str]) -> list[str]:
    """Paths as they are, patterns as the files they stand for.

    Raises:
        typer.BadParameter: a pattern that no file has.
    """
    found = []
    for pattern in patterns:
        matches = sorted(glob.glob(pattern)) if glob.has_magic(pattern) and not os.path.exists(pattern) else [pattern]
        if not matches:
            raise typer.BadParameter(f"expected files of this pattern, got none: {pattern}")
        found += matches
    return found


def _headers(lines: list[str]) -> dict[str, str]:
    """Parse `Name: value`.

    Raises:
        typer.BadParameter: no colon, or an environment variable that is not set; the value is not shown.
    """
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise typer.BadParameter("expected 'Name: value', got no colon", param_hint="--header")
        filled = os.path.expandvars(value.strip())
        if "$" in filled:
            raise typer.BadParameter(
                f"expected the environment variables of {name.strip()} to be set, got one that is not",
                param_hint="--header",
            )
        headers[name.strip()] = filled
    return headers
