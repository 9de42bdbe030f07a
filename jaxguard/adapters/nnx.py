"""Flax NNX."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxguard.adapters import modes
from jaxguard.adapters.leaves import replaced
from jaxguard.adapters.modes import Arguments
from jaxguard.errors import ArchitectureError
from jaxguard.graph.program import leaf_paths
from jaxguard.types import Network, Outputs, Variables


@dataclass(frozen=True)
class Evaluation:
    """An NNX model's call; a value, so that models of one architecture share graphs and compiled programs.

    Attributes:
        definition: the model without its arrays.
        arguments: of the call.
        random: state of its random streams; without effect in evaluation mode.
    """

    definition: Any
    arguments: Arguments
    random: Any = field(compare=False)

    def __call__(self, variables: Variables, inputs: jax.Array) -> jax.Array:
        """Logits `[B, K]`."""
        return _merged(self.definition, variables, self.random)(inputs, **dict(self.arguments))


@dataclass(frozen=True)
class Training:
    """The same in training mode; see `Evaluation`."""

    definition: Any
    arguments: Arguments
    random: Any = field(compare=False)

    def __call__(self, variables: Variables, inputs: jax.Array) -> tuple[jax.Array, Variables]:
        """Logits `[B, K]`, and the variables with new running statistics."""
        seed = jax.random.bits(modes.random_key(inputs))

        def reseeded(leaf: jax.Array) -> jax.Array:
            return jax.random.fold_in(leaf, seed) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

        model = _merged(self.definition, variables, jax.tree.map(reseeded, self.random))
        logits = model(inputs, **dict(self.arguments))
        _, after, _ = _split(model)
        return logits, {**after, "params": variables["params"]}


def from_nnx(model: nnx.Module, example: Any, *, outputs: Outputs | None = None, **arguments: Any) -> Network:
    """The network of an NNX model in evaluation mode.

    Random streams (`nnx.Rngs`) are no variables of the network. In training mode they follow the contents of the batch.

    Args:
        model: in evaluation mode, unless the mode is an argument of its call, such as `train`; not modified.
        example: a batch of inputs `[B, ...]`, as an array or a `jax.ShapeDtypeStruct`; or the shape of one input.
        outputs: what the model returns: `classes`, a `sequence` of them, a `regression` or an `embedding`.
        **arguments: of the model's call. A mode among its parameters, such as `train` or `deterministic`, is set.

    Returns:
        The network; its variables are `{"params": ..., "batch_stats": ...}`, the latter all other arrays, if any.

    Raises:
        ArchitectureError: the model is in training mode.

    Example:
        >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 2, rngs=nnx.Rngs(1)))
        >>> network = from_nnx(model, (4,))
        >>> network.graph
        ChannelGraph(2 producers, 0 affines, 3 groups, 1 permutable)
        >>> to_nnx(network, model)
    """
    definition, variables, random = _split(model)
    kept = modes.evaluation_arguments(type(model).__call__, arguments)
    spec = modes.input_spec(example)
    _require_evaluation(Evaluation(definition, kept, random), variables, spec)
    trained = nnx.clone(model)
    trained.train()
    training = Training(nnx.split(trained)[0], modes.training_arguments(kept), random)
    return Network(variables, Evaluation(definition, kept, random), spec, training, outputs)


def to_nnx(network: Network, model: nnx.Module) -> None:
    """Gives a model the variables of a network, in place.

    Args:
        network: made from the model by `from_nnx`, or from another of the same architecture.
        model: updated; its mode and random streams stay.

    Raises:
        ArchitectureError: the leaves differ in number or shape.
    """
    _, params, random, others = nnx.split(model, nnx.Param, nnx.RngState, ...)
    own = {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(others)}
    new = replaced(own, network.variables)
    nnx.replace_by_pure_dict(params, new["params"])
    nnx.replace_by_pure_dict(others, new["batch_stats"])
    nnx.update(model, params, random, others)


def _split(model: nnx.Module) -> tuple[Any, dict[str, Any], Any]:
    """Definition, variables, and the state of random streams; the latter two in plain dictionaries."""
    definition, params, random, others = nnx.split(model, nnx.Param, nnx.RngState, ...)
    variables = {"params": nnx.to_pure_dict(params)}
    if others:
        variables["batch_stats"] = nnx.to_pure_dict(others)
    return definition, variables, nnx.to_pure_dict(random)


def _merged(definition: Any, variables: Variables, random: Any) -> Any:
    # From plain dictionaries: Variables that were made outside a trace may not be changed inside.
    return nnx.merge(definition, variables["params"], random, variables.get("batch_stats", {}))


def _require_evaluation(function: Evaluation, variables: Variables, spec: jax.ShapeDtypeStruct) -> None:
    """Refuses a model whose call changes its own state: BatchNorm its statistics, Dropout the count of its draws."""
    changed: list[str] = []

    def call(variables: Variables, random: Any, inputs: jax.Array) -> jax.Array:
        model = _merged(function.definition, variables, random)
        logits = model(inputs, **dict(function.arguments))
        before = {**variables, "random": random}
        _, after, drawn = _split(model)
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves({**after, "random": drawn}), strict=True)
        # While tracing, an array that was not replaced is the very same object.
        changed.extend(path for path, (old, new) in zip(leaf_paths(before), pairs, strict=True) if old is not new)
        return logits

    jax.eval_shape(call, variables, function.random, jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype))
    if changed:
        raise ArchitectureError(
            f"expected a model in evaluation mode, got one whose call changes {', '.join(changed[:3])}"
            f"{' and others' if len(changed) > 3 else ''} in from_nnx(); call model.eval() first"
        )
