"""Poisoned training sets, and the test images that show whether the poison took."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.attacks.attack import Attack
from jaxguard.errors import DataError
from jaxguard.types import Batch


def poison(attack: Attack, batch: Batch, rate: float, key: jax.Array) -> tuple[Batch, jax.Array]:
    """Stamps and relabels a share of the whole set, drawn from all classes, the target's included.

    Where an attack has sources, the share is drawn from their images, and its cover images from the others.

    Args:
        attack: trigger and labels.
        batch: `N` training images, left untouched.
        rate: share in [0, 1] of the whole set; `round(rate * N)` images are poisoned, and
            `round(cover * round(rate * N))` more bear the trigger with their own label.
        key: draws them.

    Returns:
        The set with the stamped images in place, and a bool `[N]` that is True for them, cover images included.

    Raises:
        DataError: `rate` is out of range, the sources have too few images, or the trigger does not fit the images.

    Example:
        >>> from jaxguard.attacks import badnets
        >>> clean = Batch(jnp.zeros((20, 8, 8, 1)), jnp.arange(20) % 10)
        >>> poisoned, mask = poison(badnets(target=0), clean, 0.1, jax.random.key(0))
        >>> int(mask.sum()), poisoned.labels[mask].tolist()
        (2, [0, 0])

    Reference:
        Rates and indices as in BackdoorBench (Wu et al., NeurIPS 2022).
    """
    if not 0 <= rate <= 1:
        raise DataError(f"expected a rate in [0, 1], got {rate} in poison(rate=...); 10 % is 0.1")
    images, labels = jnp.asarray(batch.images), jnp.asarray(batch.labels)
    order = jax.random.permutation(key, len(labels))
    count = round(rate * len(labels))
    chosen = order[:count] if attack.sources is None else _drawn(attack, attack.sources, order, labels, count)
    poisoned = Batch(
        images.at[chosen].set(attack.stamp(images[chosen])),
        labels.at[chosen].set(attack.relabel(labels[chosen])),
    )
    return poisoned, jnp.zeros(len(labels), bool).at[chosen].set(True)


def _drawn(attack: Attack, sources: tuple[int, ...], order: jax.Array, labels: jax.Array, count: int) -> jax.Array:
    """Source images to poison and then cover images, as they are next in a random order."""
    is_source = np.isin(np.asarray(labels)[np.asarray(order)], sources)
    parts = []
    for kind, found, wanted in (("source", is_source, count), ("cover", ~is_source, round(attack.cover * count))):
        if wanted > found.sum():
            raise DataError(
                f"expected at least {wanted} {kind} images, got {found.sum()} in poison() of {attack.name}; "
                "lower rate or cover, or name more sources"
            )
        parts.append(order[np.flatnonzero(found)[:wanted]])
    return jnp.concatenate(parts)


def triggered(attack: Attack, test: Batch) -> Batch:
    """The test images on which the attack has something to change, stamped, with their true labels.

    Args:
        attack: trigger and labels.
        test: test images.

    Returns:
        All images whose label is not already the one the attacker wants.

    Raises:
        DataError: the trigger does not fit the images.

    Example:
        >>> from jaxguard.attacks import badnets
        >>> test = Batch(jnp.zeros((4, 8, 8, 1)), jnp.array([0, 1, 2, 0]))
        >>> triggered(badnets(target=0), test).labels.tolist()
        [1, 2]
    """
    labels = np.asarray(test.labels)
    chosen = np.flatnonzero(labels != np.asarray(attack.relabel(labels)))
    return Batch(attack.stamp(jnp.asarray(test.images)[chosen]), jnp.asarray(labels[chosen]))
