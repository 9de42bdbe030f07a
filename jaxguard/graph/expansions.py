"""How each kind of equation that stands for others is laid flat; see `jaxguard.graph.primitives.Expansion`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex
from jax.extend import source_info_util
from jax.extend.core import primitives as lax_primitives

from jaxguard.graph import shards
from jaxguard.graph.primitives import Expansion, makes_channels
from jaxguard.graph.program import Equation, Program, Value, open_bodies

if TYPE_CHECKING:
    from jaxguard.graph.tracing import Tracer

MAX_UNROLL = 256


class NotFollowed(Exception):
    """An equation that stands for others and cannot be laid flat, and why."""


def opened(closed: Any) -> tuple[Any, Sequence[Any]]:
    """Jaxpr and constants; from JAX 0.11 on they are one object."""
    return getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())


def _custom_derivative(tracer: Tracer, eqn: Any, jaxpr: Any, inputs: Sequence[Value]) -> list[Value]:
    equations = tracer.program.equations
    start = len(equations)
    outputs = tracer.inline(jaxpr, inputs)
    body = equations[start:]
    written = {value for equation in body for value in equation.outputs}
    # A call that hands on an input, or one array twice, writes no value of its own and cannot be kept whole.
    # What names an axis of a mesh means something else when it is mapped over whole arrays.
    is_whole = not tracer.in_shards and not any(map(makes_channels, body))
    if not is_whole or len(set(outputs)) < len(outputs) or not written.issuperset(outputs):
        return outputs
    sources = tracer.sources(eqn.source_info)
    whole = Equation(eqn.primitive, tuple(inputs), tuple(outputs), eqn.params, sources, tuple(open_bodies(body)))
    equations[start:] = [whole]
    return outputs


def _unroll(tracer: Tracer, eqn: Any, jaxpr: Any, inputs: Sequence[Value]) -> list[Value]:
    length, (num_consts, num_carry) = eqn.params["length"], _scan_counts(eqn.params)
    if not num_carry and tracer.on_images.issuperset(inputs[num_consts:]):
        return _mapped(tracer, jaxpr, inputs, num_consts)
    if length > MAX_UNROLL:
        raise NotFollowed(f"it has {length} steps, more than {MAX_UNROLL}")
    constants, stacked = list(inputs[:num_consts]), inputs[num_consts + num_carry :]
    carry = list(inputs[num_consts : num_consts + num_carry])
    steps: dict[int, list[Value]] = {}
    for step in reversed(range(length)) if eqn.params["reverse"] else range(length):
        sliced = [tracer.pick(value, step, eqn.source_info) for value in stacked]
        # Every step becomes equations of its own, so that each use of a kernel is a layer with a place in the program.
        outputs = tracer.inline(jaxpr, [*constants, *carry, *sliced])
        carry, steps[step] = outputs[:num_carry], outputs[num_carry:]
    results = zip(*(steps[step] for step in range(length)), strict=True)
    return carry + [tracer.stacked(values, eqn.source_info) for values in results]


def _repeat(tracer: Tracer, eqn: Any, _: Any, inputs: Sequence[Value]) -> list[Value]:
    num_cond, num_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    for_cond, for_body = inputs[:num_cond], inputs[num_cond : num_cond + num_body]
    carry = list(inputs[num_cond + num_body :])
    for _ in range(MAX_UNROLL + 1):
        start = len(tracer.program.equations)
        (condition,) = tracer.inline(eqn.params["cond_jaxpr"], [*for_cond, *carry])
        goes_on = tracer.constant(condition)
        # The condition was inlined only to see whether it is a constant; the program does not need it.
        del tracer.program.equations[start:]
        if goes_on is None:
            raise NotFollowed("the number of its steps depends on data")
        if not goes_on:
            return carry
        carry = tracer.inline(eqn.params["body_jaxpr"], [*for_body, *carry])
    raise NotFollowed(f"it has more than {MAX_UNROLL} steps")


def _shard_map(tracer: Tracer, eqn: Any, jaxpr: Any, inputs: Sequence[Value]) -> list[Value]:
    manual, sizes = eqn.params.get("newly_manual_axes"), dict(eqn.params["mesh"].shape)
    mesh = {name: size for name, size in sizes.items() if manual is None or name in manual}
    specs = [[shards.spec_of(spec, var.aval.ndim) for spec, var in zip(eqn.params[side], own, strict=True)]
             for side, own in (("in_specs", eqn.invars), ("out_specs", eqn.outvars))]  # fmt: skip
    inner = type(tracer)(Program(), in_shards=True)
    part = inner.program
    part.leaves = tuple(part.new_value(var.aval.shape, var.aval.dtype) for var in opened(jaxpr)[0].invars)
    part.results = tuple(inner.inline(jaxpr, part.leaves))
    if part.effects or any("callback" in one.name for one in part.equations):
        raise NotFollowed("it calls Python once for each shard")
    try:
        results = tracer.retraced(shards.whole(part, mesh, *specs), inputs)
    except (NotImplementedError, NameError, TypeError, ValueError) as error:
        raise NotFollowed(f"its shards cannot be mapped ({error})") from error
    if math.prod(mesh.values()) > 1:
        over = ", ".join(f"{name} of {size}" for name, size in mesh.items())
        tracer.program.meshes.append(
            f"`{eqn.primitive.name}` at {source_info_util.summarize(eqn.source_info)}, axis {over}"
        )
    return results


def _collective(tracer: Tracer, eqn: Any, _: Any, inputs: Sequence[Value]) -> list[Value]:
    if not tracer.in_shards:
        along = eqn.params.get("axes", ("",))
        if any(isinstance(axis, str) for axis in along):
            raise NotFollowed("it names an axis of a mesh outside of a shard_map that is followed")
        return [_reduced(tracer, eqn, value, along) for value in inputs]
    structs = [(var.aval.shape, var.aval.dtype) for var in eqn.outvars]
    return tracer.emit(eqn.primitive, inputs, structs, eqn.params, eqn.source_info)


def _reduced(tracer: Tracer, eqn: Any, value: Value, along: tuple[int, ...]) -> Value:
    """A collective that was mapped over shards: a reduction along the axes that hold them."""
    name, product = eqn.primitive.name.removeprefix("p"), tracer.written_by.get(value)
    if product is not None and product.name == "transpose":
        order = product.params["permutation"]
        before = _reduced(tracer, eqn, product.inputs[0], tuple(order[k] for k in along))
        tracer.replaced.append(product)
        kept = [axis for k, axis in enumerate(order) if k not in along]
        order = tuple(sorted(kept).index(axis) for axis in kept)
        return tracer.append(product.primitive, (before,), {"permutation": order}, product.sources[0])
    if name == "sum" and product is not None and product.name == "dot_general":
        contracting, batch = product.params["dimension_numbers"]
        if max(along) < len(batch[0]):
            # Each device has a part of the inner dimension: the sum of its products is one product of whole arrays.
            summed = [tuple(side[k] for k in along) for side in batch]
            kept = [tuple(axis for k, axis in enumerate(side) if k not in along) for side in batch]
            inner = tuple((*more, *own) for own, more in zip(contracting, summed, strict=True))
            tracer.replaced.append(product)
            params = {**product.params, "dimension_numbers": (inner, tuple(kept))}
            return tracer.append(product.primitive, product.inputs, params, product.sources[0])
    (result,) = tracer.retraced(lambda x: [getattr(jnp, name)(x, along)], [value])
    return result


def _mapped(tracer: Tracer, jaxpr: Any, inputs: Sequence[Value], num_consts: int) -> list[Value]:
    """A loop over data without a carry, as of `lax.map`, takes all its steps at once at any batch size."""
    in_axes = (None,) * num_consts + (0,) * (len(inputs) - num_consts)
    try:
        return tracer.retraced(jax.vmap(jex.jaxpr_as_fun(jaxpr), in_axes), inputs)
    except NotImplementedError as error:
        raise NotFollowed(f"it maps something that has no batched form ({error})") from error


def _select(tracer: Tracer, eqn: Any, jaxprs: Any, inputs: Sequence[Value]) -> list[Value]:
    which, *operands = inputs
    if any(_has_callback(branch) for branch in jaxprs):
        raise NotFollowed("a branch calls Python, which must not run where it is not taken")
    branches = [tracer.inline(branch, operands) for branch in jaxprs]
    return [
        tracer.append(lax_primitives.select_n_p, (which, *cases), {}, eqn.source_info)
        for cases in zip(*branches, strict=True)
    ]


def _stack(tracer: Tracer, eqn: Any, _: Any, inputs: Sequence[Value]) -> list[Value]:
    return [tracer.stacked(inputs, eqn.source_info, eqn.params["axis"])]


def _split(tracer: Tracer, eqn: Any, _: Any, inputs: Sequence[Value]) -> list[Value]:
    (value,), axis = inputs, eqn.params["axis"]
    edges = accumulate(map(int, eqn.params["sizes"]), initial=0)
    return [tracer.run(value, run, axis, eqn.source_info) for run in pairwise(edges)]


def _unstack(tracer: Tracer, eqn: Any, _: Any, inputs: Sequence[Value]) -> list[Value]:
    (value,), axis = inputs, eqn.params["axis"]
    return [tracer.pick(value, k, eqn.source_info, axis) for k in range(tracer.program.shapes[value][axis])]


def _has_callback(closed: Any) -> bool:
    """Whether a jaxpr calls Python."""
    return any(
        "callback" in eqn.primitive.name or any(map(_has_callback, _inner(eqn))) for eqn in opened(closed)[0].eqns
    )


def _inner(eqn: Any) -> list[Any]:
    """The jaxprs that an equation holds."""
    held = [one for value in eqn.params.values() for one in (value if isinstance(value, tuple) else (value,))]
    return [one for one in held if hasattr(opened(one)[0], "eqns")]


def _scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """Constants and carries of a scan; from JAX 0.11 on the sizes of its inputs' parts."""
    if "ft_in" in params:
        constants, carry, _ = params["ft_in"].unpack()
        return len(constants), len(carry)
    return params["num_consts"], params["num_carry"]


EXPANSIONS: dict[Expansion, Callable[[Any, Any, Any, Sequence[Value]], list[Value]]] = {
    Expansion.INLINE: lambda tracer, _, jaxpr, inputs: tracer.inline(jaxpr, inputs),
    Expansion.CUSTOM_DERIVATIVE: _custom_derivative,
    Expansion.UNROLL: _unroll,
    Expansion.REPEAT: _repeat,
    Expansion.SHARDS: _shard_map,
    Expansion.COLLECTIVE: _collective,
    Expansion.SELECT: _select,
    Expansion.STACK: _stack,
    Expansion.SPLIT: _split,
    Expansion.UNSTACK: _unstack,
}
"""How each is laid flat: `(tracer, equation, its jaxpr or jaxprs, values of its inputs) -> values of its results`."""
