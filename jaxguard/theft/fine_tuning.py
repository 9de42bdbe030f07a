"""Fine-tuning of all layers or the last ones, under the owner's head or a new one, for the same task or another."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import models
from jaxguard.errors import TheftError
from jaxguard.graph import ChannelGraph, LeafView, Producer
from jaxguard.graph.program import leaf_paths, numeric_leaves
from jaxguard.methods import Count, NonNegative, Steps, checked, options_of
from jaxguard.theft import protocol
from jaxguard.theft.protocol import Blueprint, TheftReport
from jaxguard.theft.sgd import SGD
from jaxguard.training import CrossEntropyGradient, Progress
from jaxguard.types import Batch, Network, TrainFn, Variables


@checked
@options_of(SGD)
def fine_tuning(
    owner: Network,
    data: Batch,
    key: jax.Array,
    *,
    layers: int | None = None,
    epochs: Steps = 30,
    learning_rate: NonNegative = 5e-4,
    progress: Progress | None = None,
    **sgd: Any,
) -> tuple[Network, TheftReport]:
    """Fine-tunes all layers (FTAL) or the last ones (FTLL) on the thief's labels.

    The defaults are those of SAC's code for CIFAR-10. Its last layers are the three dense ones of a VGG-16, `layers=3`.
    The running statistics of all layers move.

    Args:
        owner: the stolen model.
        data: the thief's images and labels.
        key: draws batches and augmentation.
        layers: how many of the last layers learn, 1 for the one that makes the logits; None for all parameters.
        epochs: see `SGD`, as for the next.
        learning_rate: of the first step.
        progress: called as the work proceeds.
        sgd: other fields of `SGD`.

    Returns:
        The copy, with the curve `loss`, `[steps]`.

    Raises:
        TheftError: the training-mode model is missing, there are fewer layers, or the loss diverged.
        DataError: a label the model has no class for.

    Example:
        >>> linear = lambda w, images: images.reshape(len(images), -1) @ w
        >>> owner = Network(np.eye(4), linear, (2, 2, 1), lambda w, images: (linear(w, images), w))
        >>> data = Batch(np.eye(4).reshape(4, 2, 2, 1), np.arange(4))
        >>> copy, report = fine_tuning(owner, data, jax.random.key(0), epochs=3, learning_rate=0.1)
        >>> copy.variables.shape, bool(report.curves["loss"][-1] < report.curves["loss"][0])
        ((4, 4), True)

    Reference:
        Guan, Liang, He: Are You Stealing My Model? Sample Correlation for Fingerprinting Deep Neural Networks,
        NeurIPS 2022.
    """
    protocol.require_labels(data, owner.num_classes)
    train_fn = protocol.require_training(owner)
    how = SGD(epochs, learning_rate, **sgd)
    if layers is None:
        tuned, losses = how.learn(CrossEntropyGradient(train_fn), owner.variables, data, key, progress=progress)
        return owner.with_variables(tuned), TheftReport({"loss": losses})
    learned = parameters(owner.graph, last_layers(owner.graph, layers))
    frozen = Frozen(train_fn, jax.tree.structure(owner.variables), leaf_paths(owner.variables), learned)
    parts = frozen.split(owner.variables)
    tuned, losses = how.learn(CrossEntropyGradient(frozen), parts, data, key, progress=progress)
    return owner.with_variables(frozen.join(tuned)), TheftReport({"loss": losses})


@checked
@options_of(fine_tuning)
def head_reset(
    owner: Network, data: Batch, key: jax.Array, *, learning_rate: NonNegative = 0.01, **tuning: Any
) -> tuple[Network, TheftReport]:
    """Redraws the head, then fine-tunes all layers (RTAL) or the last ones (RTLL).

    The learning rate is ours, twenty times that of fine-tuning, since a new head has everything to learn.

    Args:
        owner: see `fine_tuning`, as for all others.
        data: the thief's images and labels.
        key: draws the head, batches and augmentation.
        learning_rate: of the first step.
        tuning: other options of `fine_tuning`.

    Returns:
        The copy, with the curve `loss`, `[steps]`.
    """
    key_head, key_tune = jax.random.split(key)
    head = fresh_head(owner.graph, owner.variables, key_head)
    start = owner.with_variables(with_leaves(owner.variables, head))
    copy, report = fine_tuning(start, data, key_tune, learning_rate=learning_rate, **tuning)
    return copy, report._replace(notes=(f"The head, {', '.join(sorted(head))}, was redrawn.",))


@checked
@options_of(fine_tuning)
def transfer(
    owner: Network,
    data: Batch,
    key: jax.Array,
    *,
    num_classes: Count | None = None,
    model: Blueprint | None = None,
    learning_rate: NonNegative = 0.01,
    **tuning: Any,
) -> tuple[Network, TheftReport]:
    """Gives the model a new head and fine-tunes it on another task, with images as large as the owner's.

    SAC transfers to ten classes of CIFAR-100; its settings for that are not in its code, these are those of
    `head_reset`.

    Args:
        owner: the stolen model.
        data: images and labels of the other task.
        key: draws the head, batches and augmentation.
        num_classes: `K` of the other task; its largest label plus 1 by default.
        model: the architecture with the new head; by default a bundled one is rebuilt, and functions of others are
            the owner's, if they take whatever shape the leaves have.
        learning_rate: of the first step.
        tuning: other options of `fine_tuning`; `layers=1` trains the head alone (linear probing).

    Returns:
        The copy, with the curve `loss`, `[steps]`.

    Raises:
        TheftError: as `fine_tuning`, or the model does not take such a head.
        DataError: a label beyond `num_classes`.
    """
    num_classes = int(np.max(data.labels)) + 1 if num_classes is None else num_classes
    key_head, key_tune = jax.random.split(key)
    own = protocol.blueprint_of(owner)
    if model is None and isinstance(own, models.Model):
        model = _rebuilt(own, num_classes)
    head = fresh_head(owner.graph, owner.variables, key_head, num_classes=num_classes)
    start = owner if model is None else model.network(owner.variables)
    images = jax.ShapeDtypeStruct(np.shape(data.images)[1:], jnp.result_type(data.images))
    start = replace(start, variables=with_leaves(owner.variables, head), input_spec=images)
    try:
        found = start.num_classes
    except Exception as error:  # whatever the user's own function, or Flax, makes of a head of another shape
        raise TheftError(
            f"expected a model that takes {', '.join(sorted(head))} for {num_classes} classes and images of shape "
            f"{images.shape}, got {type(error).__name__}: {str(error).splitlines()[0]}; pass model=, its "
            "architecture with the new head"
        ) from error
    if found != num_classes:
        raise TheftError(f"expected {num_classes} logits from the new head, got {found}; pass another model=")
    copy, report = fine_tuning(start, data, key_tune, learning_rate=learning_rate, **tuning)
    return copy, report._replace(
        notes=(f"The head, {', '.join(sorted(head))}, was redrawn for {num_classes} classes.",)
    )


@functools.lru_cache(maxsize=64)
def _rebuilt(old: models.Model, num_classes: int) -> models.Model:
    """The architecture with another number of classes; always the same object, so that programs are shared."""
    return models.build(
        old.spec,
        num_classes=num_classes,
        input_shape=old.input_shape,
        mean=old.mean,
        std=old.std,
        dtype=old.module.dtype,
    )


@dataclass(frozen=True)
class Frozen:
    """A training-mode model of which some leaves are learned; gradients are taken of those alone.

    Its variables are `{"params": {path: leaf}, "rest": {path: leaf}}`.

    Attributes:
        train_fn: the whole model.
        structure: of its variables.
        paths: of its leaves, in order.
        learned: paths of the leaves that are learned.
    """

    train_fn: TrainFn
    structure: Any
    paths: tuple[str, ...]
    learned: frozenset[str]

    def split(self, variables: Variables) -> dict[str, dict[str, Any]]:
        """The whole model's variables in two parts."""
        parts: dict[str, dict[str, Any]] = {"params": {}, "rest": {}}
        for path, leaf in zip(self.paths, jax.tree.leaves(variables), strict=True):
            parts["params" if path in self.learned else "rest"][path] = leaf
        return parts

    def join(self, parts: Mapping[str, Mapping[str, Any]]) -> Any:
        """Undoes `split`."""
        leaves = {**parts["params"], **parts["rest"]}
        return jax.tree.unflatten(self.structure, [leaves[path] for path in self.paths])

    def __call__(self, variables: Variables, images: jax.Array) -> tuple[jax.Array, Variables]:
        """Logits, and the parts after the batch."""
        logits, after = self.train_fn(self.join(variables), images)
        return logits, self.split(after)


