"""Options that several commands share, and what they mean."""

from __future__ import annotations

import importlib
import operator
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

if TYPE_CHECKING:
    from jaxguard.attacks import Attack
    from jaxguard.fleet.scoring import Settings
    from jaxguard.graph.pairing import Pairing
    from jaxguard.suspects import Suspect
    from jaxguard.types import Dataset

Checkpoint = Annotated[
    str,
    typer.Argument(
        help="File, folder or URL of a checkpoint; its format is told from its content.", show_default=False
    ),
]
Checkpoints = Annotated[
    list[str],
    typer.Argument(
        help="Checkpoints, folders of them, patterns such as 'store/**/*.safetensors', manifests (.txt), URLs. Of what "
        "is downloaded, to ~/.cache/jaxguard, the latest 16 GiB are kept; JAXGUARD_CACHE_BYTES changes that.",
        show_default=False,
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(help="Architecture, such as wideresnet-16-1 or resnet20:width=0.5; told from the leaves otherwise."),
]
Apply = Annotated[
    str | None, typer.Option(help="Your own model, MODULE:FUNCTION, called with (variables, images) for logits.")
]
Init = Annotated[
    str | None,
    typer.Option(help="MODULE:FUNCTION giving that model's variables, for their shapes; else as in the file."),
]
Input = Annotated[str | None, typer.Option("--input", help="Image shape HxWxC; by default what the leaves tell.")]
Mean = Annotated[str | None, typer.Option(help="Per channel, subtracted from images in [0, 1]: 0.49,0.48,0.45.")]
Std = Annotated[str | None, typer.Option(help="Per channel, what they are divided by: 0.25,0.24,0.26.")]
Data = Annotated[
    str | None, typer.Option(help="digits, tfds:NAME or npz:PATH; its test split is measured on.", show_default=False)
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


def function(spec: str | None, option: str) -> Callable[..., Any] | None:
    """Import `module:function`, also from the current folder: the user's own code, which the user names.

    Raises:
        typer.BadParameter: no such module or function.
    """
    if spec is None:
        return None
    module, _, name = spec.partition(":")
    if not module or not name:
        raise typer.BadParameter(f"expected MODULE:FUNCTION, got {spec!r}", param_hint=option)
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise typer.BadParameter(
            f"expected MODULE:FUNCTION that can be imported, got {spec!r}: {error}", param_hint=option
        ) from error
    if not callable(found):
        raise typer.BadParameter(f"expected a function, got {spec} = {found!r}", param_hint=option)
    return found


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


def suspect(
    path: str,
    arch: str | None,
    input_: str | None,
    *,
    mean: str | None = None,
    std: str | None = None,
    apply: str | None,
    init: str | None,
) -> Suspect:
    """Open the checkpoint a command is about.

    Raises:
        typer.BadParameter: options that contradict each other.
    """
    from jaxguard import suspects

    input_shape = shape(input_)
    if apply is None and input_shape is not None and len(input_shape) != 3:
        raise typer.BadParameter(f"expected HEIGHTxWIDTHxCHANNELS, got {input_!r}", param_hint="--input")
    if apply is None and init is not None:
        raise typer.BadParameter("expected --apply with it, got none", param_hint="--init")
    if apply is not None and (arch or mean or std):
        raise typer.BadParameter(
            "expected it without --arch, --mean and --std: the function does all", param_hint="--apply"
        )
    return suspects.load(
        path,
        arch=arch,
        input_shape=input_shape,
        mean=numbers(mean, "--mean"),
        std=numbers(std, "--std"),
        apply_fn=function(apply, "--apply"),
        init_fn=function(init, "--init"),
    )


def fleet_settings(arch: str | None, input_: str | None, pairing: str) -> Settings:
    """How the checkpoints of a fleet are scored.

    Raises:
        typer.BadParameter: no such pairing, or no shape of an image.
    """
    from jaxguard.fleet.scoring import Settings

    input_shape = shape(input_)
    if input_shape is not None and len(input_shape) != 3:
        raise typer.BadParameter(f"expected HEIGHTxWIDTHxCHANNELS, got {input_!r}", param_hint="--input")
    return Settings(arch, input_shape, checked_pairing(pairing))


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


def attack(name: str | None, trigger: pathlib.Path | None, target: int, found: Dataset | None) -> Attack | None:
    """The known attack a command measures, if any.

    Raises:
        typer.BadParameter: two attacks, an unknown one, or one without data to measure it on.
    """
    from jaxguard import data, methods
    from jaxguard.attacks import ATTACKS, patch

    if name is not None and trigger is not None:
        raise typer.BadParameter("expected --attack or --trigger, got both")
    if (name or trigger) and found is None:
        raise typer.BadParameter("expected --data to measure the trigger on, got none", param_hint="--data")
    if trigger is not None:
        return patch(*data.load_trigger(trigger), target=target)
    if name is None:
        return None
    return methods.find(ATTACKS, name, "attack")(target=target)
