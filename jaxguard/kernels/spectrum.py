"""Summaries of channels or classes that do not depend on their order."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxguard import programs
from jaxguard.kernels import lipschitz


class Spectrum(NamedTuple):
    """Summary of a layer's bounds; float32 scalars, NaN without scores or spread to define them.

    Attributes:
        undefined: channels without a score.
        mean: of the scores.
        std: of the scores, `ddof=1`.
        largest: the largest score.
        channel: index of that channel; -1 if none has a score.
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


@programs.jit
def spectrum(scores: jax.Array, u: float = 3.0) -> Spectrum:
    """Summarises the scores of a layer.

    Args:
        scores: `[C]`, NaN where undefined.
        u: threshold for `above`, in standard deviations.

    Example:
        >>> found = spectrum(jnp.array([1.0, 1.0, 1.0, 5.0]), u=1.0)
        >>> float(found.mean), float(found.largest), int(found.channel), float(found.z), int(found.above)
        (2.0, 5.0, 3, 1.5, 1)
    """
    # `moments` gives an infinite mean where there are fewer than two scores: NaN is what a reader expects there.
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
        # With no spread the threshold is the mean itself, computed so that equal scores do not exceed it.
        above=(valid & (scores > jnp.where(std == 0, mean, mean + u * std))).sum().astype(jnp.float32),
    )


class Distribution(NamedTuple):
    """Summary of numbers; float32 scalars, or `[...]` for many rows, NaN with fewer than two finite numbers.

    Attributes:
        mean: of the numbers.
        std: of the numbers, `ddof=1`. If it is 0, so are all the following.
        low: the smallest, in standard deviations from the mean.
        high: the largest, in standard deviations from the mean.
        lead: difference between the largest and the second largest, in standard deviations.
        skewness: mean cube of the standardised numbers.
    """

    mean: jax.Array
    std: jax.Array
    low: jax.Array
    high: jax.Array
    lead: jax.Array
    skewness: jax.Array


@programs.jit
def distribution(values: jax.Array) -> Distribution:
    """Summarises each row of numbers.

    Args:
        values: `[..., N]`, N >= 1; those that are not finite are ignored.

    Example:
        >>> found = distribution(jnp.array([3.0, 1.0, 2.0, jnp.nan]))
        >>> float(found.mean), float(found.std), float(found.low), float(found.lead), float(found.skewness)
        (2.0, 1.0, -1.0, 1.0, 0.0)
    """
    valid = jnp.isfinite(values)
    count = valid.sum(-1, dtype=values.dtype)

    def average(numbers: jax.Array, divisor: jax.Array) -> jax.Array:
        return jnp.where(valid, numbers, 0).sum(-1) / jnp.maximum(divisor, 1)

    mean = average(values, count)
    off = values - mean[..., None]
    std = jnp.sqrt(average(off**2, count - 1))
    # The mean of equal numbers may be off by rounding: a spread that small counts as none.
    varies = std > 1e-6 * jnp.abs(mean)
    ratios = jnp.where(varies[..., None], off / jnp.where(varies, std, 1)[..., None], 0)
    known = jnp.where(valid, ratios, -jnp.inf)
    low, high = jnp.min(jnp.where(valid, ratios, jnp.inf), axis=-1), known.max(-1)
    # The second largest is the largest once one occurrence of the first is masked; no sort needed.
    is_first = jax.nn.one_hot(known.argmax(-1), values.shape[-1], dtype=bool)
    second = jnp.where(is_first, -jnp.inf, known).max(-1)
    found = (mean, jnp.where(varies, std, 0), low, high, high - second, average(ratios**3, count))
    return Distribution(*(jnp.where(count > 1, number, jnp.nan) for number in found))
