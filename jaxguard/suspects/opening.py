"""From a file to a suspect."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxguard import checkpoints, models
from jaxguard.errors import ArchitectureError
from jaxguard.graph import ChannelGraph, channel_graph
from jaxguard.models import Model
from jaxguard.suspects import own_model
from jaxguard.suspects.description import described as described_by
from jaxguard.suspects.suspect import UNKNOWN, Suspect
from jaxguard.types import ApplyFn


def load(
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    apply_fn: ApplyFn | None = None,
    init_fn: Callable[[], Any] | None = None,
) -> Suspect:
    """Open a checkpoint and bind it to its architecture; nothing in the file is executed.

    The architecture is, in this order, the caller's own function, the one named by `arch`, the one that the file names,
    or the one whose leaves have the names and shapes of the file's. A file that none fits is still opened, for a
    structural scan.

    Args:
        path: a checkpoint of any format in `jaxguard.checkpoints.FORMATS`.
        arch: specification such as `wideresnet-16-1` or `resnet20:width=0.5`.
        input_shape: of one image, `(H, W, C)` for bundled architectures; by default what the leaves or the
            architecture tell.
        mean: per channel, subtracted from images in [0, 1] before the network.
        std: per channel, what they are divided by.
        apply_fn: the caller's own model, `(variables, images) -> logits`, in evaluation mode.
        init_fn: `() -> variables` of that model, called for shapes alone; without it `apply_fn` gets the leaves
            in dictionaries nested at `/`, so that torch's dotted names are keys.

    Returns:
        The suspect.

    Raises:
        CheckpointError: the file cannot be read, or its leaves do not fit the architecture.
        ArchitectureError: no such architecture.
        GraphError: its channel graph cannot be derived.
    """
    checkpoint = checkpoints.load(path)
    if apply_fn is not None:
        return own_model.bind_function(checkpoint, apply_fn, init_fn, input_shape)
    described = described_by(checkpoint)
    chosen = {
        "input_shape": input_shape or _as_tuple(described.get("input_shape")),
        "mean": mean or _as_tuple(described.get("mean")),
        "std": std or _as_tuple(described.get("std")),
    }
    spec, notes = arch or described.get("architecture"), ()
    if spec is not None:
        model = models.infer(spec, checkpoint.leaves, **chosen)
    else:
        try:
            model = models.identify(checkpoint.leaves, **chosen).model
        except ArchitectureError as error:
            return structural(checkpoint, str(error))
        notes = tuple(f"{guess} Pass --arch where that is not so." for guess in model.module.guesses)
    variables, layout = models.bind(model, checkpoint.read_all(), source=str(checkpoint.path))
    return Suspect(
        name=str(path),
        architecture=model.spec,
        variables=variables,
        apply_fn=model.apply_fn,
        train_fn=model.train_fn,
        graph=graph_of(model),
        sha256=checkpoint.sha256,
        checkpoint=checkpoint,
        model=model,
        layout=layout,
        notes=notes,
    )


def structural(checkpoint: checkpoints.Checkpoint, reason: str = "nobody asked") -> Suspect:
    """A suspect of whose network nothing is known but its leaves' names and shapes; it can be scanned, but not run.

    Args:
        checkpoint: opened.
        reason: why that is so, for the report.

    Returns:
        The suspect.

    Raises:
        CheckpointError: a leaf cannot be read, or is not finite.
    """
    leaves = checkpoint.read_all()
    checkpoints.check_finite(leaves, checkpoint.path)
    return Suspect(
        name=checkpoint.path,
        architecture=UNKNOWN,
        variables=leaves,
        apply_fn=None,
        train_fn=None,
        graph=None,
        sha256=checkpoint.sha256,
        checkpoint=checkpoint,
        notes=(structural_note(reason),),
    )


def structural_note(reason: str) -> str:
    """What a report must say of a scan without an architecture."""
    return (
        "Structural: kernels and norms were told from the names and shapes of the leaves alone, since the architecture "
        f"is not known ({reason})."
    )


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else None


@functools.lru_cache(maxsize=64)
def graph_of(model: Model) -> ChannelGraph:
    """One graph, and so one set of compiled programs, for all checkpoints of an architecture."""
    images = jax.ShapeDtypeStruct((1, *model.input_shape), np.float32)
    return channel_graph(model.apply_fn, model.shapes(), images)
