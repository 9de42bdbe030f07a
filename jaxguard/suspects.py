"""A model to be audited: from a checkpoint and back, or from memory."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxguard import checkpoints, models
from jaxguard.errors import CheckpointError
from jaxguard.graph import ChannelGraph, channel_graph
from jaxguard.models import Model
from jaxguard.types import ApplyFn, TrainFn, Variables

METADATA_KEY = "jaxguard"
"""Metadata entry, JSON, from which a checkpoint's architecture is found again."""


@dataclass(frozen=True)
class Suspect:
    """A model to be audited.

    Attributes:
        name: path of its checkpoint, or any name.
        architecture: specification such as `resnet20`, or any name.
        variables: its parameters and statistics.
        apply_fn: the model in evaluation mode.
        train_fn: the model in training mode, or None where it is not known.
        graph: its channel graph.
        sha256: content hash of its checkpoint, empty for a model that came from no file.
        checkpoint: where it was read from, or None.
        model: bundled architecture, or None.
        layout: naming of the checkpoint's leaves, `flax` or `torch`.
    """

    name: str
    architecture: str
    variables: Variables
    apply_fn: ApplyFn
    train_fn: TrainFn | None
    graph: ChannelGraph
    sha256: str = ""
    checkpoint: checkpoints.Checkpoint | None = None
    model: Model | None = None
    layout: Any = "flax"


def wrap(
    variables: Variables, apply_fn: ApplyFn, images: Any, *, train_fn: TrainFn | None = None, name: str = "model"
) -> Suspect:
    """Audit any JAX model: Flax Linen or NNX, Equinox, or a bare function.

    Args:
        variables: pytree of arrays.
        apply_fn: `(variables, images) -> logits [B, K]`, in evaluation mode.
        images: example `[B, ...]`, array or `jax.ShapeDtypeStruct`.
        train_fn: `(variables, images) -> (logits, variables)`, needed by defenses that train.
        name: for reports.

    Returns:
        The suspect.

    Raises:
        GraphError: its channel graph cannot be derived.

    Example:
        >>> mlp = lambda v, x: jax.nn.relu(x @ v["w1"]) @ v["w2"]
        >>> v = {"w1": np.ones((4, 8), np.float32), "w2": np.ones((8, 2), np.float32)}
        >>> wrap(v, mlp, np.ones((1, 4), np.float32)).graph
        ChannelGraph(2 producers, 0 affines, 3 groups, 1 permutable)
    """
    return Suspect(name, name, variables, apply_fn, train_fn, channel_graph(apply_fn, variables, images))


def load(
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Suspect:
    """Open a checkpoint and bind it to its architecture; nothing in the file is executed.

    Args:
        path: a safetensors file or an Orbax directory.
        arch: specification such as `wideresnet-16-1` or `resnet20:width=0.5`; not needed for checkpoints that jaxguard
            wrote.
        input_shape: `(H, W, C)` of the images, 32x32 by default.
        mean: per channel, subtracted from images in [0, 1] before the network.
        std: per channel, what they are divided by.

    Returns:
        The suspect.

    Raises:
        CheckpointError: the file cannot be read, or its leaves do not fit the architecture.
        ArchitectureError: no such architecture.
        GraphError: its channel graph cannot be derived.
    """
    checkpoint = checkpoints.load(path)
    described = _described(checkpoint)
    spec = arch or described.get("architecture")
    if spec is None:
        known = ", ".join(models.ARCHITECTURES)
        raise CheckpointError(
            f"expected an architecture for {checkpoint.path}, got none: the file does not name one; "
            f"pass --arch with one of {known}"
        )
    leaves = checkpoint.read_all()
    model = models.infer(
        spec,
        leaves,
        input_shape=input_shape or _as_tuple(described.get("input_shape")),
        mean=mean or _as_tuple(described.get("mean")),
        std=std or _as_tuple(described.get("std")),
    )
    variables, layout = models.bind(model, leaves, source=str(checkpoint.path))
    return Suspect(
        name=str(path),
        architecture=model.spec,
        variables=variables,
        apply_fn=model.apply_fn,
        train_fn=model.train_fn,
        graph=_graph(model),
        sha256=checkpoint.sha256,
        checkpoint=checkpoint,
        model=model,
        layout=layout,
    )


def describes_architecture(checkpoint: checkpoints.Checkpoint) -> bool:
    """Whether a checkpoint names its architecture, as those that jaxguard wrote do."""
    return "architecture" in _described(checkpoint)


def require_writable(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse a path that `save` would refuse, before hours of work rather than after.

    Args:
        path: where a checkpoint is to be written.
        overwrite: whether an existing one may be replaced.

    Raises:
        CheckpointError: it exists, or its folder does not.
    """
    target = pathlib.Path(path)
    if target.exists() and not overwrite:
        raise CheckpointError(
            f"expected a new path to write to, got {target}, which exists; choose another or --overwrite"
        )
    if not target.absolute().parent.is_dir():
        raise CheckpointError(f"expected a folder to write into, got {target.parent}, which is none; create it first")


def _described(checkpoint: checkpoints.Checkpoint) -> dict[str, Any]:
    text = checkpoint.metadata.get(METADATA_KEY, "{}")
    try:
        description = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"expected JSON in the metadata entry '{METADATA_KEY}' of {checkpoint.path}, got {text[:60]!r}: {error}; "
            "pass --arch, --input, --mean and --std yourself after removing the entry"
        ) from error
    return description if isinstance(description, dict) else {}


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else None


@functools.lru_cache(maxsize=64)
def _graph(model: Model) -> ChannelGraph:
    """One graph, and so one set of compiled programs, for all checkpoints of an architecture."""
    images = jax.ShapeDtypeStruct((1, *model.input_shape), np.float32)
    return channel_graph(model.apply_fn, model.shapes(), images)


def description(model: Model) -> dict[str, str]:
    """Checkpoint metadata from which `load` finds the architecture again.

    Args:
        model: a bundled architecture.

    Returns:
        Metadata for `checkpoints.save`.
    """
    fields = {"architecture": model.spec, "input_shape": model.input_shape, "mean": model.mean, "std": model.std}
    return {METADATA_KEY: json.dumps(fields)}


def save(suspect: Suspect, path: str | os.PathLike[str], *, format: str | None = None, overwrite: bool = False) -> None:
    """Write a suspect's variables under the names, layout and format that its checkpoint had.

    Args:
        suspect: of `load`, or the result of `repair` on it.
        path: where to; the file appears whole or not at all.
        format: `safetensors` or `orbax`; that of the source by default.
        overwrite: whether an existing checkpoint may be replaced.

    Raises:
        CheckpointError: the path exists or cannot be written, or the suspect came from no checkpoint.
    """
    if suspect.model is None or suspect.checkpoint is None:
        raise CheckpointError(
            f"expected a suspect that was loaded from a checkpoint, got {suspect.name!r}, a model from memory; "
            "write it with jaxguard.checkpoints.save(path, checkpoints.flatten(variables))"
        )
    leaves = models.unbind(suspect.model, suspect.variables, suspect.layout)
    kept = {name: text for name, text in suspect.checkpoint.metadata.items() if name != METADATA_KEY}
    checkpoints.save(
        path,
        leaves,
        format=format or suspect.checkpoint.format,
        metadata={**kept, **description(suspect.model)},
        overwrite=overwrite,
    )
