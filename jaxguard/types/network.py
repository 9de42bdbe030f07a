"""A neural network as one value."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import numpy as np

from jaxguard.errors import GraphError
from jaxguard.graph import ChannelGraph, channel_graph
from jaxguard.graph.program import ApplyFn, Variables
from jaxguard.types.data import TrainFn

Outputs = Literal["classes", "sequence", "regression", "embedding"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["variables"],
    meta_fields=["apply_fn", "input_spec", "train_fn", "outputs"],
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
        outputs: what `apply_fn` returns: logits of `classes` `[B, K]`, a `sequence` of such `[B, ..., K]`, as of pixels
            or tokens, numbers of a `regression`, or an `embedding`. By default classes or a sequence, by the number of
            axes. Channels of every kind are scored; whatever needs a class per input takes classes alone.

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
    outputs: Outputs | None = None

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
            GraphError: it cannot be derived, or the outputs are not what they are declared to be.
            UnscorableError: the network has no convolution or dense layer.
        """
        leaves, structure = jax.tree.flatten(self.variables)
        specs = tuple((tuple(np.shape(leaf)), leaf.dtype) for leaf in leaves)
        return _graph(self.apply_fn, structure, specs, self.input_spec, self.outputs)

    @property
    def num_classes(self) -> int:
        """`K`, the number of logits per input.

        Raises:
            GraphError: the outputs are not one row of logits per input.
        """
        one, two = (self._result(size) for size in (2, 3))
        require_outputs(one, two, self.outputs)
        return count_classes(one, self.outputs)

    def require_classes(self, result: Any) -> None:
        """Refuses outputs from which no class per input can be read.

        Args:
            result: what `apply_fn` returned, or its shape and dtype.

        Raises:
            GraphError: it is not one row of logits per input, or declared to be something else.
        """
        count_classes(result, self.outputs)

    def _result(self, size: int) -> Any:
        inputs = jax.ShapeDtypeStruct((size, *self.input_spec.shape), self.input_spec.dtype)
        return jax.eval_shape(self.apply_fn, self.variables, inputs)

    def with_variables(self, variables: Variables) -> Network:
        """The same network with other variables, such as repaired ones."""
        return dataclasses.replace(self, variables=variables)


def require_outputs(two: Any, three: Any, outputs: Outputs | None) -> None:
    """Refuses outputs that are not what they are declared to be.

    Args:
        two: shape and dtype of the outputs for two inputs.
        three: for three inputs.
        outputs: as declared; None for classes or a sequence of them.

    Raises:
        GraphError: they are integers, do not run over the inputs on their first axis, or have another number of axes.
    """
    if outputs not in (None, *get_args(Outputs)):
        raise GraphError(f"expected outputs among {', '.join(get_args(Outputs))}, got {outputs!r}; choose one of them")
    if not isinstance(two, jax.ShapeDtypeStruct):
        raise GraphError(
            f"expected apply_fn to return one array of logits, got {jax.tree.structure(two)}; return the logits alone, "
            "as in `lambda variables, inputs: model(variables, inputs)[0]`"
        )
    is_batched = two.shape[:1] == (2,) and three.shape == (3, *two.shape[1:])
    rank = {"classes": (2, 2), "sequence": (3, 99), None: (2, 99)}.get(outputs, (1, 99))
    if not (jax.numpy.issubdtype(two.dtype, np.floating) and is_batched and rank[0] <= len(two.shape) <= rank[1]):
        wanted = "[B, K]" if outputs == "classes" else "[B, ..., K]" if rank[0] > 1 else "[B, ...]"
        raise GraphError(
            f"expected floating-point {'logits' if rank[0] > 1 else 'outputs'} {wanted}, got {_described(two)} for "
            "B = 2 as the output of apply_fn; return the logits themselves, before argmax, for a whole batch, or "
            "declare Network(outputs='regression') or 'embedding'"
        )


def count_classes(result: Any, outputs: Outputs | None = None) -> int:
    """`K` of outputs from which a class per input can be read.

    Args:
        result: an array `[B, K]`, or its shape and dtype.
        outputs: as declared.

    Returns:
        The number of classes.

    Raises:
        GraphError: it is not one row of logits per input, or declared to be something else.
    """
    is_array = hasattr(result, "shape") and jax.numpy.issubdtype(result.dtype, np.floating)
    if outputs not in (None, "classes") or not is_array or len(result.shape) != 2:
        raise GraphError(
            f"expected logits [B, K] for what needs a class per input, got {_described(result)} as the output of "
            f"apply_fn, declared as {outputs or 'nothing else'}; scores of channels need no classes"
        )
    return result.shape[-1]


def _described(result: Any) -> str:
    return f"{result.dtype}{list(result.shape)}" if hasattr(result, "shape") else str(jax.tree.structure(result))


@functools.lru_cache(maxsize=64)
def _graph(
    apply_fn: ApplyFn,
    structure: Any,
    specs: tuple[Any, ...],
    input_spec: jax.ShapeDtypeStruct,
    outputs: Outputs | None,
) -> ChannelGraph:
    variables = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*spec) for spec in specs])
    sizes = (jax.ShapeDtypeStruct((size, *input_spec.shape), input_spec.dtype) for size in (2, 3))
    with contextlib.suppress(ValueError):  # a batch that devices share is not of every size; the graph finds one
        two, three = (jax.eval_shape(apply_fn, variables, one) for one in sizes)
        require_outputs(two, three, outputs)
    return channel_graph(apply_fn, variables, jax.ShapeDtypeStruct((1, *input_spec.shape), input_spec.dtype))
