"""What a defense is given and what it gives back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from jaxguard.errors import DefenseError
from jaxguard.graph import ChannelGraph
from jaxguard.training import Progress
from jaxguard.types import ApplyFn, Batch, LayerScores, PruningPath, RecoveredTrigger, TrainFn, Variables


@dataclass(frozen=True)
class Context:
    """What a defender has; never a test metric, and poisoned data only where nobody knows which they are.

    Attributes:
        apply_fn: the model in evaluation mode.
        train_fn: the model in training mode; None where it is not known.
        graph: the model's ChannelGraph; None for a method that needs no structure.
        clean: the few images the defender owns; None for a data-free method.
        progress: told how far a method that descends is.
        mixed: images `[N, H, W, C]` of the suspect's own training set, as they come: some may be poisoned, the defender
            does not know which, and labels would not tell. None unless the training set is at hand; only EP, and BNP
            for layers without running statistics, look at them.
    """

    apply_fn: ApplyFn
    train_fn: TrainFn | None = None
    graph: Any = None
    clean: Batch | None = None
    progress: Progress | None = None
    mixed: jax.Array | np.ndarray | None = None


@dataclass(frozen=True)
class DefenseReport:
    """What a defense did.

    Attributes:
        method: row of the DEFENSES table.
        options: hyper-parameters as used.
        layers: scores and cut channels, where the method cuts channels.
        notes: what a reader must know, in whole sentences.
        curves: what was recorded step by step, `{name: [steps]}`.
        trigger: what an inversion recovered, where the method inverts.
        path: the pruning path, where the method has one.
    """

    method: str
    options: Mapping[str, Any]
    layers: tuple[LayerScores, ...] = ()
    notes: tuple[str, ...] = ()
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)
    trigger: RecoveredTrigger | None = None
    path: PruningPath | None = None


class Defense(Protocol):
    """A pure function: the input is left untouched, and the result has its tree, shapes and dtypes."""

    def __call__(
        self, variables: Variables, context: Context, key: jax.Array, /, *_: Any, **options: Any
    ) -> tuple[Variables, DefenseReport]:
        """Repairs a model.

        Args:
            variables: the suspect.
            context: what the defender has.
            key: the same key gives the same result.
            _: nothing; hyper-parameters are keyword-only.
            options: hyper-parameters, with the paper's defaults.

        Returns:
            The repaired variables and the report.

        Raises:
            DefenseError: the context lacks what the method needs.
        """
        ...


def require_clean(context: Context, method: str) -> Batch:
    """The clean images, which the method cannot do without.

    Args:
        context: what the defender has.
        method: row of the DEFENSES table.

    Returns:
        `context.clean`.

    Raises:
        DefenseError: there are none, or not one label for each.
    """
    clean = context.clean
    if clean is None or len(clean.images) == 0:
        raise DefenseError(
            f"expected clean images, came {'none' if clean is None else 'an empty set'} in context.clean, and "
            f"{method} learns from them; pass some (5 % of a training set is usual), or take a data-free defense"
        )
    if np.shape(clean.labels) != (len(clean.images),):
        raise DefenseError(
            f"expected one label per clean image, came {len(clean.images)} images and labels of shape "
            f"{np.shape(clean.labels)} in context.clean of {method}; check how the batch was made"
        )
    return clean


def require_graph(graph: ChannelGraph | None) -> ChannelGraph:
    """The channel graph, which the method cannot do without.

    Args:
        graph: `context.graph`.

    Returns:
        The same.

    Raises:
        DefenseError: it is None.
    """
    if graph is None:
        raise DefenseError("expected a channel graph, got None in context.graph; derive it with channel_graph(...)")
    return graph


def require_mixed(context: Context, method: str) -> jax.Array | np.ndarray:
    """Training images of which some may be poisoned, which the method cannot do without.

    Args:
        context: what the defender has.
        method: row of the DEFENSES table.

    Returns:
        `context.mixed`.

    Raises:
        DefenseError: there are fewer than two.
    """
    mixed = context.mixed
    if mixed is None or len(mixed) < 2:
        raise DefenseError(
            f"expected images of the suspect's own training set, came {'none' if mixed is None else len(mixed)} in "
            f"context.mixed, and {method} looks for what poisoned ones among them do; pass a batch (256 is usual; "
            "--mixed on the command line), or take a defense that does without"
        )
    return mixed


def require_training(context: Context, method: str) -> TrainFn:
    """The training-mode model, which the method cannot do without.

    Args:
        context: what the defender has.
        method: row of the DEFENSES table.

    Returns:
        `context.train_fn`.

    Raises:
        DefenseError: it is None.
    """
    if context.train_fn is None:
        raise DefenseError(
            f"expected a training-mode model, came None in context.train_fn, and {method} trains; pass the model's "
            "train_fn, such as that of jaxguard.models.build(...)"
        )
    return context.train_fn


def relative_change(before: Variables, after: Variables) -> dict[str, float]:
    """How far each leaf moved, `||after - before|| / ||before||`, computed in float64.

    Args:
        before: the suspect.
        after: the repaired model, of the same tree and shapes.

    Returns:
        `{leaf path: ratio}` of the leaves that changed; infinite where the leaf was all zero before.

    Raises:
        DefenseError: the trees or shapes differ.

    Example:
        >>> relative_change({"a": np.array([3.0, 4.0]), "b": np.ones(2)}, {"a": np.array([3.0, 3.0]), "b": np.ones(2)})
        {'a': 0.2}
    """
    leaves, structure = jax.tree.flatten_with_path(before)
    others, other_structure = jax.tree.flatten(after)
    changes = {}
    if structure != other_structure:
        raise DefenseError(
            f"expected two models of one structure, came {structure} and {other_structure} in relative_change(); "
            "compare a model with its own repair"
        )
    for (path, old), new in zip(leaves, others, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if np.shape(old) != np.shape(new):
            raise DefenseError(
                f"expected shape {np.shape(old)}, came {np.shape(new)} for leaf '{name}' in relative_change(); "
                "compare a model with its own repair"
            )
        origin = np.asarray(old).astype(np.float64)
        moved, size = np.linalg.norm(np.asarray(new).astype(np.float64) - origin), np.linalg.norm(origin)
        if moved > 0:
            changes[name] = float(moved / size) if size > 0 else float("inf")
    return changes
