"""From a file or a network to a suspect, and what a user says of it: architecture, function, normalisation, classes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from jaxguard import checkpoints, models
from jaxguard.checkpoints import left_out
from jaxguard.errors import ArchitectureError, DataError
from jaxguard.models import architecture
from jaxguard.suspects import own_model
from jaxguard.suspects.suspect import Suspect
from jaxguard.suspects.suspect import described as described_by
from jaxguard.types import ApplyFn, Batch, Network
from jaxguard.types.network import Outputs


def load(
    source: str | os.PathLike[str] | Network,
    *,
    name: str | None = None,
    arch: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    apply_fn: ApplyFn | None = None,
    init_fn: Callable[[], Any] | None = None,
    outputs: Outputs | None = None,
    weights: str | None = None,
) -> Suspect:
    """Open a checkpoint and bind it to its architecture; nothing in the file is executed.

    The architecture is, in this order, the caller's own function, the one named by `arch`, the one that the file names,
    or the one whose leaves have the file's names and shapes. A file that fits none is opened all the same, for a
    structural scan.

    Args:
        source: a checkpoint of any format in `jaxguard.checkpoints.FORMATS`; or a network, which needs no opening.
        name: for reports; the path by default.
        arch: specification such as `wideresnet-16-1` or `resnet20:width=0.5`.
        input_shape: of one image, `(H, W, C)` for bundled architectures; inferred by default.
        mean: per channel, subtracted from images in [0, 1] before the network.
        std: per channel, what they are divided by.
        apply_fn: the caller's own model, `(variables, images) -> logits`, in evaluation mode.
        init_fn: `() -> variables` of that model, traced for its shapes only; without it `apply_fn` gets the leaves
            in dictionaries nested at `/`, so that torch's dotted names are keys.
        outputs: what `apply_fn` returns, see `jaxguard.types.Network`.
        weights: `raw`, `ema`, or the name of a group of arrays, where a file holds several; raw by default.

    Returns:
        The suspect.

    Raises:
        CheckpointError: the file cannot be read, or its leaves do not fit the architecture.
        ArchitectureError: no such architecture, or one is given for a network.

    Example:
        >>> import jax, numpy as np
        >>> mlp = lambda v, x: jax.nn.relu(x @ v["w1"]) @ v["w2"]
        >>> v = {"w1": np.ones((4, 8), np.float32), "w2": np.ones((8, 2), np.float32)}
        >>> load(Network(v, mlp, (4,)), name="mine").network.graph
        ChannelGraph(2 producers, 0 affines, 3 groups, 1 permutable)
    """
    if isinstance(source, Network):
        given = {"arch": arch, "input_shape": input_shape, "mean": mean, "std": std, "apply_fn": apply_fn}
        given |= {"init_fn": init_fn, "outputs": outputs, "weights": weights}
        if extra := [option for option, value in given.items() if value is not None]:
            raise ArchitectureError(
                f"expected a network alone, got {', '.join(extra)} as well in load(); a network has its own"
            )
        return Suspect(name or "model", source, getattr(source.apply_fn, "__name__", "apply_fn"))
    checkpoint = checkpoints.load(source, weights=weights)
    name = name or checkpoint.path
    if apply_fn is not None:
        return own_model.bind_function(checkpoint, apply_fn, init_fn, input_shape, name, outputs=outputs)
    described = described_by(checkpoint)
    chosen = {
        "input_shape": input_shape or _as_tuple(described.get("input_shape")),
        "mean": mean or _as_tuple(described.get("mean")),
        "std": std or _as_tuple(described.get("std")),
    }
    spec, notes, whole = arch or described.get("architecture"), (), checkpoint
    checkpoint = _without_beside(whole)
    if spec is not None:
        model = models.infer(spec, checkpoint.leaves, **chosen)
    else:
        try:
            model = models.identify(checkpoint.leaves, **chosen).model
        except ArchitectureError as error:
            return structural(whole, str(error), name=name)
        notes = tuple(f"{guess} Pass --arch where that is not so." for guess in model.module.guesses)
    variables, layout = models.bind(model, checkpoint.read_all(), source=checkpoint.path)
    return Suspect(
        name=name,
        network=model.network(variables),
        architecture=model.spec,
        sha256=checkpoint.sha256,
        checkpoint=checkpoint,
        model=model,
        layout=layout,
        notes=(*checkpoint.notes, *notes),
    )


def _without_beside(checkpoint: checkpoints.Checkpoint) -> checkpoints.Checkpoint:
    """The checkpoint without what its names say is no part of the network, which it names in `left_out`."""
    extras = models.beside(checkpoint.leaves)
    if not extras:
        return checkpoint
    return replace(
        checkpoint,
        leaves={name: spec for name, spec in checkpoint.leaves.items() if name not in extras},
        first_bytes={},  # the leaves do not fill the file
        left_out={**checkpoint.left_out, **extras},
        notes=(*checkpoint.notes, *left_out.summary(extras)),
    )


def structural(checkpoint: checkpoints.Checkpoint, reason: str, *, name: str | None = None) -> Suspect:
    """A suspect of which only the names and shapes of the leaves are known; it can be scanned, but not run.

    Args:
        checkpoint: opened.
        reason: why that is so, for the report.
        name: for reports; the path by default.

    Returns:
        The suspect.

    Raises:
        CheckpointError: a leaf cannot be read, or is not finite.
    """
    leaves = checkpoint.read_all()
    checkpoints.check_finite(leaves, checkpoint.path)
    return Suspect(
        name=name or checkpoint.path,
        network=None,
        sha256=checkpoint.sha256,
        checkpoint=checkpoint,
        notes=(*checkpoint.notes, structural_note(reason)),
        leaves=leaves,
    )


def structural_note(reason: str) -> str:
    """What a report must say of a scan without an architecture."""
    return (
        "Structural: kernels and norms were inferred from the names and shapes of the leaves, since the architecture "
        f"is not known ({reason})."
    )


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else None


@dataclass(frozen=True)
class ModelOptions:
    """How a checkpoint is opened; everything may be left out.

    Attributes:
        arch: specification such as `resnet20:width=0.5`.
        input_shape: of one image.
        mean: subtracted from images in [0, 1], per channel or one value for all.
        std: what they are divided by, likewise.
        apply_fn: the user's own model, `(variables, images) -> logits`, in place of `arch`.
        init_fn: `() -> variables` of that model.
        outputs: what `apply_fn` returns: `classes`, a `sequence` of them, a `regression` or an `embedding`.
        weights: `raw`, `ema`, or the name of a group of arrays, where a file holds several; raw by default.
        labels: `[K]` class of the data set that each logit stands for; by default the logit's own number.

    Raises:
        ArchitectureError: no such architecture, or options that exclude each other.
    """

    arch: str | None = None
    input_shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    apply_fn: ApplyFn | None = None
    init_fn: Callable[[], Any] | None = None
    labels: tuple[int, ...] | None = None
    outputs: Outputs | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.arch is not None:
            architecture.parse(self.arch)
        if self.init_fn is not None and self.apply_fn is None:
            raise ArchitectureError("expected apply together with init, got init alone; name the model's function too")
        if self.apply_fn is not None and (self.arch or self.mean or self.std):
            raise ArchitectureError(
                "expected apply without arch, mean and std, got both: the function normalises; give one of them"
            )

    def load(self, path: str | os.PathLike[str]) -> Suspect:
        """Opens a checkpoint, see `jaxguard.suspects.load`."""
        chosen = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "labels"}
        return load(path, **chosen)

    @property
    def key(self) -> str:
        """JSON that names these options, functions by module and name: results of equal ones can be compared."""
        named = {}
        for one in fields(self):
            value = getattr(self, one.name)
            is_function = callable(value)
            named[one.name] = (
                f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', value)}" if is_function else value
            )
        return json.dumps(named, sort_keys=True)

    def relabelled(self, batch: Batch) -> Batch:
        """Images with the numbers of the logits that stand for their classes.

        Raises:
            DataError: a class that no logit stands for.
        """
        if self.labels is None:
            return batch
        logit_of = {label: k for k, label in enumerate(self.labels)}
        unknown = sorted({*np.asarray(batch.labels).tolist()} - logit_of.keys())
        if unknown:
            raise DataError(
                f"expected images of the classes {sorted(logit_of)}, got class {unknown[0]} as well; complete the "
                "labels of the model"
            )
        labels = np.array([logit_of[label] for label in np.asarray(batch.labels).tolist()], np.int32)
        return Batch(batch.images, labels)
