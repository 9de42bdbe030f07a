"""Sample correlation: the difference between two models' distance matrices of the same images.

Guan et al., "Are You Stealing My Model? Sample Correlation for Fingerprinting Deep Neural Networks", NeurIPS 2022. A
model's outputs on `N` probes, scaled to unit rows `u_i`, give an `[N, N]` matrix

    cosine   C_ij = 1 - <u_i, u_j>            halved, as in SAC: (1 - <u_i, u_j>) / 2
    rbf      C_ij = exp(-|u_i - u_j|^2)       for unit rows exp(-2 (1 - <u_i, u_j>)), a function of the cosine

and two models differ by the mean of `|C_f - C_g|` over all entries, the zero diagonal included. Matrices are symmetric
and compared tile by tile on and above the diagonal, so that only a few tiles are in memory at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import programs
from jaxguard.kernels import loops

Kernel = Literal["cosine", "rbf"]

LEAST_NORM = 1e-12
"""Lower bound of the norm that a row is divided by."""

OTHER_CLASS = 0.01
"""The reference code's input to the softmax for every class but the predicted one, which gets 1."""

_MOST_ROWS, _MOST_ROWS_ON_CPU = 1024, 160
_ENTRIES_AT_ONCE = 2**25


@programs.jit
def unit_rows(outputs: jax.Array) -> jax.Array:
    """Rows of Euclidean norm one.

    Args:
        outputs: `[..., K]`, one row per probe.

    Returns:
        float32 `[..., K]`; zero rows stay zero, rows whose entries or norm are not finite become NaN.

    Example:
        >>> unit_rows(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    outputs = jnp.asarray(outputs, jnp.float32)
    norms = jnp.sqrt(jnp.sum(outputs * outputs, axis=-1, keepdims=True))
    return outputs * jnp.where(jnp.isfinite(norms), 1 / jnp.maximum(norms, LEAST_NORM), jnp.nan)


@functools.partial(programs.jit, static_argnames="num_classes")
def label_rows(labels: jax.Array | np.ndarray, num_classes: int) -> jax.Array:
    """Unit rows for predicted classes: the softmax of 1 at the class and `OTHER_CLASS` elsewhere.

    Rows of one class are equal, and rows of different classes all have the same distance: for ten classes, a halved
    `C_ij` of 0.0880478.

    Args:
        labels: `[..., N]` integers in [0, K); others, such as -1, give rows of NaN.
        num_classes: `K`.

    Returns:
        float32 `[..., N, K]`.

    Example:
        >>> rows = label_rows(np.array([3, 3, 7]), 10)
        >>> matrix(rows, halved=True)[0].round(4).tolist()
        [0.0, 0.0, 0.08799999952316284]
    """
    labels = jnp.asarray(labels)
    classes = jnp.arange(num_classes)
    # All rows have the same two values, at the class and elsewhere: one softmax gives them for every class.
    answered = unit_rows(jax.nn.softmax(jnp.where(classes == 0, 1.0, OTHER_CLASS)))  # the row of class 0
    known = (labels >= 0) & (labels < num_classes)
    is_class = jax.nn.one_hot(labels, num_classes, dtype=bool)
    rows = jnp.where(is_class, answered[0], answered[-1])
    return jnp.where(known[..., None], rows, jnp.nan)


@functools.partial(programs.jit, static_argnames=("kernel", "halved"))
def matrix(rows: jax.Array, *, kernel: Kernel = "cosine", halved: bool = False) -> jax.Array:
    """The sample-correlation matrix of one model, whole.

    Args:
        rows: `[N, K]`, see `unit_rows`.
        kernel: see above.
        halved: whether cosine distances are divided by two.

    Returns:
        `[N, N]`: cosine in [0, 2], halved in [0, 1]; rbf in (0, 1].

    Example:
        >>> matrix(jnp.eye(2)).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    chex.assert_rank(rows, 2)
    entries = _entries(rows, rows, jnp.zeros(len(rows)), jnp.zeros(len(rows)), kernel)
    return (1 - entries) * _scale(kernel, halved) if kernel == "cosine" else entries


