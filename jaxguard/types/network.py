"""A neural network as one value."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxguard.graph import ChannelGraph, channel_graph
from jaxguard.graph.program import ApplyFn, Variables
from jaxguard.types.data import TrainFn


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["variables"], meta_fields=["apply_fn", "input_spec", "train_fn"]
)
@dataclass(frozen=True, eq=False)
class Network:
    """Variables and the pure functions that use them; everything in jaxguard takes a network in this form.

    A network is a pytree whose leaves are its variables, so it passes through `jax.jit`, `jax.vmap` and `jax.grad`.

    Attributes:
        variables: pytree of arrays, for Flax `{"params": ..., "batch_stats": ...}`; never modified in place.
        apply_fn: `(variables, inputs [B, ...]) -> logits [B, K]`, in evaluation mode.
        input_spec: shape and dtype of one input, without the batch axis; a plain shape, such as `(32, 32, 3)`, means
            float32.
        train_fn: `(variables, inputs) -> (logits, variables)` in training mode; None where it is not known.

    Example:
        >>> mlp = lambda v, x: jax.nn.relu(x @ v["w1"]) @ v["w2"]
        >>> v = {"w1": np.ones((4, 8), np.float32), "w2": np.ones((8, 2), np.float32)}
        >>> network = Network(v, mlp, (4,))
        >>> network.graph, network.num_classes
        (ChannelGraph(2 producers, 0 affines, 3 groups, 1 permutable), 2)
    """

    variables: Variables
    apply_fn: ApplyFn
    input_spec: jax.ShapeDtypeStruct
    train_fn: TrainFn | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.input_spec, jax.ShapeDtypeStruct):
            object.__setattr__(self, "input_spec", jax.ShapeDtypeStruct(tuple(self.input_spec), np.float32))

    def __call__(self, inputs: Any) -> jax.Array:
        """Logits `[B, K]` of inputs `[B, ...]`, in evaluation mode."""
        return self.apply_fn(self.variables, inputs)

    @property
    def graph(self) -> ChannelGraph:
        """The channel graph, derived once for all networks of equal functions, shapes and inputs.

        Raises:
            GraphError: it cannot be derived.
            UnscorableError: the network has no convolution or dense layer.
        """
        leaves, structure = jax.tree.flatten(self.variables)
        specs = tuple((tuple(np.shape(leaf)), np.dtype(leaf.dtype)) for leaf in leaves)
        return _graph(self.apply_fn, structure, specs, self.input_spec)

    @property
    def num_classes(self) -> int:
        """`K`, the number of logits per input."""
        inputs = jax.ShapeDtypeStruct((1, *self.input_spec.shape), self.input_spec.dtype)
        return jax.eval_shape(self.apply_fn, self.variables, inputs).shape[-1]

    def with_variables(self, variables: Variables) -> Network:
        """The same network with other variables, such as repaired ones."""
        return dataclasses.replace(self, variables=variables)


@functools.lru_cache(maxsize=64)
def _graph(apply_fn: ApplyFn, structure: Any, specs: tuple[Any, ...], input_spec: jax.ShapeDtypeStruct) -> ChannelGraph:
    variables = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*spec) for spec in specs])
    return channel_graph(apply_fn, variables, jax.ShapeDtypeStruct((1, *input_spec.shape), input_spec.dtype))
