"""What a theft takes and returns; the checks that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from jaxguard.errors import DataError, TheftError
from jaxguard.scores.channel_bounds import require_finite
from jaxguard.types import Batch, Network, TrainFn, Variables

Access = Literal["weights", "queries"]
"""What a thief has of the owner's model: all its weights, or its answers to images alone."""


@runtime_checkable
class Blueprint(Protocol):
    """An architecture without weights; `jaxguard.models.build` makes one."""

    def init(self, key: jax.Array) -> Variables:
        """Random weights."""
        ...

    def network(self, variables: Variables) -> Network:
        """The network with given weights; that of equal architectures has the very same functions."""
        ...


def blueprint_of(network: Network) -> Blueprint | None:
    """The architecture that a network was made with, if its functions are the methods of one."""
    found = getattr(network.apply_fn, "__self__", None)
    return found if isinstance(found, Blueprint) else None


class TheftReport(NamedTuple):
    """How a copy was made.

    Attributes:
        curves: what was recorded step by step, `{name: [steps]}`.
        notes: caveats for the reader, in full sentences.
        queries: images, or views of them, that the owner's model was queried with.
    """

    curves: Mapping[str, np.ndarray] = {}
    notes: tuple[str, ...] = ()
    queries: int = 0


@dataclass(frozen=True)
class Theft:
    """One row of THEFTS: a function, and what it needs.

    Attributes:
        function: `(owner, data, key, *, options) -> (copy, report)`; pure, its options checked by their annotations.
        access: what the thief has of the owner's model; `weights` means that the copy's weights derive from them.
        needs: what else it cannot do without.
        defaults: options that make the row, where they differ from the function's.
    """

    function: Callable[..., tuple[Network, TheftReport]]
    access: Access
    needs: tuple[Literal["data", "key"], ...] = ("data", "key")
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self, owner: Network, data: Batch | None = None, key: jax.Array | None = None, **options: Any
    ) -> tuple[Network, TheftReport]:
        """Makes a copy; the owner's network and the data are left untouched.

        Args:
            owner: the model that is stolen; only its answers are used where `access` is `queries`.
            data: the thief's images and labels; ignored where the theft needs none.
            key: the same key gives the same copy.
            options: hyper-parameters other than the defaults, `progress` among them.

        Returns:
            The copy and a report.

        Raises:
            OptionError: an unknown option, or a value of the wrong type or out of range.
            TheftError: something is missing, or a loss diverged.
            UnscorableError: weights are not finite.
            DataError: no images, or labels the model has no class for.
        """
        if "key" in self.needs and key is None:
            name = self.function.__name__
            raise TheftError(f"expected a key for what {name} draws, got None; pass key=jax.random.key(0)")
        if "data" in self.needs:
            require_data(data)
        if self.access == "weights":
            require_finite(owner.variables)
        return self.function(owner, data, key, **{**self.defaults, **options})


def require_data(data: Batch | None) -> Batch:
    """The same images; raises DataError where there are none, or not one label per image."""
    if data is None or len(data.images) == 0 or np.shape(data.labels) != (len(data.images),):
        got = "none" if data is None else f"{len(data.images)} images, labels of shape {np.shape(data.labels)}"
        raise DataError(
            f"expected images with one label each, got {got} in data; check how the batch was made, or choose a theft "
            "that needs none"
        )
    return data


def require_labels(data: Batch, num_classes: int) -> None:
    """Raises DataError for a label outside [0, num_classes), from which a model would silently learn nothing."""
    labels = np.asarray(data.labels)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(
            f"expected labels in [0, {num_classes}), one for each logit, got {labels.min()} to {labels.max()} in data; "
            "THEFTS['transfer'] makes copies for other tasks"
        )


def require_training(network: Network) -> TrainFn:
    """The training-mode model; raises TheftError where it is None."""
    if network.train_fn is None:
        raise TheftError(
            "expected a training-mode model, got None in train_fn of the network; pass train_fn= when it is made"
        )
    return network.train_fn


def require_blueprint(student: Blueprint | None, owner: Network) -> Blueprint:
    """The student's architecture, or else the owner's; raises TheftError where both are None."""
    found = blueprint_of(owner) if student is None else student
    if found is None:
        raise TheftError(
            "expected an architecture to train, got None in student, and an owner of none; pass student=, such as "
            "jaxguard.models.build(...)"
        )
    return found
