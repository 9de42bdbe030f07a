"""Division where the divisor may be zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def or_one(divisor: jax.Array) -> jax.Array:
    """The divisor, 1 where it is 0: a zero divided by it stays zero, in gradients too.

    Choosing after the division, `where(divisor == 0, 0, x / divisor)`, would leave NaN in the gradient.

    Args:
        divisor: of any shape.

    Example:
        >>> or_one(jnp.array([0.0, 2.0])).tolist()
        [1.0, 2.0]
    """
    return jnp.where(divisor == 0, 1, divisor)