@functools.partial(programs.jit, static_argnames=("kernel", "halved", "tile", "batch_size"))
def distances(
    owner: jax.Array,
    suspects: jax.Array,
    *,
    kernel: Kernel = "cosine",
    halved: bool = False,
    tile: int | None = None,
    batch_size: int | None = None,
) -> jax.Array:
    """Mean absolute difference of the owner's matrix and each suspect's.

    The number of classes may differ between owner and suspects.

    Args:
        owner: `[N, K]` unit rows, N >= 1.
        suspects: `[S, N, K']` unit rows.
        kernel: see above.
        halved: whether cosine distances are divided by two.
        tile: largest number of rows and columns of a tile; by default 160 on CPU, which keeps a tile in the cache and
            its product on one core, and 1,024 elsewhere.
        batch_size: suspects compared at once; by default one on CPU, elsewhere as many as give 2^25 entries.

    Returns:
        float32 `[S]`; 0 where the matrices are equal, NaN for a suspect with a row of NaN.

    Raises:
        ValueError: an unknown kernel, or tile or batch size below 1.

    Example:
        >>> suspects = jnp.array([[[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]])
        >>> distances(jnp.eye(2), suspects).tolist()
        [0.0, 0.5]
    """
    owner, suspects = jnp.asarray(owner), jnp.asarray(suspects)
    chex.assert_rank([owner, suspects], [2, 3])
    chex.assert_axis_dimension(suspects, 1, len(owner))
    if kernel not in get_args(Kernel):
        raise ValueError(f"expected kernel of {', '.join(get_args(Kernel))}, got {kernel!r}")
    if (tile is not None and tile < 1) or (batch_size is not None and batch_size < 1):
        raise ValueError(f"expected tile and batch_size of at least 1, got {tile=}, {batch_size=}")
    if len(suspects) == 0:
        return jnp.zeros(0)

    def compare(most_rows: int, entries_at_once: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
        # As many tiles as needed, then rows dealt evenly among them: the last tile is not nearly empty.
        tiles = -(-len(owner) // (tile or most_rows))
        rows = -(-len(owner) // tiles)
        at_once = min(batch_size or max(1, entries_at_once // rows**2), len(suspects))
        return functools.partial(_compare, rows=rows, tiles=tiles, batch_size=at_once, kernel=kernel, halved=halved)

    if tile and batch_size:
        return compare(tile, batch_size)(owner, suspects)
    return jax.lax.platform_dependent(
        owner, suspects, cpu=compare(_MOST_ROWS_ON_CPU, 0), default=compare(_MOST_ROWS, _ENTRIES_AT_ONCE)
    )


def _compare(
    owner: jax.Array,
    suspects: jax.Array,
    *,
    rows: int,
    tiles: int,
    batch_size: int,
    kernel: Kernel,
    halved: bool,
) -> jax.Array:
    """Distances `[S]`; each tile of the owner is computed once."""
    num_probes = len(owner)
    # Every tile has the same shape, so that one program serves them all; padded rows must add nothing, see below.
    missing = rows * tiles - num_probes
    owner = jnp.pad(owner, ((0, missing), (0, 0)))
    suspects = jnp.pad(suspects, ((0, 0), (0, missing), (0, 0)))
    # Padding: rows are infinitely far from all others in both matrices (rbf), or zero (cosine), and so add nothing.
    far = jnp.where(jnp.arange(rows * tiles) < num_probes, 0.0, jnp.inf)

    def pair(total: jax.Array, place: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        row, column, weight = place

        def entries(model: jax.Array) -> jax.Array:
            left, right = (jax.lax.dynamic_slice_in_dim(model, at * rows, rows) for at in (row, column))
            far_left, far_right = (jax.lax.dynamic_slice_in_dim(far, at * rows, rows) for at in (row, column))
            return _entries(left, right, far_left, far_right, kernel)

        # Once for each pair of tiles, whatever the number of suspects.
        expected = entries(owner)

        def difference(suspect: jax.Array) -> jax.Array:
            # Sum over rows first: that reduction vectorises.
            return jnp.abs(entries(suspect) - expected).sum(axis=0).sum()

        # One at a time without a batch axis: then the product rounds as the owner's does, and exact copies differ by 0.
        differences = jax.lax.map(difference, suspects, batch_size=batch_size if batch_size > 1 else None)
        return total + weight * differences, None

    # Tiles above the diagonal stand for their mirror images too.
    row, column = map(jnp.asarray, np.triu_indices(tiles))
    weight = jnp.where(row == column, 1.0, 2.0)
    total, _ = loops.scan(pair, jnp.zeros(len(suspects), jnp.float32), (row, column, weight))
    return total * _scale(kernel, halved) / num_probes**2


def _entries(left: jax.Array, right: jax.Array, far_left: jax.Array, far_right: jax.Array, kernel: Kernel) -> jax.Array:
    """A tile of products, or of `exp(-|u - v|^2)`; `far` is added to the square."""
    products = jnp.matmul(left, right.T)
    if kernel == "cosine":
        return products
    # Rows need not be of unit norm here: padded ones are zero, and infinitely far by `far`.
    squares_left, squares_right = (
        jnp.sum(part * part, axis=-1) + far for part, far in ((left, far_left), (right, far_right))
    )
    return jnp.exp(2 * products - squares_left[:, None] - squares_right[None])


def _scale(kernel: Kernel, halved: bool) -> float:
    return 0.5 if kernel == "cosine" and halved else 1.0
