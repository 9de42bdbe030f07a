"""Several models in one file, each with options of its own: `models.toml`.

[[model]]
path = "resnet20.safetensors"     # relative to the manifest; or a URL
arch = "resnet20"
mean = 0.5                        # one value for all channels, or one per channel
std = [0.25, 0.24, 0.26]

[[model]]
path = "own.safetensors"
apply = "own_model:apply"         # MODULE:FUNCTION, imported
init = "own_model:init"
input = [32, 32, 3]
outputs = "classes"               # or "sequence", "regression", "embedding"
weights = "ema"                   # or "raw", or the name of a group of arrays in the file
labels = [3, 5, 8]                # class of the data set that each logit stands for
"""

from __future__ import annotations

import importlib
import operator
import os
import pathlib
import sys
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

from jaxguard import checkpoints
from jaxguard.errors import ArchitectureError, CheckpointError
from jaxguard.suspects.opening import ModelOptions

SUFFIX = ".toml"
KEYS = ("path", "arch", "apply", "init", "input", "mean", "std", "labels", "outputs", "weights")


def read(path: str | os.PathLike[str]) -> list[tuple[str, ModelOptions]]:
    """Reads a manifest.

    Args:
        path: of a TOML file.

    Returns:
        Path or URL of each model, and how it is opened.

    Raises:
        CheckpointError: the file cannot be read, is no TOML, or an entry makes no sense.
        ArchitectureError: an entry names an architecture or a function that does not exist.
    """
    try:
        parsed = tomllib.loads(checkpoints.text_of(path))
    except tomllib.TOMLDecodeError as error:
        raise CheckpointError(f"{path}: expected a manifest of models in TOML, got {error}; correct it") from error
    entries = parsed.get("model")
    if set(parsed) != {"model"} or not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise CheckpointError(f"{path}: expected [[model]] entries, got {sorted(parsed)}; start each model with one")
    return [_entry(one, pathlib.Path(path), number) for number, one in enumerate(entries, 1)]


def _entry(entry: Mapping[str, Any], manifest: pathlib.Path, number: int) -> tuple[str, ModelOptions]:
    place = f"{manifest}: model {number}"
    if unknown := sorted(entry.keys() - set(KEYS)):
        raise CheckpointError(f"{place}: expected keys among {', '.join(KEYS)}, got {unknown[0]!r}; correct it")
    target = entry.get("path")
    if not isinstance(target, str):
        raise CheckpointError(f"{place}: expected a path, got {target!r}; name the checkpoint")
    if not isinstance(entry.get("weights", ""), str):
        raise CheckpointError(f"{place}: expected the name of weights, got {entry['weights']!r}; raw, ema or a name")
    if not checkpoints.is_url(target):
        target = os.path.normpath(manifest.parent / target)
    try:
        options = ModelOptions(
            arch=entry.get("arch"),
            input_shape=_numbers(entry.get("input"), int),
            mean=_numbers(entry.get("mean"), float),
            std=_numbers(entry.get("std"), float),
            apply_fn=function(entry.get("apply"), manifest.parent),
            init_fn=function(entry.get("init"), manifest.parent),
            labels=_numbers(entry.get("labels"), int),
            outputs=entry.get("outputs"),
            weights=entry.get("weights"),
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{place}: expected numbers for input, mean, std and labels, got {error}") from error
    except ArchitectureError as error:
        raise ArchitectureError(f"{place}: {error}") from error
    return target, options


def _numbers(value: Any, kind: Callable[[Any], Any]) -> tuple[Any, ...] | None:
    if value is None:
        return None
    return tuple(map(kind, value if isinstance(value, list) else [value]))


def function(spec: str | None, folder: str | os.PathLike[str] = "") -> Callable[..., Any] | None:
    """Imports `module:function`, also from a folder: the user's own code, which the user names.

    Raises:
        ArchitectureError: no such module or function.
    """
    if spec is None:
        return None
    module, _, name = spec.partition(":")
    if not module or not name:
        raise ArchitectureError(f"expected MODULE:FUNCTION, got {spec!r}; name a function of a module")
    for place in {"", os.fspath(folder)} - set(sys.path):
        sys.path.insert(0, place)
    try:
        found = operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ArchitectureError(
            f"expected MODULE:FUNCTION that can be imported, got {spec!r}: {error}; run it where the module lies"
        ) from error
    if not callable(found):
        raise ArchitectureError(f"expected a function, got {spec} = {found!r}; name a function")
    return found
