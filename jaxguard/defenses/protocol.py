"""What a defense takes and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from jaxguard.errors import DefenseError
from jaxguard.training import Progress
from jaxguard.types import Batch, LayerScores, Network, PruningPath, RecoveredTrigger, TrainFn


@dataclass(frozen=True)
class Data:
    """What a defender has besides the network; never a test metric, and never images known to be poisoned.

    Attributes:
        clean: the few images the defender owns.
        mixed: images `[N, H, W, C]` of the network's own training set, some of them perhaps poisoned; which ones is
            not known, and their labels would not tell. EP uses them, and BNP for layers without running statistics.
        progress: called as the work proceeds.
    """

    clean: Batch | None = None
    mixed: jax.Array | np.ndarray | None = None
    progress: Progress | None = None


NO_DATA = Data()


@dataclass(frozen=True)
class DefenseReport:
    """What a defense did; the caller knows its name and options (`Method.record`).

    Attributes:
        layers: scores and cut channels, where the method cuts channels.
        notes: caveats for the reader, in full sentences.
        curves: what was recorded step by step, `{name: [steps]}`.
        trigger: what an inversion recovered, where the method inverts.
        path: the pruning path, where the method has one.
        chosen: values of options that the method chose itself, where they were left open.
    """

    layers: tuple[LayerScores, ...] = ()
    notes: tuple[str, ...] = ()
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)
    trigger: RecoveredTrigger | None = None
    path: PruningPath | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)


class Defense(Protocol):
    """A pure function: the input is left untouched, and the result has its tree, shapes and dtypes."""

    def __call__(
        self, network: Network, data: Data, key: jax.Array, /, *_: Any, **options: Any
    ) -> tuple[Network, DefenseReport]:
        """Repairs a network with what the defender has; hyper-parameters are keyword-only."""
        ...


def require_clean(data: Data, method: str) -> Batch:
    """The clean images, which the method cannot do without.

    Args:
        data: what the defender has.
        method: row of the DEFENSES table.

    Returns:
        `data.clean`.

    Raises:
        DefenseError: there are none, or not one label for each.
    """
    clean = data.clean
    if clean is None or len(clean.images) == 0:
        raise DefenseError(
            f"expected clean images for {method}, got {'none' if clean is None else 'an empty set'} (data.clean); "
            "pass some (5 % of a training set is usual), or take a data-free defense"
        )
    if np.shape(clean.labels) != (len(clean.images),):
        raise DefenseError(
            f"expected one label per clean image for {method}, got {len(clean.images)} images and labels of shape "
            f"{np.shape(clean.labels)} (data.clean); check how the batch was made"
        )
    return clean


def require_mixed(data: Data, method: str) -> jax.Array | np.ndarray:
    """Training images of which some may be poisoned, which the method cannot do without.

    Args:
        data: what the defender has.
        method: row of the DEFENSES table.

    Returns:
        `data.mixed`.

    Raises:
        DefenseError: there are fewer than two.
    """
    mixed = data.mixed
    if mixed is None or len(mixed) < 2:
        raise DefenseError(
            f"expected images of the suspect's own training set for {method}, got "
            f"{'none' if mixed is None else len(mixed)} (data.mixed); pass a batch (256 is usual; --mixed on the "
            "command line), or take another defense"
        )
    return mixed


def require_training(network: Network, method: str) -> TrainFn:
    """The training-mode model, which the method cannot do without.

    Args:
        network: the suspect.
        method: row of the DEFENSES table.

    Returns:
        `network.train_fn`.

    Raises:
        DefenseError: it is None.
    """
    if network.train_fn is None:
        raise DefenseError(
            f"expected a training mode for {method}, which trains, got None (network.train_fn); pass the model's, such "
            "as that of jaxguard.models.build(...)"
        )
    return network.train_fn


def one_batch(clean: Batch, batch_size: int, epochs: int, usual: str) -> tuple[str, ...]:
    """A note where an epoch is a single step, of which published settings take many.

    Args:
        clean: the images.
        batch_size: images per step.
        epochs: passes over the images.
        usual: how many steps the published setting takes.

    Returns:
        The note; nothing where there are several batches or no epoch.
    """
    if not epochs or len(clean.images) > batch_size:
        return ()
    return (
        f"All {len(clean.images)} clean images went into one batch, so {epochs} epochs were as many steps; {usual}. "
        "If the backdoor stays, lower batch_size or raise learning_rate.",
    )
