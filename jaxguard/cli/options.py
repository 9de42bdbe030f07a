"""Options that several commands share, and what they mean."""

from __future__ import annotations

import pathlib
import re
from typing import TYPE_CHECKING, Annotated, get_args

import typer

if TYPE_CHECKING:
    from jaxguard.attacks import Attack
    from jaxguard.graph.pairing import Pairing
    from jaxguard.types import Dataset

Checkpoint = Annotated[
    str,
    typer.Argument(
        help="File, folder or URL of a checkpoint; its format is recognised by its content.", show_default=False
    ),
]
Checkpoints = Annotated[
    list[str],
    typer.Argument(
        help="Checkpoints, folders of them, patterns such as 'store/**/*.safetensors', manifests of paths (.txt) or of "
        "models with options of their own (.toml), URLs. Downloads go to ~/.cache/jaxguard, "
        "where the latest 16 GiB are kept; JAXGUARD_CACHE_BYTES changes that.",
        show_default=False,
    ),
]
Pairs = Annotated[str, typer.Option("--pairing", help="dataflow, or module_order as in the reference code.")]
Data = Annotated[
    str | None,
    typer.Option(help="digits, tfds:NAME or npz:PATH; figures are measured on its test split.", show_default=False),
]
Method = Annotated[str, typer.Option(help="A defense; `jaxguard methods` lists them with what each needs.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Option NAME=VALUE of the method, repeatable; see `jaxguard methods`.", show_default=False
    ),
]
Mixed = Annotated[
    pathlib.Path | None,
    typer.Option(help="Training images, some perhaps poisoned: npz with `images`.", show_default=False),
]
AttackName = Annotated[str | None, typer.Option("--attack", help="A known attack to measure; see `jaxguard methods`.")]
Trigger = Annotated[
    pathlib.Path | None,
    typer.Option(help="A known trigger to measure: npz with `mask` and `pattern` in [0, 1], or of --save-trigger."),
]
Target = Annotated[
    str | None,
    typer.Option(
        help="Class that the known trigger leads to, or `all`: each class to the next.",
        show_default="what --save-trigger stored, else 0",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Report = Annotated[pathlib.Path | None, typer.Option(help="Folder for report.html and report.json.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def hyperparameters(assignments: list[str]) -> dict[str, str]:
    """Parse `["u=2", "pairing=module_order"]` into names and texts, which the method's row converts and checks.

    Raises:
        typer.BadParameter: no `=`.
    """
    options: dict[str, str] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise typer.BadParameter(f"expected NAME=VALUE, got {assignment!r}", param_hint="--set")
        options[name.strip().replace("-", "_")] = text
    return options


def output_format(format_: str | None, *, as_json: bool, output: pathlib.Path | None) -> str:
    """The one format that the options ask for.

    Raises:
        typer.BadParameter: an unknown one, two, or a binary one for standard output.
    """
    from jaxguard.report import files

    if as_json and format_ not in (None, "json"):
        raise typer.BadParameter(f"expected --json or --format {format_}, got both", param_hint="--json")
    chosen = format_ or ("json" if as_json else "table")
    if chosen not in files.FORMATS:
        raise typer.BadParameter(f"expected one of {', '.join(files.FORMATS)}, got {chosen!r}", param_hint="--format")
    if chosen in files.BINARY and output is None:
        raise typer.BadParameter(f"expected --output FILE with --format {chosen}", param_hint="--format")
    return chosen


def part(shard: str) -> tuple[int, int]:
    """Parse `0/4`.

    Raises:
        typer.BadParameter: that is no part.
    """
    index, slash, count = shard.partition("/")
    if not slash or not index.isdecimal() or not count.isdecimal() or not int(index) < int(count):
        raise typer.BadParameter(
            f"expected i/n with 0 <= i < n, got {shard!r}; the first of four is 0/4", param_hint="--shard"
        )
    return int(index), int(count)


def size(text: str | None) -> int:
    """Parse `512MB`, `2GiB`, `1073741824`.

    Raises:
        typer.BadParameter: that is no size.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([kmgt]?)(i?)b?", (text or "768MiB").strip().lower())
    if match is None or not float(match[1]):
        raise typer.BadParameter(f"expected a size such as 512MB or 2GiB, got {text!r}", param_hint="--memory")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " kmgt".index(match[2] or " "))


def duration(text: str | None) -> float | None:
    """Parse `60s`, `5m`, `1.5h`, `90`; seconds.

    Raises:
        typer.BadParameter: that is no time.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    if match is None or not float(match[1]):
        raise typer.BadParameter(
            f"expected a time above 0 such as 60s or 5m, got {text!r}; --quick leaves the search out",
            param_hint="--budget",
        )
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def checked_pairing(pairing: str) -> Pairing:
    """Raises typer.BadParameter where there is no such pairing."""
    from jaxguard.graph.pairing import Pairing

    for known in get_args(Pairing):
        if pairing == known:
            return known
    raise typer.BadParameter(f"expected dataflow or module_order, got {pairing!r}", param_hint="--pairing")


def dataset(spec: str, seed: int, clean: float = 0.05, clean_per_class: int | None = None) -> Dataset:
    """Load the data a command measures on."""
    from jaxguard import data

    return data.load(spec, seed=seed, clean=clean, clean_per_class=clean_per_class)


def attack(name: str | None, trigger: pathlib.Path | None, target: str | None, found: Dataset | None) -> Attack | None:
    """The known attack a command measures, if any.

    Raises:
        typer.BadParameter: two attacks, an unknown one, one without data to measure it on, or a target that is no
            class.
    """
    if name is not None and trigger is not None:
        raise typer.BadParameter("expected --attack or --trigger, got both")
    if name is None and trigger is None:
        if target is not None:
            raise typer.BadParameter("expected --attack or --trigger with it, got none", param_hint="--target")
        return None
    if found is None:
        raise typer.BadParameter("expected --data to measure the trigger on, got none", param_hint="--data")

    from jaxguard import data, methods
    from jaxguard.attacks import ATTACKS, known
    from jaxguard.attacks.known import STORED

    if target is not None and target != "all" and not re.fullmatch(r"\d{1,6}", target, re.ASCII):
        raise typer.BadParameter(f"expected a class from 0 on, or all, got {target!r}", param_hint="--target")
    leads_to = None if target == "all" else int(target or 0)
    if trigger is not None:
        held = data.load_trigger(trigger)
        is_stored = target is None and held.labels is not None
        return known(held, target=STORED if is_stored else leads_to, num_classes=found.num_classes)
    return methods.find(ATTACKS, name or "", "attack")(target=leads_to, num_classes=found.num_classes)
