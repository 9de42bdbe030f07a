"""The trigger look: a network's responses to noise, and the smallest patch that leads to each class.

    features = trigger_features(graph, variables, key)                  # on noise
    features = trigger_features(graph, variables, key, images=images)   # on a few clean images

Neural Cleanse's descent on few images and steps: what counts here is how the classes compare, not that every patch is
the smallest there is. Features are summarised over the classes, in any order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import inversion
from jaxguard.graph import ChannelGraph
from jaxguard.inversion import Inversion
from jaxguard.kernels.spectrum import distribution
from jaxguard.scores import responses
from jaxguard.types import Variables

STEPS = 100
"""Most steps per class: an eighth of `invert`'s."""

IMAGES = 16
"""Images that a patch is sought on."""

SHAPE = ("mean", "std", "low", "high", "skewness")
"""What is kept of the distribution over the classes of the log of the patch's share of the image; that is the log of 1
where no patch leads to a class."""

INVERSION_NAMES = (
    *(f"inversion: log area: {part}" for part in SHAPE),
    "inversion: smallest log area",
    "inversion: smallest below the median",
    "inversion: smallest below the next",
    "inversion: anomaly index",
    "inversion: reached",
)
"""Names of the features of trigger inversion, in their order."""

NAMES = (*responses.NAMES, *INVERSION_NAMES)
"""Names of all features, in their order."""

LEAST_NORM = 0.5
"""Smaller patches count as this many pixels."""

LARGEST_INDEX = 20.0
"""Where the other classes are all alike, the index has no bound; above this it counts no further."""


def trigger_features(
    graph: ChannelGraph,
    variables: Variables,
    key: jax.Array,
    *,
    images: np.ndarray | None = None,
    steps: int = STEPS,
) -> np.ndarray:
    """Responses to noise and trigger inversion over all classes.

    Args:
        graph: the model's channel graph.
        variables: the model's.
        key: draws the first patches; one and the same for all models that are compared.
        images: clean ones, float `[N, H, W, C]` in [0, 1], the first 16 are used; noise where None. References and
            suspects must be given the same.
        steps: most steps per class.

    Returns:
        float32 `[G]`, named by `NAMES`.

    Raises:
        DataError: the images do not fit the model, or its inputs are no images.
        JaxguardError: the model's logits are not finite.
    """
    of_noise = responses.response_features(graph, variables)
    return np.concatenate([of_noise, inversion_features(inverted(graph, variables, key, images=images, steps=steps))])


def inverted(
    graph: ChannelGraph,
    variables: Variables,
    key: jax.Array,
    *,
    images: np.ndarray | None = None,
    steps: int = STEPS,
) -> Inversion:
    """Patches of all classes, sought briefly.

    Args:
        graph: the model's channel graph.
        variables: the model's.
        key: draws the first patches.
        images: see `trigger_features`.
        steps: most steps per class.

    Returns:
        The patches.

    Raises:
        DataError: the images do not fit the model, or its inputs are no images.
        JaxguardError: the model's logits are not finite.
    """
    if images is None:
        images = responses.noise_images(responses.image_shape(graph))
    return inversion.invert(graph.apply_fn, variables, np.asarray(images)[:IMAGES], None, key, steps=steps)


def inversion_features(found: Inversion) -> np.ndarray:
    """How the classes compare by their patches.

    Args:
        found: patches of all classes.

    Returns:
        float32 `[I]`, named by `INVERSION_NAMES`.

    Example:
        >>> masks = np.array([9, 1, 10, 11, 12.0]).reshape(5, 1, 1, 1) / 12
        >>> patches = Inversion(masks, masks, masks.ravel(), np.ones(5), np.ones(5, bool), np.ones(5, int))
        >>> named = dict(zip(INVERSION_NAMES, inversion_features(patches).tolist(), strict=True))
        >>> round(named["inversion: anomaly index"], 2), named["inversion: reached"]
        (6.07, 1.0)
    """
    pixels = found.masks[0].size
    # A class that every image is taken for, so that none is left to turn, needs no patch at all.
    norms = np.where(np.isnan(found.success), 0.0, np.where(found.reached, found.norms, pixels))
    areas = np.log(np.maximum(norms, LEAST_NORM) / pixels)
    summary = distribution(jnp.asarray(areas, jnp.float32))
    parts = [float(getattr(summary, part)) for part in SHAPE]
    smallest, following = np.sort(areas)[[0, min(1, len(areas) - 1)]]
    index = min(float(inversion.anomaly_index(norms).max()), LARGEST_INDEX)
    more = (smallest, np.median(areas) - smallest, following - smallest, index, found.reached.mean())
    return np.array([*parts, *more], np.float32)
