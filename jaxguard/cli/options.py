"""Options that several commands share, and what they mean."""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from jaxguard.attacks import Attack
    from jaxguard.suspects import Suspect
    from jaxguard.types import Dataset

Checkpoint = Annotated[str, typer.Argument(help="A safetensors file or an Orbax directory.", show_default=False)]
Arch = Annotated[
    str | None,
    typer.Option(help="Architecture, such as wideresnet-16-1 or resnet20:width=0.5; jaxguard's own files name it."),
]
Input = Annotated[str | None, typer.Option("--input", help="Image shape HxWxC; 32x32 with the file's channels.")]
Mean = Annotated[str | None, typer.Option(help="Per channel, subtracted from images in [0, 1]: 0.49,0.48,0.45.")]
Std = Annotated[str | None, typer.Option(help="Per channel, what they are divided by: 0.25,0.24,0.26.")]
Data = Annotated[
    str | None, typer.Option(help="digits, tfds:NAME or npz:PATH; its test split is measured on.", show_default=False)
]
AttackName = Annotated[str | None, typer.Option("--attack", help="A known attack to measure: badnets, blended.")]
Trigger = Annotated[
    pathlib.Path | None, typer.Option(help="A known trigger to measure: npz with `mask` and `pattern` in [0, 1].")
]
Target = Annotated[int, typer.Option(help="Class that the known trigger leads to.")]
Seed = Annotated[int, typer.Option(help="For everything random.")]
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


def shape(text: str | None) -> tuple[int, int, int] | None:
    """Parse `32x32x3`.

    Raises:
        typer.BadParameter: not three positive integers.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"expected HEIGHTxWIDTHxCHANNELS, got {text!r}", param_hint="--input")
    height, width, channels = map(int, parts)
    return height, width, channels


def hyperparameters(assignments: list[str]) -> dict[str, Any]:
    """Parse `["u=2", "pairing=module_order"]`; values are JSON where they can be, else strings.

    Raises:
        typer.BadParameter: no `=`.
    """
    options: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise typer.BadParameter(f"expected NAME=VALUE, got {assignment!r}", param_hint="--set")
        options[name.strip().replace("-", "_")] = _value(text)
    if "augment" in options:
        options["augment"] = _augmentation(options["augment"])
    return options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _augmentation(name: Any) -> Any:
    from jaxguard.training import AUGMENTATIONS

    if name not in AUGMENTATIONS:
        raise typer.BadParameter(
            f"expected augment to be one of {', '.join(AUGMENTATIONS)}, got {name!r}", param_hint="--set"
        )
    return AUGMENTATIONS[name]


def suspect(path: str, arch: str | None, input_: str | None, mean: str | None, std: str | None) -> Suspect:
    """Open the checkpoint a command is about."""
    from jaxguard import suspects

    return suspects.load(
        path, arch=arch, input_shape=shape(input_), mean=numbers(mean, "--mean"), std=numbers(std, "--std")
    )


def dataset(spec: str, seed: int, clean: float = 0.05, clean_per_class: int | None = None) -> Dataset:
    """Load the data a command measures on."""
    from jaxguard import data

    return data.load(spec, seed=seed, clean=clean, clean_per_class=clean_per_class)


def attack(name: str | None, trigger: pathlib.Path | None, target: int, found: Dataset | None) -> Attack | None:
    """The known attack a command measures, if any.

    Raises:
        typer.BadParameter: two attacks, an unknown one, or one without data to measure it on.
    """
    from jaxguard import data
    from jaxguard.attacks import ATTACKS, patch

    if name is not None and trigger is not None:
        raise typer.BadParameter("expected --attack or --trigger, got both")
    if (name or trigger) and found is None:
        raise typer.BadParameter("expected --data to measure the trigger on, got none", param_hint="--data")
    if trigger is not None:
        return patch(*data.load_trigger(trigger), target=target)
    if name is None:
        return None
    if name not in ATTACKS:
        raise typer.BadParameter(f"expected one of {', '.join(ATTACKS)}, got {name!r}", param_hint="--attack")
    return ATTACKS[name](target=target)
