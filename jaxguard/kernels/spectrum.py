"""A layer's channel bounds in a few numbers that do not depend on the order of its channels."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxguard.kernels import lipschitz


class Spectrum(NamedTuple):
    """What is kept of a layer's bounds; float32 scalars, NaN where no channel or no spread defines them.

    Attributes:
        undefined: channels without a score.
        mean: of the scores.
        std: of the scores, `ddof=1`.
        largest: the largest score.
        channel: which channel that is; -1 where none has a score.
        z: its z-score.
        above: channels above the mean by `u` standard deviations.
    """

    undefined: jax.Array
    mean: jax.Array
    std: jax.Array
    largest: jax.Array
    channel: jax.Array
    z: jax.Array
    above: jax.Array


def spectrum(scores: jax.Array, u: float = 3.0) -> Spectrum:
    """Summarise a layer.

    Args:
        scores: `[C]`, NaN where undefined.
        u: standard deviations above the mean from which a channel counts as standing out.

    Returns:
        The summary.

    Example:
        >>> found = spectrum(jnp.array([1.0, 1.0, 1.0, 5.0]), u=1.0)
        >>> float(found.mean), float(found.largest), int(found.channel), float(found.z), int(found.above)
        (2.0, 5.0, 3, 1.5, 1)
    """
    valid = jnp.isfinite(scores)
    mean, std = lipschitz.moments(scores)
    known = jnp.isfinite(mean)
    largest = jnp.max(jnp.where(valid, scores, -jnp.inf), initial=-jnp.inf)
    is_any = valid.any()
    z = jnp.where(std > 0, (largest - mean) / jnp.where(std > 0, std, 1), jnp.nan)
    return Spectrum(
        undefined=(~valid).sum().astype(jnp.float32),
        mean=jnp.where(known, mean, jnp.nan),
        std=jnp.where(known, std, jnp.nan),
        largest=jnp.where(is_any, largest, jnp.nan),
        channel=jnp.where(is_any, jnp.argmax(jnp.where(valid, scores, -jnp.inf)), -1).astype(jnp.float32),
        z=z,
        above=(valid & (scores > jnp.where(std == 0, mean, mean + u * std))).sum().astype(jnp.float32),
    )
