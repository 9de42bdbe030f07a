"""A model to be audited: from a checkpoint and back, or from memory."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxguard import checkpoints, models
from jaxguard.errors import ArchitectureError, CheckpointError
from jaxguard.graph import ChannelGraph, channel_graph
from jaxguard.models import Model
from jaxguard.types import ApplyFn, TrainFn, Variables

METADATA_KEY = "jaxguard"
"""Metadata entry, JSON, from which a checkpoint's architecture is found again."""

UNKNOWN = "unknown"
"""Architecture of a suspect that is known by the names and shapes of its leaves alone."""

DEFAULT_SHAPE = (32, 32, 3)
"""Of the images a model of the user's own reads, where nothing is said."""


@dataclass(frozen=True)
class Suspect:
    """A model to be audited.

    Attributes:
        name: path of its checkpoint, or any name.
        architecture: specification such as `resnet20`, or any name; `unknown` where only names and shapes are known.
        variables: its parameters and statistics; a checkpoint's leaves by name where the architecture is unknown.
        apply_fn: the model in evaluation mode, or None where the architecture is unknown.
        train_fn: the model in training mode, or None where it is not known.
        graph: its channel graph, or None where the architecture is unknown; scans are then structural.
        sha256: content hash of its checkpoint, empty for a model that came from no file.
        checkpoint: where it was read from, or None.
        model: bundled architecture, or None.
        layout: naming of the checkpoint's leaves, such as `flax` or `torch`.
        names: leaf of the checkpoint -> path in the variables, for a model of the user's own.
        notes: what a reader of a report must know, in whole sentences.
    """

    name: str
    architecture: str
    variables: Variables
    apply_fn: ApplyFn | None
    train_fn: TrainFn | None
    graph: ChannelGraph | None
    sha256: str = ""
    checkpoint: checkpoints.Checkpoint | None = None
    model: Model | None = None
    layout: Any = "flax"
    names: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


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
        return _bound_to_function(checkpoint, apply_fn, init_fn, input_shape or DEFAULT_SHAPE)
    described = _described(checkpoint)
    chosen = {
        "input_shape": input_shape or _as_tuple(described.get("input_shape")),
        "mean": mean or _as_tuple(described.get("mean")),
        "std": std or _as_tuple(described.get("std")),
    }
    spec = arch or described.get("architecture")
    if spec is not None:
        model = models.infer(spec, checkpoint.leaves, **chosen)
    else:
        try:
            model = models.identify(checkpoint.leaves, **chosen).model
        except ArchitectureError as error:
            return structural(checkpoint, str(error))
    variables, layout = models.bind(model, checkpoint.read_all(), source=str(checkpoint.path))
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


def _bound_to_function(
    checkpoint: checkpoints.Checkpoint,
    apply_fn: ApplyFn,
    init_fn: Callable[[], Any] | None,
    input_shape: tuple[int, ...],
) -> Suspect:
    leaves = checkpoint.read_all()
    checkpoints.check_finite(leaves, checkpoint.path)
    if init_fn is None:
        variables, names = checkpoints.unflatten(leaves), {name: name for name in leaves}
    else:
        variables, names = _in_tree(leaves, jax.eval_shape(init_fn), checkpoint.path)
    variables = jax.device_put(variables)
    images = jax.ShapeDtypeStruct((1, *input_shape), np.float32)
    return Suspect(
        name=checkpoint.path,
        architecture=getattr(apply_fn, "__name__", "apply_fn"),
        variables=variables,
        apply_fn=apply_fn,
        train_fn=None,
        graph=channel_graph(apply_fn, variables, images),
        sha256=checkpoint.sha256,
        checkpoint=checkpoint,
        names=names,
    )


def _in_tree(leaves: Mapping[str, np.ndarray], tree: Any, source: str) -> tuple[Any, dict[str, str]]:
    """The tree filled with the leaves of its paths, torch's dots being as good as slashes."""
    wanted = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }
    names = {name: path for name in leaves if (path := name if name in wanted else name.replace(".", "/")) in wanted}
    by_path = {path: leaves[name] for name, path in names.items()}
    misfits = [f"leaf {path!r} {leaf.shape} is missing" for path, leaf in wanted.items() if path not in by_path]
    misfits += [
        f"leaf {path!r} is {by_path[path].shape}, init gives {leaf.shape}"
        for path, leaf in wanted.items()
        if path in by_path and by_path[path].shape != leaf.shape
    ]
    misfits += [f"leaf {name!r} is not part of what init gives" for name in leaves if name not in names]
    if misfits:
        listed = "; ".join(misfits[:4]) + (f"; and {len(misfits) - 4} more" if len(misfits) > 4 else "")
        raise CheckpointError(
            f"{source}: expected the {len(wanted)} leaves that init gives, found {len(leaves)}: {listed}; "
            "let init give the tree that was saved, or leave it out to get the leaves as they are"
        )
    filled = [by_path[path].astype(leaf.dtype) for path, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(tree), filled), names


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
    note = (
        "Structural: kernels and norms were told from the names and shapes of the leaves alone, since the architecture "
        f"is not known ({reason})."
    )
    return Suspect(
        name=checkpoint.path,
        architecture=UNKNOWN,
        variables=leaves,
        apply_fn=None,
        train_fn=None,
        graph=None,
        sha256=checkpoint.sha256,
        checkpoint=checkpoint,
        notes=(note,),
    )


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
    """Write a suspect's variables under the names, layout, dtypes and format that its checkpoint had.

    Leaves that are no part of the model, such as torch's `num_batches_tracked`, are carried over. A format that
    jaxguard only reads is replaced by safetensors.

    Args:
        suspect: of `load`, or the result of `repair` on it.
        path: where to; the file appears whole or not at all.
        format: a row of `jaxguard.checkpoints.FORMATS` that can be written; that of the source by default.
        overwrite: whether an existing checkpoint may be replaced.

    Raises:
        CheckpointError: the path exists or cannot be written, or the suspect came from no checkpoint.
    """
    checkpoint = suspect.checkpoint
    if checkpoint is None:
        raise CheckpointError(
            f"expected a suspect that was loaded from a checkpoint, got {suspect.name!r}, a model from memory; "
            "write it with jaxguard.checkpoints.save(path, checkpoints.flatten(variables))"
        )
    edited = _edited_leaves(suspect, checkpoint)
    leaves = {
        name: edited[name].astype(spec.dtype) if name in edited else checkpoint.read(name)
        for name, spec in checkpoint.leaves.items()
    }
    kept = {name: text for name, text in checkpoint.metadata.items() if name != METADATA_KEY}
    checkpoints.save(
        path,
        leaves,
        format=format or written_format(checkpoint),
        metadata=kept if suspect.model is None else {**kept, **description(suspect.model)},
        overwrite=overwrite,
    )


def written_format(checkpoint: checkpoints.Checkpoint) -> str:
    """The format in which a repaired copy of a checkpoint is written: its own, or safetensors."""
    return checkpoint.format if checkpoints.FORMATS[checkpoint.format].write_fn else "safetensors"


def _edited_leaves(suspect: Suspect, checkpoint: checkpoints.Checkpoint) -> dict[str, np.ndarray]:
    """The suspect's variables by the names of the checkpoint's leaves."""
    if suspect.model is None:
        flat = checkpoints.flatten(suspect.variables)
        return {name: flat[path] for name, path in suspect.names.items()}
    leaves = models.unbind(suspect.model, suspect.variables, suspect.layout)
    return {
        original: leaves[name] for name, original in models.original_names(suspect.model, checkpoint.leaves).items()
    }
