"""Haiku; nothing of it needs to be imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from jaxguard.adapters import modes
from jaxguard.adapters.leaves import replaced
from jaxguard.adapters.modes import Arguments
from jaxguard.types import Network, Outputs, Variables


@dataclass(frozen=True)
class Evaluation:
    """A transformed function's call; a value, so that networks of one function share graphs and compiled programs."""

    apply: Callable[..., Any]
    is_stateful: bool
    arguments: Arguments

    def __call__(self, variables: Variables, inputs: jax.Array) -> jax.Array:
        """Logits `[B, K]`."""
        return self.call(variables, inputs, None)[0]

    def call(self, variables: Variables, inputs: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Variables]:
        """Logits `[B, K]`, and the variables after the call."""
        arguments = dict(self.arguments)
        if not self.is_stateful:
            return self.apply(variables["params"], key, inputs, **arguments), variables
        logits, state = self.apply(variables["params"], variables["batch_stats"], key, inputs, **arguments)
        return logits, {**variables, "batch_stats": state}


@dataclass(frozen=True)
class Training:
    """The same in training mode; see `Evaluation`."""

    evaluation: Evaluation

    def __call__(self, variables: Variables, inputs: jax.Array) -> tuple[jax.Array, Variables]:
        """Logits `[B, K]`, and the variables with new running statistics."""
        return self.evaluation.call(variables, inputs, modes.random_key(inputs))


def from_haiku(
    transformed: Any, params: Any, state: Any, example: Any, *, outputs: Outputs | None = None, **arguments: Any
) -> Network:
    """The network of a transformed function in evaluation mode.

    Args:
        transformed: of `haiku.transform_with_state`, or of `haiku.transform`.
        params: its parameters.
        state: its state; None for `haiku.transform`.
        example: a batch of inputs `[B, ...]`, as an array or a `jax.ShapeDtypeStruct`; or the shape of one input.
        outputs: what the model returns: `classes`, a `sequence` of them, a `regression` or an `embedding`.
        **arguments: of the function in evaluation mode, such as `is_training=False`; they cannot be inferred. In
            training mode, `is_training` and its like are reversed.

    Returns:
        The network; its variables are `{"params": params, "batch_stats": state}`. It has no training mode where it has
        running statistics and no argument sets the mode.
    """
    is_stateful = state is not None
    variables = {"params": params, "batch_stats": state} if is_stateful else {"params": params}
    kept = tuple(sorted(arguments.items()))
    training = Training(Evaluation(transformed.apply, is_stateful, modes.training_arguments(kept)))
    has_mode = any(name in modes.MODES for name in arguments)
    return Network(
        variables,
        Evaluation(transformed.apply, is_stateful, kept),
        modes.input_spec(example),
        training if has_mode or not state else None,
        outputs,
    )


def to_haiku(network: Network, params: Any, state: Any = None) -> tuple[Any, Any]:
    """Parameters and state as Haiku takes them.

    Args:
        network: made by `from_haiku`.
        params: parameters of the model, whose structure is kept.
        state: its state; None for `haiku.transform`.

    Returns:
        `(params, state)`; the state is None where none was given.

    Raises:
        ArchitectureError: the leaves differ in number or shape.
    """
    new = network.variables["params"], network.variables.get("batch_stats")
    return replaced((params, state), new)
