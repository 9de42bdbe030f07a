"""Images from nothing: drawings pulled towards a network's classes.

A trigger must turn images of other classes. Without any, procedural pictures do: those that a network is surest of,
class by class, and where none is sure enough, moved uphill until one is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxguard import execution, memory, meshes, training
from jaxguard.inversion import drawings
from jaxguard.inversion.batches import logits_of, rows_of
from jaxguard.types import ApplyFn, Variables

SURE = 0.8
"""Probability from which on an image counts as one of the class."""

PULL = 0.02
"""Root mean square of a step towards a class."""

PULLS = 30
"""Steps towards a class, at most."""

MOST = 200
"""Images that are made, about: of more classes than have room, random ones stand for all."""

_AT_ONCE = 10


class Pictures(NamedTuple):
    """Procedural images of all classes, or of some of many.

    Attributes:
        images: `[N, H, W, C]` in [0, 1], class by class, equally many of each.
        labels: int32 `[N]`, the classes they are meant to be.
        probability: `[N]` that the network gives them.
    """

    images: np.ndarray
    labels: np.ndarray
    probability: np.ndarray

    @property
    def reached(self) -> float:
        """Share of the images that the network is sure of."""
        return float((self.probability >= SURE).mean())


def pictures(
    apply_fn: ApplyFn,
    variables: Variables,
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    per_class: int = 10,
    number: int = 400,
    seed: int = 0,
) -> Pictures:
    """Procedural images of every class of a network.

    For every class the images to which the network gives it the highest probability, of `number`. Those below 0.8 take
    at most 30 steps of root mean square 0.02 up the margin of their class. Of more classes than 200 images have room
    for, as many as they have, drawn by the seed: a thousand classes cost no more than a hundred.

    Args:
        apply_fn: model in evaluation mode, normalisation included.
        variables: its variables.
        shape: `(H, W, C)`.
        num_classes: `K`.
        per_class: images of each class.
        number: of images to choose from; at least `per_class`.
        seed: of the images.

    Returns:
        The images; they are NaN nowhere, even if the network is.
    """
    drawn = drawings.draw(seed, max(number, per_class), shape)
    probability = softmax(logits_of(apply_fn, variables, drawn))
    classes = chosen_classes(num_classes, per_class, seed)
    chosen = np.argsort(-probability[:, classes], axis=0, kind="stable")[:per_class].T.reshape(-1)
    labels = np.repeat(classes, per_class)
    images, sure = drawn[chosen], probability[chosen, labels]
    pull, bytes_each = _Pull(apply_fn), memory.of_gradient(apply_fn, variables, shape)
    size = execution.stamped_images_at_once(bytes_each)
    for _ in range(0, PULLS, _AT_ONCE):
        unsure = np.flatnonzero(~(sure >= SURE) & np.isfinite(sure))
        if not len(unsure):
            break

        def pulled(row: np.ndarray, unsure: np.ndarray = unsure) -> np.ndarray:
            at = unsure[row]
            moved, _ = training.descend(
                Partial(pull, variables, meshes.spread(labels[at])),
                meshes.spread(images[at]),
                _AT_ONCE,
            )
            return np.asarray(moved)

        rows, threads = rows_of(len(unsure), size), execution.searches_at_once(size * bytes_each)
        moved = np.concatenate(list(execution.in_threads(pulled, rows, threads=threads)))[: len(unsure)]
        images[unsure] = moved
        sure[unsure] = softmax(logits_of(apply_fn, variables, moved))[np.arange(len(unsure)), labels[unsure]]
    return Pictures(images, labels, np.nan_to_num(sure))


@dataclass(frozen=True)
class _Pull:
    """One step up the margin of each image's class, for those that are not sure yet."""

    apply_fn: ApplyFn

    def __call__(
        self, variables: Variables, labels: jax.Array, images: jax.Array, index: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        del index

        def margin_fn(images: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = self.apply_fn(variables, images).astype(jnp.float32)
            is_own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
            margin = jnp.where(is_own, logits, 0).sum(-1) - jnp.where(is_own, -jnp.inf, logits).max(-1)
            return margin.sum(), jnp.where(is_own, jax.nn.softmax(logits), 0).sum(-1)

        gradient, sure = jax.grad(margin_fn, has_aux=True)(images)
        # Steps of equal size in every image, whatever the slope of its logits.
        rms = jnp.sqrt(jnp.square(gradient).mean((1, 2, 3), keepdims=True))
        step = jnp.where(rms > 0, PULL * gradient / jnp.where(rms > 0, rms, 1), 0)
        moved = jnp.clip(images + step, 0, 1)
        return jnp.where((sure < SURE)[:, None, None, None], moved, images), {"sure": sure.mean()}


def chosen_classes(num_classes: int, per_class: int, seed: int) -> np.ndarray:
    """int32, the classes that images are made of: all, or random ones of more than 200 images have room for."""
    classes = np.arange(num_classes, dtype=np.int32)
    if num_classes * per_class <= MOST:
        return classes
    return np.sort(np.random.default_rng(seed).permutation(classes)[: max(MOST // per_class, 1)])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities `[..., K]`."""
    high = np.exp(logits - logits.max(-1, keepdims=True))
    return high / high.sum(-1, keepdims=True)
