"""Largest eigenvalues of many small symmetric matrices at once, by matrix products only.

Repeated squaring separates the largest eigenvalue from the rest, and a Rayleigh quotient evaluates it: without LAPACK,
so it runs on every backend and in several programs at once.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxguard import programs
from jaxguard.kernels import loops
from jaxguard.kernels.division import or_one

# The power iterated to is 2^16: an eigenvalue within 1e-4 of the largest is suppressed by about e^-6.
SQUARINGS = 16
# Three squarings take the largest eigenvalue from 1/S or more to S^-8 or more, which float32 holds for S < 50,000.
_SQUARINGS_PER_SCALING = 3
# Up to this size a product is unrolled into sums over vectors, above it is one batched product.
_MOST_UNROLLED = 16
# Entries of the matrices that are squared together on CPU: they stay in a core's nearest cache, and XLA gives a product
# of that size to one core: waiting for another would take longer than the product.
_BLOCK = 9 * 9 * 64


@functools.partial(programs.jit, static_argnames="squarings")
def largest(gram: jax.Array, *, squarings: int = SQUARINGS) -> jax.Array:
    """Largest eigenvalue of each symmetric positive semidefinite matrix.

    Args:
        gram: `[S, S, N]`.
        squarings: the power iterated to is `2 ** squarings`; the result is too small by at most
            `2 ** -(squarings + 2)`, relative, for each eigenvalue close below the largest, and by rounding.

    Returns:
        `[N]`; 0 for a zero matrix, NaN where an entry is not finite.
    """
    size, _, _ = gram.shape
    if size == 1:
        # A 1x1 matrix is its own eigenvalue: depthwise kernels with one tap, and dense layers of fan-in one.
        return gram[0, 0]
    compute_fn = functools.partial(_by_squaring, squarings=squarings)
    is_large = gram.size > 2 * _BLOCK and size <= _MOST_UNROLLED
    on_cpu = {"cpu": functools.partial(_by_block, compute_fn)} if is_large else {}
    return jax.lax.platform_dependent(gram, default=compute_fn, **on_cpu)


def _by_block(compute_fn: Callable[[jax.Array], jax.Array], gram: jax.Array) -> jax.Array:
    """Results `[N]` of matrices `[S, S, N]`, block by block: on CPU, what is read repeatedly stays in the cache."""
    size, _, number = gram.shape
    width = _BLOCK // size**2
    blocks = -(-number // width)
    padded = jnp.pad(gram, ((0, 0), (0, 0), (0, blocks * width - number)))

    def block(first: jax.Array) -> jax.Array:
        return compute_fn(jax.lax.dynamic_slice_in_dim(padded, first, width, axis=2))

    return jax.lax.map(block, width * jnp.arange(blocks)).reshape(-1)[:number]


def _by_squaring(gram: jax.Array, squarings: int) -> jax.Array:
    def squared(power: jax.Array, times: int) -> jax.Array:
        for _ in range(times):
            # Without the barrier XLA fuses the products and recomputes every factor for each product that uses it.
            power = jax.lax.optimization_barrier(_product(power, power))
        return _scaled(power)

    # Scale before every few squarings: eigenvalues of unscaled powers would overflow after a handful.
    rounds, rest = divmod(squarings, _SQUARINGS_PER_SCALING)
    power = squared(_scaled(gram), rest)
    power = loops.fori_loop(0, rounds, lambda _, power: squared(power, _SQUARINGS_PER_SCALING), power)
    # The Rayleigh quotient of all columns at once: eigenvalue i weighs in with its (2 * 2**squarings)-th power.
    return jnp.sum(power * _product(gram, power), axis=(0, 1)) / or_one(jnp.sum(power * power, axis=(0, 1)))


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Matrix products of `[S, S, N]`.

    Small ones are `S` multiply-adds over vectors of length `N`: on CPU that takes half as long as a batched product.
    """
    size = left.shape[0]
    if size > _MOST_UNROLLED:
        return jnp.einsum("ikn,kjn->ijn", left, right)
    return functools.reduce(operator.add, [left[:, k, None] * right[None, k] for k in range(size)])


def _scaled(matrix: jax.Array) -> jax.Array:
    """Divide by the trace, which keeps the largest eigenvalue within `[1/S, 1]`."""
    return matrix / or_one(trace(matrix))[None, None]


def trace(matrix: jax.Array) -> jax.Array:
    """Sums of diagonals.

    Args:
        matrix: `[S, S, N]`.

    Returns:
        `[N]`.
    """
    # jnp.trace reads all of a matrix.
    if not 0 < matrix.shape[0] <= _MOST_UNROLLED:
        return jnp.trace(matrix)
    return functools.reduce(operator.add, [matrix[k, k] for k in range(matrix.shape[0])])
