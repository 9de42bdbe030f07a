"""The images that triggers are searched on: a user's, procedural ones, or ones made from BatchNorm statistics."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from jaxguard.errors import DataError
from jaxguard.inversion import procedural
from jaxguard.inversion.batches import logits_of, require_labels, require_unit_range
from jaxguard.inversion.synthesis import synthesise
from jaxguard.types import Network

FEWEST = 20
"""Clean images that a search can be made on."""


class KnownImages(NamedTuple):
    """Images whose classes are known.

    Attributes:
        images: `[N, H, W, C]` in [0, 1].
        labels: int `[N]`.
        reached: share that the network is sure of, of images made for it; NaN of a user's.
        source: what they are, in words.
    """

    images: np.ndarray
    labels: np.ndarray
    reached: float
    source: str


def made(network: Network, per_class: int, *, synthesised: bool = False, seed: int = 0) -> KnownImages:
    """Images for a network, without data.

    Args:
        network: of images.
        per_class: images of each class.
        synthesised: see `jaxguard.inversion.synthesise`; procedural ones otherwise.
        seed: draws them.

    Returns:
        At most about 200 of all classes, or of some of many.

    Raises:
        JaxguardError: the network's logits are not finite, of synthesised images.
    """
    num_classes = network.num_classes
    if not synthesised:
        shape = network.input_spec.shape
        found = procedural.pictures(
            network.apply_fn, network.variables, shape, num_classes, per_class=per_class, seed=seed
        )
        some = len(np.unique(found.labels))
        of_some = f" of {some} classes" if some < num_classes else ""
        return KnownImages(found.images, found.labels, found.reached, f"{len(found.labels)} procedural images{of_some}")
    classes = procedural.chosen_classes(num_classes, per_class, seed)
    labels = np.repeat(classes, per_class)
    found = synthesise(network.graph, network.variables, jax.random.key(seed), labels=labels)
    sure = procedural.softmax(logits_of(network.apply_fn, network.variables, found.images))
    reached = float((sure[np.arange(len(labels)), labels] >= procedural.SURE).mean())
    return KnownImages(found.images, found.labels, reached, found.source)


def given(
    network: Network, images: np.ndarray | jax.Array, labels: np.ndarray | jax.Array | None = None
) -> KnownImages:
    """A user's images, checked.

    Args:
        network: that they are for.
        images: `[N, H, W, C]` in [0, 1], 20 or more.
        labels: int `[N]`; None for the network's own answers.

    Raises:
        DataError: they do not fit.
    """
    known, shape = np.asarray(images, np.float32), tuple(network.input_spec.shape)
    if known.ndim != 4 or known.shape[1:] != shape or len(known) < FEWEST:
        raise DataError(f"expected {FEWEST} or more images {shape}, got {known.shape} in search(); resize or add some")
    require_unit_range(known, "search")
    if labels is None:
        wanted = logits_of(network.apply_fn, network.variables, known).argmax(-1)
    else:
        wanted = np.asarray(labels).astype(np.int64)
        require_labels(wanted, len(known), network.num_classes, "search")
    return KnownImages(known, wanted, float("nan"), f"{len(known)} clean images")
