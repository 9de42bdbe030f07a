"""Evaluation and training mode where it is an argument of the call, and randomness that is a function of the inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MODES = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "inference": True,
    "use_running_average": True,
}
"""Argument that sets the mode -> its value in evaluation mode."""

Arguments = tuple[tuple[str, Any], ...]
"""Keyword arguments of a call as a hashable value."""


def evaluation_arguments(call: Callable[..., Any], given: Mapping[str, Any]) -> Arguments:
    """Keyword arguments with which a model is called in evaluation mode.

    Args:
        call: the model's own function; its parameters named in `MODES` are set.
        given: by the caller; they take precedence.

    Returns:
        The arguments.

    Example:
        >>> evaluation_arguments(lambda x, train, scale=1: x, {"scale": 2})
        (('scale', 2), ('train', False))
    """
    parameters = inspect.signature(call).parameters
    modes = {name: value for name, value in MODES.items() if name in parameters}
    return tuple(sorted((modes | dict(given)).items()))


def training_arguments(arguments: Arguments) -> Arguments:
    """The same call in training mode.

    Args:
        arguments: in evaluation mode.

    Returns:
        The arguments with every mode reversed.
    """
    return tuple((name, not MODES[name] if name in MODES else value) for name, value in arguments)


def input_spec(example: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of one input.

    Args:
        example: a batch `[B, ...]`, as an array or a `jax.ShapeDtypeStruct`; or the shape of one input, for float32.

    Returns:
        Without the batch axis.

    Example:
        >>> input_spec(np.zeros((2, 8, 8, 3), np.float32)) == input_spec((8, 8, 3))
        True
    """
    if isinstance(example, tuple):
        return jax.ShapeDtypeStruct(example, np.float32)
    return jax.ShapeDtypeStruct(example.shape[1:], example.dtype)


def random_key(inputs: jax.Array) -> jax.Array:
    """A key drawn from the contents of a batch.

    A training step stays a pure function of variables and images, and Dropout still differs from batch to batch.

    Args:
        inputs: `[B, ...]`.

    Returns:
        A typed key.
    """
    bits = jax.lax.bitcast_convert_type(inputs.astype(jnp.float32), jnp.uint32)
    return jax.random.key(bits.sum(dtype=jnp.uint32))
