"""Head re-initialisation: the layer that makes the logits is drawn anew, and perhaps learned again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxguard.graph import ChannelGraph
from jaxguard.graph.program import leaf_paths
from jaxguard.theft import protocol
from jaxguard.theft.fine_tuning import Statistics, tune
from jaxguard.theft.last_layers import is_whole, last_layers
from jaxguard.theft.protocol import Network, TheftError, TheftReport
from jaxguard.theft.recipe import Recipe, Schedule
from jaxguard.training import Augment, Progress
from jaxguard.types import Batch, Variables


def fresh_head(
    graph: ChannelGraph, variables: Variables, key: jax.Array, *, num_classes: int | None = None, method: str
) -> dict[str, jax.Array]:
    """New leaves for the layers that make the logits: kernels of variance 1 / fan-in (LeCun), biases of zero.

    A norm on the logits, if there is one, stays.

    Args:
        graph: the model's channel graph.
        variables: its weights.
        key: draws the kernels.
        num_classes: `K` of the new head; the old one's by default.
        method: for messages.

    Returns:
        Leaf path -> array.

    Raises:
        TheftError: no layer makes the logits, or it shares its leaf with others.
    """
    leaves = dict(zip(leaf_paths(variables), jax.tree.leaves(variables), strict=True))
    found: dict[str, jax.Array] = {}
    for number, layer in enumerate(last_layers(graph, 1, method)):
        for view, is_kernel in ((layer.kernel, True), (layer.bias, False)):
            if view is None:
                continue
            if not is_whole(graph, view) or (num_classes and len(view.axes) != 1):
                raise TheftError(
                    f"expected a head with a leaf of its own and one axis of classes, came {layer.name} in "
                    f"'{view.path}' at {layer.where} in {method}(); store it apart"
                )
            old = jnp.asarray(leaves[view.path])
            shape = list(old.shape)
            if num_classes:
                shape[view.axes[0]] = num_classes
            new = jnp.zeros(shape, old.dtype)
            if is_kernel:
                fan_in = old.size // math.prod(view.shape)
                drawn = jax.random.normal(jax.random.fold_in(key, number), shape) / math.sqrt(fan_in)
                new = drawn.astype(old.dtype)
            found[view.path] = new
    return found


def with_leaves(variables: Variables, leaves: Mapping[str, Any]) -> Any:
    """Variables in which some leaves are others, perhaps of other shapes.

    Args:
        variables: pytree of arrays; not modified.
        leaves: leaf path -> array.

    Returns:
        A tree of the same structure.
    """
    old = zip(leaf_paths(variables), jax.tree.leaves(variables), strict=True)
    return jax.tree.unflatten(jax.tree.structure(variables), [leaves.get(path, leaf) for path, leaf in old])


def head_reset(
    owner: Network,
    data: Batch | None,
    key: jax.Array,
    *,
    layers: int | None = None,
    statistics: Statistics = "move",
    epochs: int = 30,
    batch_size: int = 512,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Schedule = "constant",
    augment: Augment | None = None,
    progress: Progress | None = None,
) -> tuple[Network, TheftReport]:
    """Draws the head anew, then fine-tunes all layers (RTAL) or the last ones (RTLL).

    The rate is ours, twenty times that of fine-tuning, since a new head has everything to learn; the rest is as there.

    Args:
        owner: the stolen model; its graph is needed.
        data: the thief's images and labels; None where `epochs` is 0.
        key: draws the head, batches and augmentation.
        layers: how many of the last layers learn, 1 for the head alone; None for all parameters.
        statistics: see `fine_tuning`, as for all others.
        epochs: 0 leaves the head random.
        batch_size: images per step.
        learning_rate: of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        schedule: how the rate falls.
        augment: `(key, images) -> images`.
        progress: told how far the training is.

    Returns:
        The copy and a report with the curve `loss`, `[steps]`.

    Raises:
        TheftError: something is missing or out of range, or the loss diverged.
        DataError: no images, or labels the model has no class for.
    """
    recipe = Recipe(
        "head_reset", epochs, batch_size, learning_rate, momentum, weight_decay, schedule, augment
    )  # fmt: skip
    graph = protocol.require_graph(owner, "head_reset")
    key_head, key_tune = jax.random.split(key)
    head = fresh_head(graph, owner.variables, key_head, method="head_reset")
    copy = replace(owner, variables=with_leaves(owner.variables, head))
    curves = {}
    if epochs:
        data = protocol.require_data(data, "head_reset")
        copy, losses = tune(copy, data, key_tune, recipe, layers=layers, statistics=statistics, progress=progress)
        curves = {"loss": losses}
    notes = (f"The head, {', '.join(sorted(head))}, was drawn anew{'' if epochs else ' and not trained'}.",)
    options = {"layers": layers, "statistics": statistics, **recipe.options()}
    return copy, TheftReport("head-reset", options, notes, curves)
