"""How a model answers smooth noise, and how far one change of all images moves it towards each class. No data needed.

A backdoored model can be moved towards its target by one change that serves all images, whatever they show. The first
guess at such a change is the mean over images of the input gradient of the class's logit, less the mean logit. It is
taken as a step of fixed length, which a blended trigger answers, and by setting the few pixels of most promise to black
or white, which a patch answers. Both cost one gradient and one forward pass per class and image, a hundredth of what
the descents of `jaxguard.inversion` cost.

The images are smooth noise of several scales and brightnesses, the same for every model of an input shape.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import meshes
from jaxguard.errors import DataError
from jaxguard.graph import ChannelGraph
from jaxguard.kernels.spectrum import distribution
from jaxguard.types import ApplyFn, Variables
from jaxguard.types.network import count_classes

IMAGES = 48
"""Noise images that every model answers."""

CELLS = (4, 6, 8)
"""Random values along an edge, interpolated to the image's size."""

BRIGHTNESS = (0.3, 0.5)
"""Mean of an image's pixels before they are cut off at black and white."""

CONTRAST = 0.25
"""Their standard deviation."""

STEP = 0.18
"""Length of the step, root mean square over the pixels."""

SHARES = (0.035, 0.0625)
"""Of the pixels that are set."""

CHANGES = ("none", "step", *(f"{100 * share:.2g} % set" for share in SHARES))
"""What is done to the images."""

QUANTITIES = ("pull", *(f"{change}, {answer}" for change in CHANGES for answer in ("probability", "logit")))
"""Per class: length of the mean gradient; after each change the mean probability, and the mean logit above others."""

SHAPE = ("mean", "std", "largest", "high", "skewness")
"""What is kept of each quantity's distribution over the classes."""

NAMES = tuple(f"response: {quantity}: {part}" for quantity in QUANTITIES for part in SHAPE)
"""Names of the features, in their order."""


@functools.lru_cache(maxsize=8)
def noise_images(shape: tuple[int, int, int]) -> np.ndarray:
    """Smooth noise, equal for equal shapes.

    Args:
        shape: `(H, W, C)`.

    Returns:
        float32 `[IMAGES, H, W, C]` in [0, 1].
    """
    draw = np.random.default_rng(0)
    rows = []
    for number in range(IMAGES):
        cells = CELLS[number % len(CELLS)]
        brightness = BRIGHTNESS[number // len(CELLS) % len(BRIGHTNESS)]
        # A few random values, interpolated: images of low frequency, as natural ones are, rather than pixel noise.
        values = draw.normal(size=(cells, cells, shape[2])).astype(np.float32)
        smooth = np.asarray(jax.image.resize(values, shape, "cubic"))
        smooth = (smooth - smooth.mean()) / max(smooth.std(), 1e-6)
        rows.append(np.clip(brightness + CONTRAST * smooth, 0, 1))
    return np.stack(rows)


def response_features(graph: ChannelGraph, variables: Variables) -> np.ndarray:
    """Asymmetry of a model's classes in its answers to noise.

    Args:
        graph: the model's channel graph; it gives the shape of the images.
        variables: the model's.

    Returns:
        float32 `[R]`, named by `NAMES`.

    Raises:
        DataError: the model's inputs are no images.
    """
    rows = class_responses(graph, variables)
    found = distribution(jnp.asarray(rows))
    parts = {**found._asdict(), "largest": rows.max(1)}
    return np.stack([np.asarray(parts[part]) for part in SHAPE], axis=1).reshape(-1)


def class_responses(graph: ChannelGraph, variables: Variables) -> np.ndarray:
    """What `response_features` summarises.

    Args:
        graph: the model's channel graph.
        variables: the model's.

    Returns:
        float32 `[Q, K]`, rows named by `QUANTITIES`.

    Raises:
        DataError: the model's inputs are no images.
        GraphError: its outputs are no classes.
    """
    operand = jax.device_put((variables, noise_images(image_shape(graph))))
    labels = jnp.arange(count_classes(graph.logits))
    return meshes.chunk_by_chunk(ClassResponse(graph.apply_fn), operand, labels).T


def image_shape(graph: ChannelGraph) -> tuple[int, int, int]:
    """`(H, W, C)` of a model's images.

    Args:
        graph: the model's channel graph.

    Returns:
        The shape.

    Raises:
        DataError: the model's inputs are no images.
    """
    shape = graph.program.shapes[graph.program.images][1:]
    if len(shape) != 3:
        raise DataError(
            f"expected a model of images [H, W, C], got one of inputs {shape} in image_shape(); score its weights"
        )
    height, width, channels = shape
    return height, width, channels


@dataclass(frozen=True)
class ClassResponse:
    """What is asked of one class; a value, so that equal models share a compiled program.

    Attributes:
        apply_fn: the model in evaluation mode.
    """

    apply_fn: ApplyFn

    def __call__(self, operand: tuple[Variables, jax.Array], label: jax.Array) -> jax.Array:
        """`[Q]` of a class, named by `QUANTITIES`, of variables and images `[B, H, W, C]`."""
        return _answers(self.apply_fn, *operand, label)


def _answers(apply_fn: ApplyFn, variables: Variables, images: jax.Array, label: jax.Array) -> jax.Array:
    def lead(shift: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = apply_fn(variables, images + shift[None]).astype(jnp.float32)
        return (logits[:, label] - logits.mean(1)).mean(), logits

    # One shift for all images: its gradient is the direction that a universal trigger would take.
    gradient, logits = jax.grad(lead, has_aux=True)(jnp.zeros(images.shape[1:], images.dtype))
    pull = jnp.linalg.norm(gradient)
    # The root of the size turns a root mean square per pixel into a Euclidean length.
    step = STEP * gradient.size**0.5 * gradient / jnp.where(pull > 0, pull, 1)
    changed = [jnp.clip(images + step[None], 0, 1), *(_set(images, gradient, share) for share in SHARES)]
    # All changes in one batch: one forward pass instead of one for each.
    after = apply_fn(variables, jnp.concatenate(changed)).astype(jnp.float32).reshape(len(changed), *logits.shape)
    every = jnp.concatenate([logits[None], after])
    probability = jax.nn.softmax(every)[..., label].mean(1)
    # Relative to the other logits, since adding a constant to all of them changes no answer.
    height = (every[..., label] - every.mean(-1)).mean(1)
    return jnp.append(pull, jnp.stack([probability, height], axis=1).reshape(-1))


def _set(images: jax.Array, gradient: jax.Array, share: float) -> jax.Array:
    """The images with some pixels black or white: those of which the gradient promises most, as far as they can go."""
    mean = images.mean(0)
    # First order: gradient times the way to white or black, whichever the gradient points to.
    promise = jnp.where(gradient > 0, gradient * (1 - mean), -gradient * mean).sum(-1)
    count = max(1, round(share * promise.size))
    # A threshold rather than indices: the mask has a fixed shape, and ties are all set.
    least = jax.lax.top_k(promise.reshape(-1), count)[0][-1]
    return jnp.where((promise >= least)[..., None], (gradient > 0).astype(images.dtype), images)
