"""What a theft is given and what it gives back."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.errors import DataError, TheftError
from jaxguard.graph import ChannelGraph, channel_graph
from jaxguard.graph.program import leaf_paths
from jaxguard.types import ApplyFn, Batch, TrainFn, Variables

Access = Literal["weights", "queries"]
"""What a thief has of the owner's model: all its weights, or its answers to images alone."""


class Blueprint(Protocol):
    """An architecture without weights, hashable; `jaxguard.models.build` makes one.

    Networks share what is compiled where they are made with the very same object: methods of two are never equal.
    """

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        ...

    def init(self, key: jax.Array) -> Variables:
        """Random weights."""
        ...

    def apply_fn(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Logits in evaluation mode."""
        ...

    def train_fn(self, variables: Variables, images: jax.Array) -> tuple[jax.Array, Variables]:
        """Logits in training mode, and the variables with new running statistics."""
        ...


@dataclass(frozen=True, eq=False)
class Network:
    """A model with its weights: the owner's, a copy, or an independent one.

    Attributes:
        variables: its weights.
        apply_fn: the model in evaluation mode, hashable.
        train_fn: the model in training mode; None where it is not known.
        graph: its channel graph; None where it is not known.
        model: its architecture; None where it is not known.
    """

    variables: Variables
    apply_fn: ApplyFn
    train_fn: TrainFn | None = None
    graph: ChannelGraph | None = None
    model: Blueprint | None = None

    @classmethod
    def of(cls, model: Blueprint, variables: Variables) -> Network:
        """A network of a known architecture, with its channel graph.

        Args:
            model: its architecture.
            variables: its weights.

        Returns:
            The network.

        Raises:
            GraphError: the channel graph cannot be derived.

        Example:
            >>> from jaxguard import models
            >>> model = models.build("mlp:hidden=8", num_classes=3, input_shape=(4, 4, 1))
            >>> Network.of(model, model.init(jax.random.key(0))).graph
            ChannelGraph(2 producers, 0 affines, 4 groups, 1 permutable)
        """
        leaves, structure = jax.tree.flatten(variables)
        structs = tuple(jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        return cls(variables, model.apply_fn, model.train_fn, _graph_of(model, structure, structs), model)


@functools.lru_cache(maxsize=64)
def _graph_of(model: Blueprint, structure: Any, structs: tuple[jax.ShapeDtypeStruct, ...]) -> ChannelGraph:
    """One graph for all networks of an architecture, so that they share what is compiled for it."""
    images = jax.ShapeDtypeStruct((1, *model.input_shape), np.float32)
    return channel_graph(model.apply_fn, jax.tree.unflatten(structure, structs), images)


@dataclass(frozen=True)
class TheftReport:
    """How a copy was made.

    Attributes:
        method: what made it.
        options: hyper-parameters as used.
        notes: what a reader must know, in whole sentences.
        curves: what was recorded step by step, `{name: [steps]}`.
        queries: images, or views of them, that the owner's model was asked about.
    """

    method: str
    options: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)
    queries: int = 0


class Theft(Protocol):
    """A pure function; the owner's network and the data are left untouched."""

    def __call__(
        self, owner: Network, data: Batch | None, key: jax.Array, /, *_: Any, **options: Any
    ) -> tuple[Network, TheftReport]:
        """Makes a copy.

        Args:
            owner: the model that is stolen; only its answers are used where the row's access is `queries`.
            data: the thief's images and labels; None for a theft that needs none.
            key: the same key gives the same copy.
            _: nothing; hyper-parameters are keyword-only.
            options: hyper-parameters, with defaults.

        Returns:
            The copy and a report.

        Raises:
            TheftError: something is missing or out of range.
        """
        ...


@dataclass(frozen=True)
class Row:
    """One row of THEFTS; called like the theft itself, with the row's options where none are given.

    Attributes:
        steal: the theft.
        family: what it is grouped under, such as `fine-tuning`.
        access: what the thief has of the owner's model; `weights` means that the copy's weights derive from them.
        keeps_architecture: whether the copy always has the owner's architecture, number of classes included.
        keeps_function: whether the copy computes the owner's logits, rounding aside.
        needs_data: whether the thief needs images.
        options: hyper-parameters that make the row.
    """

    steal: Theft
    family: str
    access: Access
    keeps_architecture: bool
    keeps_function: bool = False
    needs_data: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weight_derived(self) -> bool:
        """Whether the copy's weights are made from the owner's."""
        return self.access == "weights"

    def __call__(
        self, owner: Network, data: Batch | None, key: jax.Array, **options: Any
    ) -> tuple[Network, TheftReport]:
        """Makes a copy; see `Theft`."""
        return self.steal(owner, data, key, **{**self.options, **options})


def require_data(data: Batch | None, method: str) -> Batch:
    """The thief's images, which the method cannot do without.

    Args:
        data: images and labels.
        method: for the message.

    Returns:
        The same.

    Raises:
        DataError: there are none, or not one label per image.
    """
    if data is None or len(data.images) == 0 or np.shape(data.labels) != (len(data.images),):
        came = "none" if data is None else f"{len(data.images)} images, labels of shape {np.shape(data.labels)}"
        raise DataError(
            f"expected the thief's images with one label each, came {came} in {method}(data=...); check how the batch "
            "was made, or take a theft that needs none"
        )
    return data


def require_labels(data: Batch, num_classes: int, method: str) -> None:
    """Refuses labels the model has no class for, which would teach it nothing in silence.

    Args:
        data: images and labels.
        num_classes: `K` of the model that learns them.
        method: for the message.

    Raises:
        DataError: a label outside [0, K).
    """
    labels = np.asarray(data.labels)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(
            f"expected labels in [0, {num_classes}), as many as the model has logits, came {labels.min()} to "
            f"{labels.max()} in {method}(data=...); transfer() makes copies for other tasks"
        )


def require_training(train_fn: TrainFn | None, method: str) -> TrainFn:
    """The training-mode model, which the method cannot do without.

    Args:
        train_fn: of a network.
        method: for the message.

    Returns:
        The same.

    Raises:
        TheftError: it is None.
    """
    if train_fn is None:
        raise TheftError(
            f"expected a training-mode model, came None in owner.train_fn, and {method} trains; "
            "make the network with Network.of(model, variables), or pass train_fn="
        )
    return train_fn


def require_graph(owner: Network, method: str) -> ChannelGraph:
    """The channel graph, which the method cannot do without.

    Args:
        owner: a network.
        method: for the message.

    Returns:
        `owner.graph`.

    Raises:
        TheftError: it is None.
    """
    if owner.graph is None:
        raise TheftError(
            f"expected a channel graph, came None in owner.graph, and {method} finds layers through it; "
            "derive it with channel_graph(apply_fn, variables, images)"
        )
    return owner.graph


def require_blueprint(student: Blueprint | None, owner: Network, method: str) -> Blueprint:
    """The architecture that a copy is trained from scratch in: the student's, or else the owner's.

    Args:
        student: an architecture, or None.
        owner: a network.
        method: for the message.

    Returns:
        One of them.

    Raises:
        TheftError: both are None.
    """
    student = owner.model if student is None else student
    if student is None:
        raise TheftError(
            f"expected an architecture to train, came None in {method}(student=...) and in owner.model; "
            "pass one, such as jaxguard.models.build(...)"
        )
    return student


def require_finite(variables: Variables, method: str) -> None:
    """Refuses a model with broken weights.

    Args:
        variables: of the owner.
        method: for the message.

    Raises:
        TheftError: a leaf holds NaN or infinity.
    """
    for path, leaf in zip(leaf_paths(variables), jax.tree.leaves(variables), strict=True):
        if not np.isfinite(np.asarray(leaf)).all():  # on the host, where no shape has to be compiled
            raise TheftError(
                f"expected finite weights, came NaN or infinity in leaf '{path}' of the owner's model in {method}(); "
                "load the checkpoint again or train it anew"
            )


def num_classes(apply_fn: ApplyFn, variables: Variables, images: jax.Array | np.ndarray) -> int:
    """How many logits a model gives.

    Args:
        apply_fn: model in evaluation mode.
        variables: its weights.
        images: `[N, ...]`.

    Returns:
        `K`.
    """
    example = jax.ShapeDtypeStruct((1, *np.shape(images)[1:]), jnp.result_type(images))
    return jax.eval_shape(apply_fn, variables, example).shape[-1]
