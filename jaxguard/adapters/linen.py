"""Flax Linen."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
from flax import linen as nn

from jaxguard.adapters import modes
from jaxguard.adapters.modes import Arguments
from jaxguard.types import Network, Outputs, Variables


@dataclass(frozen=True)
class Evaluation:
    """A Linen module's call; a value, so that models of one architecture share graphs and compiled programs."""

    module: nn.Module
    arguments: Arguments

    def __call__(self, variables: Variables, inputs: jax.Array) -> jax.Array:
        """Logits `[B, K]`."""
        return self.module.apply(variables, inputs, **dict(self.arguments))  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Training:
    """The same in training mode; see `Evaluation`."""

    module: nn.Module
    arguments: Arguments

    def __call__(self, variables: Variables, inputs: jax.Array) -> tuple[jax.Array, Variables]:
        """Logits `[B, K]`, and the variables with new running statistics."""
        rngs = {"dropout": modes.random_key(inputs)}
        mutable = [name for name in variables if name != "params"]
        logits, updates = self.module.apply(variables, inputs, rngs=rngs, mutable=mutable, **dict(self.arguments))
        return logits, {**variables, **updates}


def from_linen(
    module: nn.Module, variables: Variables, example: Any, *, outputs: Outputs | None = None, **arguments: Any
) -> Network:
    """The network of a Linen module in evaluation mode; its variables are the module's, as they are.

    Args:
        module: unbound.
        variables: of `module.init`, `{"params": ..., "batch_stats": ...}`.
        example: a batch of inputs `[B, ...]`, as an array or a `jax.ShapeDtypeStruct`; or the shape of one input.
        outputs: what the model returns: `classes`, a `sequence` of them, a `regression` or an `embedding`.
        **arguments: of the module's call. A mode among its parameters, such as `train` or `deterministic`, is set.

    Returns:
        The network. It has no training mode where the module has running statistics and no such parameter.

    Example:
        >>> module = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
        >>> network = from_linen(module, module.init(jax.random.key(0), jax.numpy.ones((1, 4))), (4,))
        >>> network.graph
        ChannelGraph(2 producers, 0 affines, 3 groups, 1 permutable)
    """
    kept = modes.evaluation_arguments(type(module).__call__, arguments)
    has_mode = any(name in modes.MODES for name, _ in kept)
    evaluation, training = Evaluation(module, kept), Training(module, modes.training_arguments(kept))
    apply_fn, train_fn = _hashable(evaluation), _hashable(training)
    is_stateless = set(variables) == {"params"}
    known_fn = train_fn if has_mode or is_stateless else None
    return Network(variables, apply_fn, modes.input_spec(example), known_fn, outputs)


def _hashable(function: Any) -> Any:
    """The function itself, or one hashed by identity where a field of the module, such as a list, has no hash."""
    try:
        hash(function)
    except TypeError:
        return functools.partial(type(function).__call__, function)
    return function
