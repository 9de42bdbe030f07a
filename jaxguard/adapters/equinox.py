"""Equinox."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.adapters import modes
from jaxguard.adapters.leaves import replaced
from jaxguard.types import Network, Outputs, Variables


@dataclass(frozen=True)
class Evaluation:
    """A per-example Equinox model mapped over a batch; a value, so that equal models share compiled programs.

    Attributes:
        identity: all that an answer depends on besides the variables.
        static: the model without its variables.
        template: the structure of its state; None for a model without one.
        channels_last: whether images are `[B, H, W, C]`, and the model's `[C, H, W]`.
    """

    identity: Hashable
    static: Any = field(compare=False)
    template: Any = field(compare=False)
    channels_last: bool

    def __call__(self, variables: Variables, inputs: jax.Array) -> jax.Array:
        """Logits `[B, K]`."""
        return self.call(variables, inputs, None)[0]

    def call(self, variables: Variables, inputs: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Any]:
        """Logits `[B, K]`, and the state after the call."""
        model = eqx.combine(variables["params"], self.static)
        named = {} if "key" not in _parameters(model) else {"key": None}
        if self.channels_last:
            inputs = jnp.moveaxis(inputs, -1, 1)
        keys = None if key is None or not named else jax.random.split(key, len(inputs))
        state = None
        if self.template is not None:
            state = jax.tree.unflatten(self.template, variables["batch_stats"])

        def one(x: jax.Array, key: jax.Array | None, state: Any) -> tuple[jax.Array, Any]:
            arguments = dict.fromkeys(named, key)
            return (model(x, **arguments), None) if state is None else model(x, state, **arguments)

        if key is None:
            model = jax.tree.map(_without_debiasing, model, is_leaf=_is_norm)
        axes = (0, None if keys is None else 0, None)
        return jax.vmap(one, in_axes=axes, out_axes=(0, None), axis_name=_axis_name(model))(inputs, keys, state)


@dataclass(frozen=True)
class Training:
    """The same in training mode; see `Evaluation`."""

    evaluation: Evaluation

    def __call__(self, variables: Variables, inputs: jax.Array) -> tuple[jax.Array, Variables]:
        """Logits `[B, K]`, and the variables with new running statistics."""
        logits, state = self.evaluation.call(variables, inputs, modes.random_key(inputs))
        return logits, variables if state is None else {**variables, "batch_stats": jax.tree.leaves(state)}


def from_equinox(
    model: Any, example: Any, state: Any = None, *, channels_last: bool = False, outputs: Outputs | None = None
) -> Network:
    """The network of an Equinox model in evaluation mode, whatever mode the model itself is in.

    Args:
        model: called with one example, without the batch axis, as Equinox models are; not modified.
        example: a batch of inputs `[B, ...]`, as an array or a `jax.ShapeDtypeStruct`; or the shape of one input.
        state: `equinox.nn.State`, for a model with one, such as BatchNorm's. Statistics of `mode="batch"` that still
            need debiasing, after a short training, are debiased in the network.
        channels_last: whether the network takes images `[B, H, W, C]`, as everything in jaxguard that handles images
            does; the model gets them as `[C, H, W]`. `example` is the network's.
        outputs: what the model returns: `classes`, a `sequence` of them, a `regression` or an `embedding`.

    Returns:
        The network; its variables are `{"params": ..., "batch_stats": ...}`: the model with its floating-point arrays
        alone, and the arrays of the state, if any.

    Example:
        >>> model = eqx.nn.MLP(4, 2, width_size=8, depth=1, key=jax.random.key(0))
        >>> network = from_equinox(model, (4,))
        >>> network.graph
        ChannelGraph(2 producers, 0 affines, 3 groups, 1 permutable)
        >>> model = to_equinox(network, model)
    """
    params, static = eqx.partition(eqx.nn.inference_mode(model), eqx.is_inexact_array)
    variables = {"params": params}
    template = None
    if state is not None:
        leaves, template = jax.tree.flatten(_debiased(model, state))
        variables["batch_stats"] = leaves
    _, trained = eqx.partition(eqx.nn.inference_mode(model, value=False), eqx.is_inexact_array)
    apply_fn, train_fn = (
        Evaluation((_identity(one), template), one, template, channels_last) for one in (static, trained)
    )
    return Network(variables, apply_fn, modes.input_spec(example), Training(train_fn), outputs)


def to_equinox(network: Network, model: Any, state: Any = None) -> Any:
    """A model with the variables of a network.

    Args:
        network: made from the model by `from_equinox`, or from another of the same architecture.
        model: its mode, functions and integers are kept; not modified.
        state: `equinox.nn.State`, if the network has one.

    Returns:
        The model; with a state, `(model, state)`.

    Raises:
        ArchitectureError: the leaves differ in number or shape.
    """
    params, static = eqx.partition(model, eqx.is_inexact_array)
    wanted = (params,) if state is None else (params, state)
    given = (network.variables["params"], network.variables.get("batch_stats", []))
    params, *rest = replaced(wanted, given)
    made = eqx.combine(params, static)
    return (made, *rest) if rest else made


def _parameters(model: Any) -> Any:
    return inspect.signature(type(model).__call__).parameters


def _axis_name(model: Any) -> Any:
    """The axis over which the model's BatchNorms average; Equinox wants it on the map over the batch."""
    return next((one.axis_name for one in jax.tree.leaves(model, is_leaf=_is_norm) if _is_norm(one)), None)


def _is_norm(one: Any) -> bool:
    return isinstance(one, eqx.nn.BatchNorm)


def _debiased(model: Any, state: Any) -> Any:
    """The state with statistics of `mode="batch"` divided by `1 - momentum**counter`, unless that is 1 in float32."""
    state = jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(state))  # set() invalidates the original
    for norm in filter(_is_norm, jax.tree.leaves(model, is_leaf=_is_norm)):
        if norm.mode != "batch" or (counter := state.get(norm.batch_counter)) == 0:
            continue
        bias = 1 - norm.momentum**counter
        if bias != 1:
            state = state.set(norm.batch_state_index, tuple(one / bias for one in state.get(norm.batch_state_index)))
            state = state.set(norm.batch_counter, jnp.full_like(counter, jnp.iinfo(counter.dtype).max))
    return state


def _without_debiasing(one: Any) -> Any:
    """BatchNorm of `mode="batch"` with its statistics undivided, so that the channel graph finds the variance."""
    return functools.partial(_normalised, one) if _is_norm(one) and one.mode == "batch" else one


def _normalised(norm: Any, x: jax.Array, state: Any, **_: Any) -> tuple[jax.Array, Any]:
    mean, var = state.get(norm.batch_state_index)
    shape = (-1, *(1,) * (x.ndim - 1))  # of [C, ...]
    out = (x - mean.reshape(shape)) / jnp.sqrt(var.reshape(shape) + norm.eps)
    if norm.channelwise_affine:
        out = out * norm.weight.reshape(shape) + norm.bias.reshape(shape)
    return out, state


def _identity(static: Any) -> Hashable:
    leaves, structure = jax.tree.flatten(static)
    return structure, tuple(_value(leaf) if eqx.is_array(leaf) else leaf for leaf in leaves)


def _value(leaf: Any) -> Hashable:
    """An array by its contents; the bits of a random key."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    return array.shape, array.dtype.str, array.tobytes()
