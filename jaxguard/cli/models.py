"""How models are opened and computed: the options that every command takes, declared once."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

import jaxguard
from jaxguard.cli import console

if TYPE_CHECKING:
    from jaxguard.suspects import ModelOptions, Suspect
    from jaxguard.types import Outputs as Kind

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
Outputs = Annotated[
    str | None,
    typer.Option(help="What --apply returns: classes, sequence, regression or embedding; by default by its axes."),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Which weights, where a file holds several: raw, ema, or the name of a group of arrays.",
        show_default="raw",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="How exactly convolutions and products are computed: highest, default (the machine's fastest), or "
        "bfloat16 (as a TPU does by default, emulated elsewhere). Profiles and certificates name theirs.",
        show_default="highest; as JAX is configured where networks are trained",
    ),
]
Manifest = Annotated[
    pathlib.Path | None,
    typer.Option(
        "--models", help="Manifest models.toml: architecture, function, normalisation and labels for each path."
    ),
]


@dataclass(frozen=True)
class Models:
    """What the command line says of the models of a command; each field is an option."""

    arch: Arch = None
    apply: Apply = None
    init: Init = None
    input_: Input = None
    mean: Mean = None
    std: Std = None
    outputs: Outputs = None
    weights: Weights = None
    manifest: Manifest = None

    @functools.cached_property
    def options(self) -> ModelOptions:
        """How checkpoints are opened, but for those that a manifest names.

        Raises:
            typer.BadParameter: options that contradict each other, or a function that cannot be imported.
            ArchitectureError: no such architecture.
        """
        input_shape = _shape(self.input_)
        if self.apply is None and input_shape is not None and len(input_shape) != 3:
            raise typer.BadParameter(f"expected HEIGHTxWIDTHxCHANNELS, got {self.input_!r}", param_hint="--input")
        if self.apply is None and self.init is not None:
            raise typer.BadParameter("expected --apply with it, got none", param_hint="--init")
        if self.apply is None and self.outputs is not None:
            raise typer.BadParameter("expected --apply with it, got none", param_hint="--outputs")
        if self.apply is not None and (self.arch or self.mean or self.std):
            raise typer.BadParameter(
                "expected it without --arch, --mean and --std: the function does all", param_hint="--apply"
            )
        means, stds = _numbers(self.mean, "--mean"), _numbers(self.std, "--std")

        from jaxguard.suspects import ModelOptions

        functions = _function(self.apply, "--apply"), _function(self.init, "--init")
        outputs = _declared(self.outputs)
        return ModelOptions(self.arch, input_shape, means, stds, *functions, outputs=outputs, weights=self.weights)

    @property
    def targets(self) -> list[str]:
        """The manifest, whose options go before those of the command line."""
        return [] if self.manifest is None else [str(self.manifest)]

    def openings(self, paths: list[str]) -> list[tuple[str, ModelOptions]]:
        """Paths and how each is opened: as a manifest says of it, else as the command line does.

        Raises:
            CheckpointError: a manifest cannot be read.
        """
        from jaxguard.suspects import manifest

        given, known = self.options, {} if self.manifest is None else dict(manifest.read(self.manifest))
        found = []
        for path in paths:
            if path.lower().endswith(manifest.SUFFIX):
                found += manifest.read(path)
            else:
                found.append((path, known.get(os.path.normpath(path), given)))
        return found

    def opening(self, path: str) -> tuple[str, ModelOptions]:
        """The one model that a command is about, see `openings`.

        Raises:
            typer.BadParameter: a manifest that names several.
        """
        found = self.openings([path])
        if len(found) != 1:
            raise typer.BadParameter(
                f"expected one model, got the {len(found)} of {path}; pass --models {path} and a path"
            )
        return found[0]

    def suspects(self, paths: list[str]) -> list[Suspect]:
        """Open several checkpoints.

        Raises:
            CheckpointError: one cannot be opened.
        """
        return [opened(path, one) for path, one in self.openings(paths)]


def opened(path: str, opening: ModelOptions) -> Suspect:
    """Open a checkpoint, and say what of it was left aside."""
    suspect = opening.load(path)
    for note in () if suspect.checkpoint is None else suspect.checkpoint.notes:
        console.say(f"{path}: {note}")
    return suspect


NO_OPTIONS = Models()


def takes_models(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a command: its parameter `models` becomes the options of `Models`, and `--precision` holds around it.

    Args:
        without: options that the command has no use for.
    """
    hints = get_type_hints(Models, include_extras=True)
    fields = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in (hints | {"precision": Precision}).items()
        if name not in without
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for parameter in own.parameters.values():
            is_models = parameter.name == "models"
            parameters += fields if is_models else [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]

        @functools.wraps(command)
        def call(**given: Any) -> None:
            chosen = {field.name: given.pop(field.name) for field in fields}
            with _in(chosen.pop("precision", None)):
                command(**given, models=Models(**chosen))

        # What typer reads: the parameters that the command line has.
        vars(call)["__signature__"] = own.replace(parameters=parameters)
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call

    return decorate


def _in(precision: Any) -> contextlib.AbstractContextManager[None]:
    """The setting of the command line, if any; JAX is not imported for none."""
    return contextlib.nullcontext() if precision is None else jaxguard.precision(precision)


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
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


def _shape(text: str | None) -> tuple[int, ...] | None:
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


def _declared(outputs: str | None) -> Kind | None:
    """What a model is said to return.

    Raises:
        typer.BadParameter: nothing that is known.
    """
    from jaxguard.types.network import Outputs as Kind

    for known in get_args(Kind):
        if outputs == known:
            return known
    if outputs is not None:
        kinds = ", ".join(get_args(Kind))
        raise typer.BadParameter(f"expected one of {kinds}, got {outputs!r}", param_hint="--outputs")
    return None


def _function(spec: str | None, option: str) -> Callable[..., Any] | None:
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
