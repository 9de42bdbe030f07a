"""Options that several commands share, and what they mean."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

if TYPE_CHECKING:
    import numpy as np

    from jaxguard.attacks import Attack
    from jaxguard.graph.pairing import Pairing
    from jaxguard.suspects import ModelOptions, Suspect
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
Arch = Annotated[
    str | None,
    typer.Option(
        help="Architecture, such as wideresnet-16-1 or resnet20:width=0.5; by default inferred from the leaves."
    ),
]
Apply = Annotated[
    str | None, typer.Option(help="Your own model, MODULE:FUNCTION, called with (variables, images) for logits.")
]
Init = Annotated[
    str | None,
    typer.Option(help="MODULE:FUNCTION giving that model's variables, for their shapes; else as in the file."),
]
Input = Annotated[str | None, typer.Option("--input", help="Image shape HxWxC; by default inferred from the leaves.")]
Mean = Annotated[
    str | None, typer.Option(help="Subtracted from images in [0, 1]: 0.5, or one value per channel, 0.49,0.48,0.45.")
]
Std = Annotated[str | None, typer.Option(help="Then divides them: 0.5, or 0.25,0.24,0.26.")]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Which weights, where a file holds several: raw, ema, or the name of a group of arrays.",
        show_default="raw",
    ),
]
Models = Annotated[
    pathlib.Path | None,
    typer.Option(help="Manifest models.toml: architecture, function, normalisation and labels for each path."),
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
    pathlib.Path | None, typer.Option(help="A known trigger to measure: npz with `mask` and `pattern` in [0, 1].")
]
Target = Annotated[
    str | None,
    typer.Option(help="Class that the known trigger leads to, or `all`: each class to the next.", show_default="0"),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Report = Annotated[pathlib.Path | None, typer.Option(help="Folder for report.html and report.json.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Parse `0.49,0.48,0.45`.

    Raises:
        typer.BadParameter: not numbers.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected numbers separated by commas, got {text!r}", param_hint=option) from None


def shape(text: str | None) -> tuple[int, ...] | None:
    """Parse `32x32x3`, or `135` for vectors.

    Raises:
        typer.BadParameter: not positive integers.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"expected HEIGHTxWIDTHxCHANNELS, got {text!r}", param_hint="--input")
    return tuple(map(int, parts))


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


def model_options(
    arch: str | None,
    apply: str | None,
    init: str | None,
    input_: str | None,
    *,
    mean: str | None,
    std: str | None,
    weights: str | None,
) -> ModelOptions:
    """How checkpoints are opened, but for those that a manifest names.

    Raises:
        typer.BadParameter: options that contradict each other, or a function that cannot be imported.
        ArchitectureError: no such architecture.
    """
    input_shape = shape(input_)
    if apply is None and input_shape is not None and len(input_shape) != 3:
        raise typer.BadParameter(f"expected HEIGHTxWIDTHxCHANNELS, got {input_!r}", param_hint="--input")
    if apply is None and init is not None:
        raise typer.BadParameter("expected --apply with it, got none", param_hint="--init")
    if apply is not None and (arch or mean or std):
        raise typer.BadParameter(
            "expected it without --arch, --mean and --std: the function does all", param_hint="--apply"
        )
    means, stds = numbers(mean, "--mean"), numbers(std, "--std")

    from jaxguard.suspects import ModelOptions

    functions = function(apply, "--apply"), function(init, "--init")
    return ModelOptions(arch, input_shape, means, stds, *functions, weights=weights)


def function(spec: str | None, option: str) -> Callable[..., Any] | None:
    """Import `module:function`, also from the current folder: the user's own code, which the user names.

    Raises:
        typer.BadParameter: no such module or function.
    """
    if spec is None:
        return None

    from jaxguard.errors import ArchitectureError
    from jaxguard.suspects import manifest

    try:
        return manifest.function(spec)
    except ArchitectureError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def manifests(models: pathlib.Path | None) -> list[str]:
    """Targets of `--models`, whose options go before those of the command line."""
    return [] if models is None else [str(models)]


def openings(paths: list[str], given: ModelOptions, models: pathlib.Path | None) -> list[tuple[str, ModelOptions]]:
    """Paths and how each is opened: as a manifest says of it, else as the command line does.

    Raises:
        CheckpointError: a manifest cannot be read.
    """
    from jaxguard.suspects import manifest

    known = {} if models is None else dict(manifest.read(models))
    found = []
    for path in paths:
        if path.lower().endswith(manifest.SUFFIX):
            found += manifest.read(path)
        else:
            found.append((path, known.get(os.path.normpath(path), given)))
    return found


def opening(path: str, given: ModelOptions, models: pathlib.Path | None) -> tuple[str, ModelOptions]:
    """The one model that a command is about, see `openings`.

    Raises:
        typer.BadParameter: a manifest that names several.
    """
    found = openings([path], given, models)
    if len(found) != 1:
        raise typer.BadParameter(f"expected one model, got the {len(found)} of {path}; pass --models {path} and a path")
    return found[0]


def suspects(paths: list[str], given: ModelOptions, models: pathlib.Path | None) -> list[Suspect]:
    """Open several checkpoints.

    Raises:
        CheckpointError: one cannot be opened.
    """
    return [one.load(path) for path, one in openings(paths, given, models)]


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


def clean_images(data: str | None, seed: int) -> np.ndarray | None:
    """The defender's clean images of a data set."""
    import numpy as np

    return None if data is None else np.asarray(dataset(data, seed).clean.images)


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
    from jaxguard.attacks import ATTACKS, patch

    if target is not None and target != "all" and not re.fullmatch(r"\d{1,6}", target, re.ASCII):
        raise typer.BadParameter(f"expected a class from 0 on, or all, got {target!r}", param_hint="--target")
    leads_to = None if target == "all" else int(target or 0)
    if trigger is not None:
        return patch(*data.load_trigger(trigger), target=leads_to, num_classes=found.num_classes)
    return methods.find(ATTACKS, name or "", "attack")(target=leads_to, num_classes=found.num_classes)