def last_layers(graph: ChannelGraph, count: int) -> tuple[Producer, ...]:
    """The layers that make the logits, which count as one, and `count` - 1 before them, the last first.

    Raises:
        TheftError: the model has fewer layers, or none that makes logits.
    """
    makers = [graph.producers[number] for number in sorted(graph.outputs)]
    others = [producer for number, producer in enumerate(graph.producers) if number not in graph.outputs]
    if not makers or not 1 <= count <= 1 + len(others):
        raise TheftError(
            f"expected 1 to {1 + len(others)} layers, of which {len(makers)} make logits, got layers={count}; take "
            "layers=1 for the head, or None for the whole model"
        )
    return (*makers, *others[::-1][: count - 1])


def parameters(graph: ChannelGraph, layers: Sequence[Producer]) -> frozenset[str]:
    """Paths of the leaves that layers learn: kernels, biases, and scale and bias of their own norms.

    Raises:
        TheftError: a leaf holds other layers as well.
    """
    views: list[LeafView | None] = []
    for layer in layers:
        views += [layer.kernel, layer.bias]
        if layer.affine is not None:
            affine = graph.affines[layer.affine]
            views += [affine.scale, affine.bias]
    found = [view for view in views if view is not None]
    for view in found:
        if not _is_whole(graph, view):
            raise TheftError(
                f"expected a leaf for each layer, got '{view.path}', of which {layers[0].name} is one part; store the "
                "layers apart, or take layers=None"
            )
    return frozenset(view.path for view in found)


