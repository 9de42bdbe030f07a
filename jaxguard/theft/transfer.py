"""Transfer to another task: the owner's weights under a new head with other classes, fine-tuned."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import models
from jaxguard.graph import channel_graph
from jaxguard.theft import protocol
from jaxguard.theft.fine_tuning import Statistics, tune
from jaxguard.theft.head import fresh_head, with_leaves
from jaxguard.theft.protocol import Blueprint, Network, TheftError, TheftReport
from jaxguard.theft.recipe import Recipe, Schedule
from jaxguard.training import Augment, Progress
from jaxguard.types import Batch


def with_new_head(
    owner: Network, key: jax.Array, num_classes: int, images: jax.Array | np.ndarray, model: Blueprint | None = None
) -> Network:
    """The owner's network with a random head of another number of classes.

    Args:
        owner: the stolen model; its graph is needed.
        key: draws the head.
        num_classes: `K` of the new head.
        images: `[N, ...]` of the new task.
        model: the architecture with the new head; by default that of `owner.model` for a bundled one, and the very
            functions of the owner for others, which will do where they take what the leaves are.

    Returns:
        The network, its graph derived anew.

    Raises:
        TheftError: the graph is missing, or the model does not take such a head.
    """
    graph = protocol.require_graph(owner, "transfer")
    if model is None and isinstance(owner.model, models.Model):
        model = _rebuilt(owner.model, num_classes)
    head = fresh_head(graph, owner.variables, key, num_classes=num_classes, method="transfer")
    variables = with_leaves(owner.variables, head)
    functions = owner if model is None else model
    try:
        classes = protocol.num_classes(functions.apply_fn, variables, images)
    except Exception as error:  # whatever a function of the user's own, or Flax, makes of a head of another shape
        raise TheftError(
            f"expected a model that takes {', '.join(sorted(head))} for {num_classes} classes and images of shape "
            f"{np.shape(images)[1:]}, came {type(error).__name__}: {str(error).splitlines()[0]} in transfer(); "
            "pass model=, its architecture with the new head"
        ) from error
    if classes != num_classes:
        raise TheftError(f"expected {num_classes} logits behind the new head, came {classes} in transfer(model=...)")
    example = jax.ShapeDtypeStruct((1, *np.shape(images)[1:]), jnp.result_type(images))
    if model is not None:
        return Network.of(model, variables)
    return replace(owner, variables=variables, graph=channel_graph(owner.apply_fn, variables, example))


@functools.lru_cache(maxsize=64)
def _rebuilt(old: models.Model, num_classes: int) -> models.Model:
    """The architecture with another number of classes, always the same object: methods of two are never equal."""
    return models.build(
        old.spec,
        num_classes=num_classes,
        input_shape=old.input_shape,
        mean=old.mean,
        std=old.std,
        dtype=old.module.dtype,
    )


def transfer(
    owner: Network,
    data: Batch | None,
    key: jax.Array,
    *,
    num_classes: int | None = None,
    model: Blueprint | None = None,
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
    """Gives the model a new head and fine-tunes it on another task.

    SAC transfers to ten classes of CIFAR-100; its settings for that are not in its code, these are those of
    `head_reset`. Images are as large as the owner's.

    Args:
        owner: the stolen model; its graph is needed.
        data: images and labels of the other task.
        key: draws the head, batches and augmentation.
        num_classes: `K` of the other task; its largest label plus 1 by default.
        model: the architecture with the new head, see `with_new_head`.
        layers: how many of the last layers learn, 1 for the head alone (linear probing); None for all parameters.
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
        TheftError: something is missing or out of range, the model does not take such a head, or the loss diverged.
        DataError: no images, or a label beyond `num_classes`.
    """
    data = protocol.require_data(data, "transfer")
    recipe = Recipe(
        "transfer", epochs, batch_size, learning_rate, momentum, weight_decay, schedule, augment
    )  # fmt: skip
    num_classes = int(np.max(data.labels)) + 1 if num_classes is None else num_classes
    if num_classes < 1:
        raise TheftError(f"expected num_classes >= 1, came {num_classes} in transfer()")
    key_head, key_tune = jax.random.split(key)
    start = with_new_head(owner, key_head, num_classes, data.images, model)
    copy, losses = tune(start, data, key_tune, recipe, layers=layers, statistics=statistics, progress=progress)
    options: dict[str, Any] = {"num_classes": num_classes, "model": getattr(start.model, "spec", None)}
    options |= {"layers": layers, "statistics": statistics, **recipe.options()}
    return copy, TheftReport("transfer", options, curves={"loss": losses})
