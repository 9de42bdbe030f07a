"""Spectral norms of many channels at once, by matrix products only.

The upper bound of a channel's Lipschitz constant (UCLC) of Zheng et al., "Data-free Backdoor Removal based on Channel
Lipschitzness", ECCV 2022, is `s_c * sigma_max(M_c)`: `M_c` is the channel's kernel as a `[taps, fan-in]` matrix and
`s_c = |gamma_c| / sqrt(var_c)` the scale of the BatchNorm behind it. `sigma_max` is the square root of the largest
eigenvalue of the smaller Gram matrix. Repeated squaring separates that eigenvalue from the rest, and a Rayleigh
quotient reads it off: no LAPACK, so it runs on every backend and in any number of programs at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

SQUARINGS = 16
_SQUARINGS_PER_SCALING = 2


def gram_matrices(kernel: jax.Array) -> jax.Array:
    """Gram matrices of the smaller side.

    Args:
        kernel: `[C, T, D]`; output channel, spatial tap, fan-in.

    Returns:
        `[C, S, S]` with `S = min(T, D)`.
    """
    chex.assert_rank(kernel, 3)
    equation = "ctd,csd->cts" if kernel.shape[1] <= kernel.shape[2] else "ctd,cte->cde"
    return jnp.einsum(equation, kernel, kernel, precision=jax.lax.Precision.HIGHEST)


def largest_eigenvalues(gram: jax.Array, *, squarings: int = SQUARINGS) -> jax.Array:
    """Largest eigenvalue of each symmetric positive semidefinite matrix.

    Args:
        gram: `[N, S, S]`.
        squarings: the power iterated to is `2 ** squarings`; the relative error is below `2 ** -(squarings + 2)`
            times the number of nearly equal eigenvalues.

    Returns:
        `[N]`; 0 for a zero matrix, NaN where an entry is not finite.
    """
    chex.assert_rank(gram, 3)
    if gram.shape[-1] == 1:
        return gram[:, 0, 0]
    power = _scaled(gram)
    for step in range(1, squarings + 1):
        power = jnp.matmul(power, power, precision=jax.lax.Precision.HIGHEST)
        if step % _SQUARINGS_PER_SCALING == 0:
            power = _scaled(power)
    # Every column of the limit is the leading eigenvector; the one with the largest diagonal entry is the safest.
    column = jnp.argmax(jnp.diagonal(power, axis1=-2, axis2=-1), axis=-1)
    vector = jnp.take_along_axis(power, column[:, None, None], axis=-1)[..., 0]
    image = jnp.einsum("nij,nj->ni", gram, vector, precision=jax.lax.Precision.HIGHEST)
    norm = jnp.sum(vector * vector, axis=-1)
    return jnp.sum(vector * image, axis=-1) / jnp.where(norm == 0, 1, norm)


def _scaled(matrix: jax.Array) -> jax.Array:
    """Divide by the trace, which keeps the largest eigenvalue within `[1/S, 1]`."""
    trace = jnp.trace(matrix, axis1=-2, axis2=-1)[:, None, None]
    return matrix / jnp.where(trace == 0, 1, trace)


def spectral_norms(kernels: Sequence[jax.Array], *, squarings: int = SQUARINGS) -> list[jax.Array]:
    """Largest singular value of every channel of many layers; layers with equal Gram sizes share one batch.

    Args:
        kernels: `[C, T, D]` each; output channel, spatial tap, fan-in.
        squarings: see `largest_eigenvalues`.

    Returns:
        `[C]` for each layer.

    Example:
        >>> kernel = jnp.array([[[3.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
        >>> spectral_norms([kernel])[0].tolist()
        [3.0, 0.0]
    """
    grams = [gram_matrices(kernel) for kernel in kernels]
    by_size: dict[int, list[int]] = defaultdict(list)
    for layer, gram in enumerate(grams):
        by_size[gram.shape[-1]].append(layer)
    norms: list[jax.Array] = [jnp.zeros(0)] * len(grams)
    for layers in by_size.values():
        stacked = jnp.concatenate([grams[layer] for layer in layers])
        values = jnp.sqrt(largest_eigenvalues(stacked, squarings=squarings))
        end = 0
        for layer in layers:
            start, end = end, end + grams[layer].shape[0]
            norms[layer] = values[start:end]
    return norms


def affine_scales(scale: jax.Array | None, var: jax.Array | None, *, eps: float = 0.0) -> jax.Array:
    """`|gamma| / sqrt(var + eps)` per channel; the reference leaves `eps` out.

    Args:
        scale: `[C]` gamma, 1 where None.
        var: `[C]` running variance, 1 where None.
        eps: added to the variance.

    Returns:
        `[C]`; NaN where the variance is zero, negative or not finite, because no score is defined there.
    """
    magnitude = 1.0 if scale is None else jnp.abs(scale)
    if var is None:
        return jnp.asarray(magnitude)
    return jnp.where(var + eps > 0, magnitude / jnp.sqrt(jnp.where(var + eps > 0, var + eps, 1)), jnp.nan)


def thresholds(scores: jax.typing.ArrayLike, u: jax.Array | float) -> jax.Array:
    """CLP's per-layer threshold `mean + u * std`, std with `ddof=1`, over the channels that have a score.

    Args:
        scores: `[C]`, NaN where undefined.
        u: how many standard deviations; scalar or `[U]` for a sweep.

    Returns:
        Shape of `u`; infinite where fewer than two channels have a score.
    """
    scores = jnp.asarray(scores)
    valid = jnp.isfinite(scores)
    count = valid.sum()
    mean = jnp.where(valid, scores, 0).sum() / jnp.maximum(count, 1)
    deviation = jnp.where(valid, scores - mean, 0)
    std = jnp.sqrt((deviation * deviation).sum() / jnp.maximum(count - 1, 1))
    return jnp.where(count > 1, mean + jnp.asarray(u) * std, jnp.inf)
