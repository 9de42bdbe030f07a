"""AKH, the Anna Karenina heuristic: right answers are all alike, but every model is wrong in its own way.

The probes are images that the owner's model misclassifies; the score is the share on which a suspect gives the same
wrong class. This is the simplest fingerprint and the baseline for all others: its authors find it on par with far more
complex ones.

Godinot et al.: Queries, Representation, Detection: The Next 100 Model Fingerprinting Schemes, AAAI 2025.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxguard.fingerprints import owner_images
from jaxguard.fingerprints.protocol import Fingerprint, Owner, Probes, factory
from jaxguard.methods import Count
from jaxguard.training import Progress


@factory
def akh(*, num_probes: Count = 100, least: Count = owner_images.LEAST) -> Fingerprint:
    """Shared mistakes; the score is the share of the owner's wrong classes that a suspect gives too.

    Args:
        num_probes: images to query; if the owner makes fewer mistakes, all of them, with a note.
        least: fewest mistakes to accept.

    Returns:
        The fingerprint. Making probes raises FingerprintError if the owner has no labelled data or makes too few
        mistakes on it.

    Example:
        >>> import numpy as np
        >>> from jaxguard.types import Batch, Network
        >>> brightest = lambda variables, images: images.reshape(len(images), -1)
        >>> owner = Owner(Network({}, brightest, (3, 1, 1)), Batch(np.eye(3).reshape(3, 3, 1, 1), np.array([1, 2, 2])))
        >>> method = akh(num_probes=2, least=2)
        >>> probes = method.make(owner, jax.random.key(0))
        >>> own = brightest({}, jnp.asarray(probes.images))
        >>> signatures = method.signature_fn(probes, jnp.stack([own, own.at[0].set(0), -own]))
        >>> method.distance_fn(probes, signatures[0], signatures)[0]
        Array(1., dtype=float32)
    """

    def make(owner: Owner, key: jax.Array, progress: Progress | None) -> Probes:
        del progress
        mistakes = owner_images.misclassified(owner, num_probes, key, method="akh", least=least)
        return Probes(mistakes.images, {"labels": mistakes.answers}, owner_images.notes(mistakes, num_probes))

    return Fingerprint(
        make_fn=make,
        signature_fn=lambda probes, outputs: jnp.where(jnp.isnan(outputs).any(-1), -1, outputs.argmax(-1)),
        distance_fn=lambda probes, owner, suspects: _share(owner[None], suspects),
        stolen="high",
        sees="copies that keep the owner's mistakes: fine-tuned, pruned, quantised or extracted.",
        blind="copies with other classes, and copies retrained until they make other mistakes.",
        answers="labels",
    )


def _share(owner: jax.Array, suspects: jax.Array) -> jax.Array:
    return ((suspects == owner) & (owner >= 0)).mean(-1, dtype=jnp.float32)
