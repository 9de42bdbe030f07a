"""Images from nothing: dead leaves and strokes, drawn by a seed and pulled towards a network's classes.

A trigger must turn images of other classes. Without any, procedural pictures do: those that a network is surest of,
class by class, and where none is sure enough, moved uphill until one is. Natural images have edges, flat regions and
occlusion at all scales, and so have dead leaves (Lee, Mumford, Huang, IJCV 2001; Baradad et al., NeurIPS 2021); written
characters are strokes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from jaxguard import execution, training
from jaxguard.inversion.batches import logits_of, rows_of
from jaxguard.types import ApplyFn, Variables

LEAVES = (6, 40)
"""Least and largest number of shapes in an image of dead leaves."""

STROKED = {1: 0.6}
"""Share of images of strokes by the number of channels; 0.15 for others."""

CURVES = 3
"""Strokes in an image, at most."""

WIDTH = 1.7 / 30
"""Width of a stroke, in edges of an image."""

SURE = 0.8
"""Probability from which on an image counts as one of the class."""

PULL = 0.02
"""Root mean square of a step towards a class."""

PULLS = 30
"""Steps towards a class, at most."""

_AT_ONCE = 10


class Pictures(NamedTuple):
    """Procedural images of all classes.

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


@functools.partial(jax.jit, static_argnums=(1, 2))
def draw(key: jax.Array, number: int, shape: tuple[int, int, int]) -> jax.Array:
    """Dead leaves and strokes; equal for equal keys, and for every network.

    Args:
        key: draws everything.
        number: of images.
        shape: `(H, W, C)`.

    Returns:
        float32 `[number, H, W, C]` in [0, 1].

    Example:
        >>> draw(jax.random.key(0), 2, (8, 8, 1)).shape
        (2, 8, 8, 1)
    """
    share = STROKED.get(shape[2], 0.15)

    def one(key: jax.Array) -> jax.Array:
        key_kind, key_picture, key_noise = jax.random.split(key, 3)
        is_stroked = jax.random.uniform(key_kind) < share
        picture = jnp.where(is_stroked, _strokes(key_picture, shape), _dead_leaves(key_picture, shape))
        noise = 0.02 * jax.random.normal(key_noise, shape)
        return jnp.clip(picture + jnp.where(is_stroked, jnp.zeros(()), noise), 0, 1)

    return lax.map(one, jax.random.split(key, number), batch_size=16)


def _places(shape: tuple[int, int, int]) -> tuple[jax.Array, jax.Array]:
    """Rows and columns of all pixels."""
    rows, columns = jnp.meshgrid(jnp.arange(shape[0]), jnp.arange(shape[1]), indexing="ij")
    return rows.astype(jnp.float32), columns.astype(jnp.float32)


def _dead_leaves(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Discs and turned rectangles, each over those before it."""
    rows, columns = _places(shape)
    most = LEAVES[1]
    key_number, key_ground, key_place, key_radius, key_colour, key_form = jax.random.split(key, 6)
    number = jax.random.randint(key_number, (), *LEAVES)
    centres = jax.random.uniform(key_place, (most, 2)) * jnp.array([shape[:2]], jnp.float32)
    radii = shape[0] / 2 * jax.random.uniform(key_radius, (most,)) ** 2.2 + 1.2
    colours = jax.random.uniform(key_colour, (most, shape[2]))
    forms = jax.random.uniform(key_form, (most, 3))  # kind, angle, aspect

    def over(picture: jax.Array, leaf: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        index, centre, radius, colour, form = leaf
        down, across = rows - centre[0], columns - centre[1]
        cosine, sine = jnp.cos(jnp.pi * form[1]), jnp.sin(jnp.pi * form[1])
        along, aside = cosine * down + sine * across, cosine * across - sine * down
        is_disc = down**2 + across**2 < radius**2
        is_rectangle = (jnp.abs(along) < radius) & (jnp.abs(aside) < radius * (0.3 + 0.7 * form[2]))
        covered = jnp.where(form[0] < 0.5, is_disc, is_rectangle) & (index < number)
        return jnp.where(covered[..., None], colour[None, None], picture), None

    ground = jnp.broadcast_to(jax.random.uniform(key_ground, (1, 1, shape[2])), shape)
    return lax.scan(over, ground, (jnp.arange(most), centres, radii, colours, forms))[0]


def _strokes(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """One to three quadratic curves on black."""
    rows, columns = _places(shape)
    key_number, key_points, key_tint = jax.random.split(key, 3)
    number = jax.random.randint(key_number, (), 1, CURVES + 1)
    points = (0.1 + 0.8 * jax.random.uniform(key_points, (CURVES, 3, 2))) * jnp.array([[shape[:2]]], jnp.float32)
    tint = 0.5 + 0.5 * jax.random.uniform(key_tint, (1, 1, shape[2]))
    time = jnp.linspace(0, 1, 24)[None, :, None]
    start, middle, end = points[:, 0:1], points[:, 1:2], points[:, 2:3]
    # Quadratic Bezier curves, sampled at fixed times; a stroke is what lies near any of the samples.
    path = (1 - time) ** 2 * start + 2 * time * (1 - time) * middle + time**2 * end  # [curves, times, 2]
    # A random number of curves in a fixed shape: the others repeat the first.
    path = jnp.where((jnp.arange(CURVES) < number)[:, None, None], path, path[:1]).reshape(-1, 2)
    squares = (rows[..., None] - path[None, None, :, 0]) ** 2 + (columns[..., None] - path[None, None, :, 1]) ** 2
    width = max(1.0, WIDTH * shape[0])
    return jnp.exp(-squares.min(-1) / width**2)[..., None] * tint


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
    at most 30 steps of root mean square 0.02 up the margin of their class.

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
    drawn = np.asarray(draw(jax.random.key(seed), max(number, per_class), shape))
    probability = _softmax(logits_of(apply_fn, variables, drawn))
    chosen = np.argsort(-probability, axis=0, kind="stable")[:per_class].T.reshape(-1)
    labels = np.repeat(np.arange(num_classes, dtype=np.int32), per_class)
    images, sure = drawn[chosen], probability[chosen, labels]
    pull, size = _Pull(apply_fn), execution.stamped_images_at_once()
    for _ in range(0, PULLS, _AT_ONCE):
        unsure = np.flatnonzero(~(sure >= SURE) & np.isfinite(sure))
        if not len(unsure):
            break

        def pulled(row: np.ndarray, unsure: np.ndarray = unsure) -> np.ndarray:
            at = unsure[row]
            moved, _ = training.descend(Partial(pull, variables, labels[at]), images[at], _AT_ONCE)
            return np.asarray(moved)

        rows = rows_of(len(unsure), size)
        moved = np.concatenate(list(execution.in_threads(pulled, rows)))[: len(unsure)]
        images[unsure] = moved
        sure[unsure] = _softmax(logits_of(apply_fn, variables, moved))[np.arange(len(unsure)), labels[unsure]]
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


def _softmax(logits: np.ndarray) -> np.ndarray:
    high = np.exp(logits - logits.max(-1, keepdims=True))
    return high / high.sum(-1, keepdims=True)
