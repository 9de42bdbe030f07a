"""How unequal a model's classes are in the layer that gives the logits.

A trigger needs a way to its target: channels that stand for it, and a row of the last layer that collects them. The
target's row then is longer, has more positive weights, and points away from the others. Which class that is does not
matter, so every quantity is summarised over the classes, whatever their order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxguard.graph import ChannelGraph
from jaxguard.graph.program import numeric_leaves
from jaxguard.kernels.division import or_one
from jaxguard.kernels.spectrum import distribution
from jaxguard.types import Variables

QUANTITIES = ("length", "positive part", "mean", "cosine", "bias")
"""Of each class's row: log of its norm after the mean row is taken away, log of the norm of its positive weights, their
mean, mean cosine to the other rows, and the bias."""

SHAPE = ("std", "high", "skewness")
"""What is kept of each quantity's distribution over the classes."""

NAMES = tuple(f"head: {quantity} {part}" for quantity in QUANTITIES for part in SHAPE)
"""Names of the features, in their order."""


def head_features(graph: ChannelGraph, variables: Variables) -> jax.Array:
    """Asymmetry of the classes in the output layer.

    Several layers whose sum is the logits count as one. All but the bias is relative to the layer's own root mean
    square, so that no feature but the bias's spread changes when the logits are scaled.

    Args:
        graph: the model's channel graph.
        variables: arrays or tracers.

    Returns:
        float32 `[H]`, named by `NAMES`; NaN where no layer gives the logits.
    """
    num_classes = graph.program.shapes[graph.program.logits][-1]
    outputs = [k for k in sorted(graph.outputs) if graph.producers[k].channels == num_classes]
    if not outputs:
        return jnp.full(len(NAMES), jnp.nan)
    kernels = graph.kernels(variables)
    leaves = numeric_leaves(variables)
    # Logits that are a sum of layers are one layer whose inputs lie side by side.
    rows = jnp.concatenate([kernels[k].reshape(num_classes, -1) for k in outputs], axis=1).astype(jnp.float32)
    views = [graph.producers[k].bias for k in outputs]
    biases = [view.read(leaves[view.path]).astype(jnp.float32) for view in views if view is not None]
    # Zeros that are distributed over devices as the rows are, which constants would not be.
    none = jnp.where(rows[:, 0] > 0, 0.0, 0.0)
    return asymmetry(rows, sum(biases, none))


def asymmetry(rows: jax.Array, bias: jax.Array) -> jax.Array:
    """Of the rows themselves.

    Args:
        rows: float32 `[K, D]`, one per class.
        bias: `[K]`, 0 where there is none.

    Returns:
        `[H]`, named by `NAMES`; NaN for a single class.

    Example:
        >>> found = dict(zip(NAMES, asymmetry(jnp.eye(4), jnp.zeros(4)).tolist(), strict=True))
        >>> found["head: length std"], found["head: mean skewness"]
        (0.0, 0.0)
    """
    rows = rows / or_one(jnp.sqrt(jnp.mean(rows**2)))
    quantities = (
        # Softmax does not see what all rows have in common: only the differences count.
        _log_norm(rows - rows.mean(0, keepdims=True)),
        _log_norm(jnp.maximum(rows, 0)),
        rows.mean(1),
        _mean_cosines(rows),
        bias,
    )
    found = distribution(jnp.stack(quantities))
    return jnp.stack([getattr(found, part) for part in SHAPE], axis=1).reshape(-1)


def _log_norm(rows: jax.Array) -> jax.Array:
    """Half the log of the mean square, and that of a weight a millionth of the layer's where all are zero."""
    return 0.5 * jnp.log(jnp.mean(rows**2, axis=1) + 1e-12)


def _mean_cosines(rows: jax.Array) -> jax.Array:
    units = rows / or_one(jnp.linalg.norm(rows, axis=1, keepdims=True))
    # The sum of all cosines in a row is a product with the sum of all units; the row's own, 1 or 0, is taken away.
    squares = jnp.sum(units**2, axis=1)
    return (units @ units.sum(0) - squares) / max(len(rows) - 1, 1)
