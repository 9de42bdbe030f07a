"""A model to be audited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxguard import checkpoints
from jaxguard.graph import ChannelGraph, channel_graph
from jaxguard.models import Model
from jaxguard.types import ApplyFn, TrainFn, Variables

UNKNOWN = "unknown"
"""Architecture of a suspect that is known by the names and shapes of its leaves alone."""


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
        >>> import jax, numpy as np
        >>> mlp = lambda v, x: jax.nn.relu(x @ v["w1"]) @ v["w2"]
        >>> v = {"w1": np.ones((4, 8), np.float32), "w2": np.ones((8, 2), np.float32)}
        >>> wrap(v, mlp, np.ones((1, 4), np.float32)).graph
        ChannelGraph(2 producers, 0 affines, 3 groups, 1 permutable)
    """
    return Suspect(name, name, variables, apply_fn, train_fn, channel_graph(apply_fn, variables, images))
