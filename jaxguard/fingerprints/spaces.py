"""Spaces that a model's outputs are compared in.

SAC's papers compare raw logits. An API that gives probabilities allows `probs`, or `clr`, the centred log-ratio
`log p - mean(log p)`, which is the logits up to a constant per image.
"""

import jax
import jax.numpy as jnp

from jaxguard.fingerprints.protocol import Space

LEAST_PROBABILITY = 1e-12
"""Probabilities below this count as this, where a logarithm is taken."""


def to_space(outputs: jax.Array, space: Space, *, given: Space = "logits") -> jax.Array:
    """Outputs of one space in another.

    Args:
        outputs: `[..., K]`.
        space: wanted.
        given: what `outputs` are; logits cannot be had from probabilities, except centred.

    Returns:
        float32 `[..., K]`.

    Raises:
        ValueError: logits are wanted of what has lost their offset.

    Example:
        >>> to_space(jnp.array([[0.0, 2.0]]), "clr").tolist()
        [[-1.0, 1.0]]
    """
    outputs = jnp.asarray(outputs, jnp.float32)
    if space == given:
        return outputs
    if space == "logits":
        raise ValueError(f"expected logits, got {given}, from which they cannot be had; take space='clr'")
    if space == "probs":
        return jax.nn.softmax(outputs, axis=-1)
    logs = jnp.log(jnp.maximum(outputs, LEAST_PROBABILITY)) if given == "probs" else outputs
    return logs - logs.mean(-1, keepdims=True)
