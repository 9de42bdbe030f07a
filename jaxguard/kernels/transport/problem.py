"""What is to be transported where, and at what cost."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxguard import programs


class Problem(NamedTuple):
    """A transport problem, or a stack of equal size.

    Attributes:
        cost: `[..., N, M]`, distances in a metric space.
        source: `[..., N]` masses >= 0 that sum to 1.
        target: `[..., M]` likewise.
        source_ties: `[..., N]` int, the same for channels that are equal.
        target_ties: `[..., M]` likewise.
    """

    cost: Any
    source: Any
    target: Any
    source_ties: Any
    target_ties: Any

    @property
    def stack(self) -> tuple[int, ...]:
        """Sizes of the leading axes."""
        return np.shape(self.cost)[:-2]

    def flat(self) -> Problem:
        """The same problems along one leading axis."""
        depth = len(self.stack)
        return Problem(*(part.reshape(-1, *part.shape[depth:]) for part in self))


def problem(
    cost: jax.typing.ArrayLike,
    source: jax.typing.ArrayLike | None,
    target: jax.typing.ArrayLike | None,
    source_ties: jax.typing.ArrayLike | None,
    target_ties: jax.typing.ArrayLike | None,
) -> Problem:
    """A problem with its defaults filled in: uniform masses, no ties.

    Args:
        cost: `[..., N, M]`.
        source: `[..., N]` masses of any sum, or None.
        target: `[..., M]` likewise.
        source_ties: `[..., N]` int, or None.
        target_ties: `[..., M]` likewise.

    Returns:
        The problem; its cost is the array that was given, the rest NumPy's unless it is traced.

    Raises:
        ValueError: masses of the wrong shape; where they are not traced, also negative, not finite or all zero.
    """
    cost = cost if isinstance(cost, jax.Array) else np.asarray(cost)
    *stack, rows, columns = cost.shape

    def labels(ties: jax.typing.ArrayLike | None, size: int) -> Any:
        if ties is not None and is_traced(ties):
            return jnp.broadcast_to(ties, (*stack, size))
        return np.broadcast_to(np.arange(size) if ties is None else np.asarray(ties), (*stack, size))

    return Problem(
        cost,
        _masses(source, (*stack, rows), "source"),
        _masses(target, (*stack, columns), "target"),
        labels(source_ties, rows),
        labels(target_ties, columns),
    )


def is_traced(*values: Any) -> bool:
    """Whether a value is not known yet, inside a transformed function."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values))


def _masses(masses: jax.typing.ArrayLike | None, shape: tuple[int, ...], name: str) -> Any:
    if masses is None:
        return np.full(shape, 1 / shape[-1])
    found = jnp.asarray(masses) if is_traced(masses) else np.asarray(masses, np.float64)
    if found.shape[-1:] != shape[-1:] or found.ndim > len(shape):
        raise ValueError(f"expected {name} masses of shape {shape}, got {found.shape} in transport.solve()")
    total = found.sum(-1, keepdims=True)
    if is_traced(masses):
        return jnp.broadcast_to(found / total, shape)
    if not (np.isfinite(found).all() and (found >= 0).all() and (total > 0).all()):
        raise ValueError(
            f"expected finite {name} masses >= 0 with a positive sum, got {found.min():g} to {found.max():g} in "
            "transport.solve(); leave them out for uniform ones"
        )
    return np.broadcast_to(found / total, shape)


@programs.jit
def distances(source: jax.typing.ArrayLike, target: jax.typing.ArrayLike) -> jax.Array:
    """Euclidean distances between channels, in full float32 precision.

    Args:
        source: `[N, F]`, one row per channel.
        target: `[M, F]`.

    Returns:
        `[N, M]`; exactly 0 on the diagonal where the rows are equal, which the matrix product alone would blur.

    Example:
        >>> distances(jnp.array([[0.0, 0.0], [0.0, 1.0]]), jnp.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
        [[5.0, 1.0], [4.2..., 0.0]]
    """
    source, target = (jnp.asarray(x, jnp.float32) for x in (source, target))
    product = jnp.matmul(source, target.T)
    # |a - b|^2 expanded: one matrix product instead of N x M differences of length F. Cancellation may leave small
    # negative squares, which the maximum removes.
    squares = jnp.sum(source**2, 1)[:, None] + jnp.sum(target**2, 1)[None] - 2 * product
    found = jnp.sqrt(jnp.maximum(squares, 0))
    shared = min(source.shape[0], target.shape[0])
    equal = jnp.pad(jnp.all(source[:shared] == target[:shared], 1), (0, source.shape[0] - shared))
    return jnp.where(jnp.eye(*found.shape, dtype=bool) & equal[:, None], 0, found)


def equal_rows(points: jax.typing.ArrayLike) -> Any:
    """Label of each row, the same for rows that are equal in every entry: the ties of a plan.

    Args:
        points: `[N, F]`.

    Returns:
        `[N]` int, the number of the first row that is equal.

    Example:
        >>> equal_rows(np.array([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0]])).tolist()
        [0, 1, 0]
    """
    if is_traced(points):
        # Sorting, as below, takes a comparison of whole rows; here all pairs are compared, N at a time.
        rows = jnp.asarray(points)
        return jax.lax.map(lambda row: jnp.argmax((rows == row[None]).all(-1)), rows)
    rows = np.asarray(points) + 0.0  # -0.0 is 0.0
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]
