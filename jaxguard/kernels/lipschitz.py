"""Spectral norms of many channels at once, by matrix products only.

The upper bound of a channel's Lipschitz constant (UCLC) of Zheng et al., "Data-free Backdoor Removal based on Channel
Lipschitzness", ECCV 2022, is `s_c * sigma_max(M_c)`: `M_c` is the channel's kernel as a `[taps, fan-in]` matrix and
`s_c = |gamma_c| / sqrt(var_c)` the scale of the BatchNorm after it. `sigma_max` is the square root of the largest
eigenvalue of the smaller Gram matrix.
"""

from __future__ import annotations

import functools
import operator
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import programs
from jaxguard.kernels import eigenvalues, loops
from jaxguard.kernels.division import or_one

# The next power of two above 1e37 is still finite in float32, and so is its reciprocal.
_LARGEST_DIVISOR = 1e37
# Squared norms in this range are far from where float32 overflows or loses digits.
_HARMLESS = (1e-24, 1e30)
# Sums by slabs are for CPU, from 2^15 entries on and for at most 9 rows (a 3x3 window); fan-in positions of a slab.
_LARGE, _MOST_ROWS, _SLAB = 2**15, 9, 8


@programs.jit
def gram_matrices(kernel: jax.Array) -> jax.Array:
    """Gram matrices of the smaller side.

    Args:
        kernel: `[T, D, C]`; spatial tap, fan-in, output channel: the memory layout of a convolution's kernel.

    Returns:
        `[S, S, C]` with `S = min(T, D)`.
    """
    rows = _smaller_side_first(kernel)
    size, depth, _ = rows.shape
    if size > _MOST_ROWS:
        return _grams_by_product(rows)
    on_cpu = {"cpu": _grams_by_slab} if rows.size >= _LARGE and depth % _SLAB == 0 else {}
    return jax.lax.platform_dependent(rows, tpu=_grams_by_vector, default=_grams_by_product, **on_cpu)


def _smaller_side_first(kernel: jax.Array) -> jax.Array:
    rows, depth, _ = kernel.shape
    return kernel if rows <= depth else kernel.swapaxes(0, 1)


def _grams_by_product(rows: jax.Array) -> jax.Array:
    return _grams_of_matrices(jnp.moveaxis(rows, -1, 0))


def _grams_of_matrices(matrices: jax.Array) -> jax.Array:
    """Gram matrices `[S, S, C]` of the smaller side of `[C, A, B]`."""
    summed = "csd,ctd->stc" if matrices.shape[1] <= matrices.shape[2] else "cds,cdt->stc"
    return jnp.einsum(summed, matrices, matrices)


def _grams_of_channels(kernel: jax.Array) -> jax.Array:
    """Gram matrices `[S, S, C]` of the smaller side of a kernel `[C, A, B]` that has its channels first in memory."""
    if min(kernel.shape[1:]) > _MOST_ROWS:
        return _grams_of_matrices(kernel)
    return jax.lax.platform_dependent(kernel, tpu=_grams_of_transposed, default=_grams_of_matrices)


def _grams_of_transposed(kernel: jax.Array) -> jax.Array:
    """For a TPU, whose memory pads a last axis of nine taps to 128: the channels become the last axis at once."""
    channels, height, width = kernel.shape
    last = kernel.reshape(channels, height * width).T.reshape(height, width, channels)
    return _grams_by_vector(_smaller_side_first(last))


def _grams_by_vector(rows: jax.Array) -> jax.Array:
    """Sums of products over vectors of channels; on a TPU batched products copy thin matrices into padded layouts."""
    return (rows[:, None] * rows[None]).sum(2)


