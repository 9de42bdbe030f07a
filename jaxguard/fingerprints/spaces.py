"""Spaces in which outputs are compared.

SAC's papers compare raw logits. For an API that returns probabilities there is `probs`, or `clr`, the centred log-ratio
`log p - mean(log p)`, which equals the logits up to a constant per image.
"""

import jax
import jax.numpy as jnp

from jaxguard.fingerprints.protocol import Space

LEAST_PROBABILITY = 1e-12
"""Lower clip of probabilities before a logarithm."""


def to_space(outputs: jax.Array, space: Space, *, given: Space = "logits") -> jax.Array:
    """Converts outputs from one space to another.

    Args:
        outputs: `[..., K]`.
        space: of the result.
        given: of `outputs`.

    Returns:
        float32 `[..., K]`.

    Raises:
        ValueError: logits cannot be recovered from `probs` or `clr`, which have lost their offset.

    Example:
        >>> to_space(jnp.array([[0.0, 2.0]]), "clr").tolist()
        [[-1.0, 1.0]]
    """
    outputs = jnp.asarray(outputs, jnp.float32)
    if space == given:
        return outputs
    if space == "logits":
        raise ValueError(f"expected logits, got {given}, which do not determine them; pass space='clr'")
    if space == "probs":
        return jax.nn.softmax(outputs, axis=-1)
    # Centred log-ratios: probabilities and logits of one model agree in them, since the log-partition cancels.
    logs = jnp.log(jnp.maximum(outputs, LEAST_PROBABILITY)) if given == "probs" else outputs
    return logs - logs.mean(-1, keepdims=True)