def _is_whole(graph: ChannelGraph, view: LeafView) -> bool:
    """Whether a view covers all of its leaf."""
    shape = graph.program.shapes[graph.program.leaves[graph.program.paths.index(view.path)]]
    return view.index == tuple(slice(0, size) for size in shape)


def fresh_head(
    graph: ChannelGraph, variables: Variables, key: jax.Array, *, num_classes: int | None = None
) -> dict[str, jax.Array]:
    """New leaves for the layers that make the logits: kernels of variance 1 / fan-in (LeCun), biases of zero.

    A norm on the logits, if there is one, stays. `num_classes` is the old head's by default.

    Raises:
        TheftError: no layer makes the logits, or it shares its leaf with others.
    """
    leaves = numeric_leaves(variables)
    found: dict[str, jax.Array] = {}
    for number, layer in enumerate(last_layers(graph, 1)):
        for view in (layer.kernel, layer.bias):
            if view is None:
                continue
            if not _is_whole(graph, view) or (num_classes and len(view.axes) != 1):
                raise TheftError(
                    f"expected a head with a leaf of its own and one axis of classes, got {layer.name} in "
                    f"'{view.path}' at {layer.where}; store it apart"
                )
            old = jnp.asarray(leaves[view.path])
            shape = list(old.shape)
            if num_classes:
                shape[view.axes[0]] = num_classes
            new = jnp.zeros(shape)
            if view is layer.kernel:
                fan_in = old.size // math.prod(view.shape)
                new = jax.random.normal(jax.random.fold_in(key, number), shape) / math.sqrt(fan_in)
            found[view.path] = new.astype(old.dtype)
    return found


def with_leaves(variables: Variables, leaves: Mapping[str, Any]) -> Any:
    """A tree of the same structure in which the leaves at some paths are others, perhaps of other shapes."""
    old = zip(leaf_paths(variables), jax.tree.leaves(variables), strict=True)
    return jax.tree.unflatten(jax.tree.structure(variables), [leaves.get(path, leaf) for path, leaf in old])