def _grams_by_slab(rows: jax.Array) -> jax.Array:
    """Sums of products over vectors of channels, in the kernel's memory layout, each pair of rows once.

    On CPU a batched product of thin matrices takes several times as long. Every number is read `S` times, so a slab is
    small enough to stay in a core's cache.
    """
    size, depth, channels = rows.shape

    def step(number: jax.Array, sums: jax.Array) -> jax.Array:
        slab = jax.lax.dynamic_slice_in_dim(rows, number * _SLAB, _SLAB, axis=1)
        # Each row with itself and the next ones, of each fan-in position: [S, S // 2 + 1, C].
        positions = [jax.lax.index_in_dim(slab, k, axis=1, keepdims=False) for k in range(_SLAB)]
        return functools.reduce(operator.add, [rows[:, None] * _next_rows(rows) for rows in positions], sums)

    sums = jnp.zeros((size, size // 2 + 1, channels), rows.dtype)
    sums = loops.fori_loop(0, depth // _SLAB, step, sums)
    # Of rows s and t, either t is among the next rows of s, or s is among those of t.
    first, second = np.indices((size, size))
    offset = (second - first) % size
    is_next = offset <= size // 2
    return sums[np.where(is_next, first, second), np.where(is_next, offset, size - offset)]


def _next_rows(rows: jax.Array) -> jax.Array:
    """Of each row itself and the `S // 2` rows behind it, around the end: `[S, C] -> [S, S // 2 + 1, C]`."""
    size, channels = rows.shape
    # Rows that repeat without end and are read `S + 1` at a time begin one row later each time.
    endless = jnp.broadcast_to(rows[None], (size + 1, size, channels)).reshape(-1, channels)
    return jax.lax.slice_in_dim(endless.reshape(size, size + 1, channels), 0, size // 2 + 1, axis=1)


def spectral_norms(
    kernels: Sequence[jax.Array], *, channels_first: Collection[int] = (), squarings: int = eigenvalues.SQUARINGS
) -> list[jax.Array]:
    """Largest singular value of every channel of many layers; layers with equal Gram sizes share one batch.

    Channels of extreme magnitude are divided by it first, so that no square overflows or underflows.

    Args:
        kernels: `[C, T, D]` each; output channel, spatial tap, fan-in; or `[C, D, T]`, which has the same norms.
        channels_first: indices of kernels whose memory layout is `[C, ...]`, as PyTorch's; the others have the
            channels as the last axis in memory, as Flax's. On CPU a wrong entry triples the time that the norms take.
        squarings: see `jaxguard.kernels.eigenvalues.largest`.

    Returns:
        `[C]` for each layer; 0 for a dead channel, NaN where an entry is not finite. Right at every scale of normal
        float32 numbers: entries below 1.2e-38 may count as zero, a norm above 3.4e38 is infinite.

    Example:
        >>> kernel = jnp.array([[[3.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
        >>> spectral_norms([kernel])[0].tolist()
        [3.0, 0.0]
    """
    # What lies first in memory must stay first: transposing it would cost more than all the rest.
    grams = [
        scaled_grams(
            kernel if k in channels_first else jnp.moveaxis(kernel, 0, -1), is_channels_first=k in channels_first
        )
        for k, kernel in enumerate(kernels)
    ]
    return norms_of(grams, squarings=squarings)


@functools.partial(programs.jit, static_argnames="squarings")
def norms_of(grams: Sequence[Grams], *, squarings: int = eigenvalues.SQUARINGS) -> list[jax.Array]:
    """Largest singular values from Gram matrices; equal sizes share a batch.

    Args:
        grams: of `scaled_grams`, one for each layer.
        squarings: see `jaxguard.kernels.eigenvalues.largest`.

    Returns:
        `[C]` for each layer, see `spectral_norms`.
    """
    # One batch per Gram size: a few long loops instead of one short loop per layer.
    by_size: dict[int, list[int]] = defaultdict(list)
    for layer, (matrices, _) in enumerate(grams):
        by_size[matrices.shape[0]].append(layer)
    norms: list[jax.Array] = [jnp.zeros(0)] * len(grams)
    for layers in by_size.values():
        stacked = jnp.concatenate([grams[layer].matrices for layer in layers], axis=-1)
        values = jnp.sqrt(eigenvalues.largest(stacked, squarings=squarings))
        end = 0
        for layer in layers:
            start, end = end, end + grams[layer].scales.shape[0]
            norms[layer] = values[start:end] * grams[layer].scales
    return norms


class Grams(NamedTuple):
    """Gram matrices of a layer's channels.

    Attributes:
        matrices: `[S, S, C]` divided by the square of the scale.
        scales: `[C]`, 1 if no square overflows or underflows, else a power of two, which divides exactly.
    """

    matrices: jax.Array
    scales: jax.Array


@functools.partial(programs.jit, static_argnames="is_channels_first")
def scaled_grams(kernel: jax.Array, *, is_channels_first: bool) -> Grams:
    """Gram matrices without overflow or underflow.

    Kernels of harmless magnitude are not scaled: finding and dividing by the largest entries would double the cost.

    Args:
        kernel: `[C, A, B]`, or `[A, B, C]`, in memory order.
        is_channels_first: which of the two.
    """
    make_fn = _grams_of_channels if is_channels_first else gram_matrices
    gram = make_fn(kernel)
    # The branches get a matrix: a TPU pads the three axes of small kernels to many times their size.
    shape, axis = kernel.shape, int(is_channels_first)
    flat = kernel.reshape((shape[0], -1) if is_channels_first else (-1, shape[-1]))
    # The trace bounds the largest eigenvalue from above, and every square that went into the matrix.
    squares = eigenvalues.trace(gram)
    harmless = loops.in_all(jnp.all((squares > _HARMLESS[0]) & (squares < _HARMLESS[1])))

    def divided(flat: jax.Array, gram: jax.Array) -> Grams:
        del gram
        scale = _unit(jnp.max(jnp.abs(flat), axis=axis, initial=0))
        return Grams(make_fn((flat / jnp.expand_dims(scale, axis)).reshape(shape)), scale)

    def as_is(flat: jax.Array, gram: jax.Array) -> Grams:
        return Grams(gram, jnp.ones_like(squares))

    # A branch, not a select: the common case never finds the largest entries.
    return jax.lax.cond(harmless, as_is, divided, flat, gram)


def _unit(largest: jax.Array) -> jax.Array:
    """Power of two that brings numbers of that magnitude near one; exact to divide by, and so is its reciprocal."""
    largest = jax.lax.stop_gradient(largest)  # what is divided by it is multiplied by it again
    clipped = jnp.minimum(largest, _LARGEST_DIVISOR)
    # Without the bits of its mantissa, a number is the power of two below it. jnp.frexp is refused by explicit sharding
    # under vmap in JAX 0.12.
    info = jnp.finfo(clipped.dtype)
    bits = jax.lax.bitcast_convert_type(clipped, f"uint{info.bits}")
    below = jax.lax.bitcast_convert_type(bits >> info.nmant << info.nmant, clipped.dtype)
    power = jnp.where(below > 0, 2 * below, 1)
    # An infinite or NaN magnitude gives NaN, which marks its channel.
    return jnp.where(jnp.isfinite(largest), power, jnp.nan)


def affine_scales(scale: jax.Array | None, var: jax.Array | None, *, eps: float = 0.0) -> jax.Array:
    """`|gamma| / sqrt(var + eps)` per channel; the reference code omits `eps`.

    Args:
        scale: `[C]` gamma, 1 where None.
        var: `[C]` running variance, 1 where None.
        eps: added to the variance.

    Returns:
        `[C]`, or a scalar 1 if both are None; NaN, for no score, where the variance is zero, denormal, negative or not
        finite.
    """
    # A negative gamma flips the channel's sign, which a Lipschitz bound does not see.
    magnitude = jnp.asarray(1.0 if scale is None else jnp.abs(scale))
    if var is None:
        return magnitude
    # Denormal variances flush to zero on some backends: they count as none on all, so that scores agree.
    valid = (var + eps >= jnp.finfo(var.dtype).tiny) & jnp.isfinite(var)
    return jnp.where(valid, magnitude / jnp.sqrt(jnp.where(valid, var + eps, 1)), jnp.nan)


@programs.jit
def thresholds(scores: jax.typing.ArrayLike, u: jax.typing.ArrayLike) -> jax.Array:
    """CLP's per-layer threshold `mean + u * std`, std with `ddof=1`, over the channels that have a score.

    Args:
        scores: `[C]`, NaN where undefined.
        u: number of standard deviations; scalar or `[U]` for a sweep.

    Returns:
        Shape of `u`; infinite if fewer than two channels have a score, exactly the score if all are equal.
    """
    mean, std = moments(jnp.asarray(scores))
    return jnp.where(std == 0, mean, mean + jnp.asarray(u) * std)


@programs.jit
def z_scores(scores: jax.typing.ArrayLike) -> jax.Array:
    """Distance of each channel above the layer's mean, in the layer's standard deviations (`ddof=1`).

    Args:
        scores: `[C]`, NaN where undefined.

    Returns:
        `[C]`; NaN for channels without a score, and for all if the layer has no spread.
    """
    mean, std = moments(jnp.asarray(scores))
    return jnp.where(std > 0, (jnp.asarray(scores) - mean) / or_one(std), jnp.nan)


@programs.jit
def moments(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation (`ddof=1`) of the finite scores.

    Args:
        scores: `[C]`, NaN where undefined.

    Returns:
        Two scalars; infinity and 0 if fewer than two scores are finite.
    """
    valid = jnp.isfinite(scores)
    count = valid.sum(dtype=scores.dtype)
    # Scores near the limits of float32 would overflow when squared; a power of two scales them without rounding.
    unit = _unit(jnp.max(jnp.where(valid, jnp.abs(scores), 0), initial=0))
    ratios = jnp.where(valid, scores / unit, 0)

    def average(values: jax.Array, divisor: jax.Array) -> jax.Array:
        return jnp.where(valid, values, 0).sum() / jnp.maximum(divisor, 1)

    mean = average(ratios, count)
    # Add the mean of the remainders: the mean of equal scores becomes exact, so that none of them exceeds it.
    mean = mean + average(ratios - mean, count)
    std = jnp.sqrt(average((ratios - mean) ** 2, count - 1))
    return jnp.where(count > 1, mean * unit, jnp.inf), jnp.where(count > 1, std * unit, 0)
