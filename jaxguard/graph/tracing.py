"""Tracing a model into a `Program`.

Calls (`jit`, `remat`, ...) are inlined with fresh values at every call site, `scan` is unrolled, and `while` where its
condition is a constant; `shard_map` becomes a map over whole arrays, `cond` a select between its branches, `stack`,
`split` and `unstack` become concatenation and slices, so that every convolution of a model is one equation and few
primitives need an axis rule. A custom-derivative call without a layer inside is evaluated whole, which keeps its
gradient rule, but shows its body to the analyses.

What cannot be laid flat, such as a loop whose number of steps depends on data, stays one *opaque* equation. Nothing of
a model is run: callbacks are opaque too, and run when the program does, as they would in the model. Those that have no
results, such as `jax.debug.print`, are left out and listed in `Program.effects`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex
from jax.extend import source_info_util
from jax.extend.core import primitives as lax_primitives

from jaxguard.errors import GraphError
from jaxguard.graph import shards
from jaxguard.graph.indices import settle_indices
from jaxguard.graph.primitives import PRIMITIVES, Expansion, makes_channels
from jaxguard.graph.program import ApplyFn, Equation, Program, Value, apply, leaf_paths, open_bodies

MAX_UNROLL = 256


def trace(apply_fn: ApplyFn, variables: Any, images: Any) -> Program:
    """Trace a model into a flat program.

    Args:
        apply_fn: `(variables, images) -> logits`.
        variables: pytree of arrays or `jax.ShapeDtypeStruct`s; only shapes and dtypes matter.
        images: likewise, `[B, ...]`.

    Returns:
        The program.

    Raises:
        GraphError: the model returns anything but one array, or writes to mutable arrays.
    """
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.result_type(x)), (variables, images))
    closed, result = jax.make_jaxpr(apply_fn, return_shape=True)(*structs)
    if not isinstance(result, jax.ShapeDtypeStruct):
        raise GraphError(
            f"expected apply_fn to return one array of logits, got {jax.tree.structure(result)}; "
            "wrap it so that it returns the logits alone"
        )
    tracer = _Tracer(Program(paths=leaf_paths(variables)))
    program = tracer.program
    arguments = [program.new_value(v.aval.shape, v.aval.dtype) for v in _open(closed)[0].invars]
    program.leaves, program.images = tuple(arguments[:-1]), arguments[-1]
    tracer.on_images.add(program.images)
    (program.logits,) = tracer.inline(closed, arguments)
    _drop_unused(program, tracer.replaced)
    settle_indices(program)
    return program


def _drop_unused(program: Program, replaced: Sequence[Equation]) -> None:
    """Removes opaque and replaced equations on which the logits do not depend, with all that depends on them alone."""
    droppable = [value for eqn in program.equations if eqn.opaque or eqn in replaced for value in eqn.outputs]
    if droppable:
        behind, needed = program.dependents(droppable), set(program.cone(program.logits))
        unused = {eqn for eqn in program.equations if eqn not in needed and behind.intersection(eqn.outputs)}
        program.effects += [eqn for eqn in program.equations if eqn in unused and "callback" in eqn.name]
        program.equations = [eqn for eqn in program.equations if eqn not in unused]


def _open(closed: Any) -> tuple[Any, Sequence[Any]]:
    """Jaxpr and constants; from JAX 0.11 on they are one object."""
    return getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())


class _NotFollowed(Exception):
    """An equation that stands for others and cannot be laid flat, and why."""


class _Tracer:
    """Appends the equations of jaxprs to a program.

    Attributes:
        program: the program.
        callers: source of each call that is being inlined, outermost first.
        on_images: values that depend on the images.
        in_shards: whether the program is that of one shard.
        replaced: equations in whose place there is another, unless something else reads them.
    """

    def __init__(self, program: Program, *, in_shards: bool = False):
        self.program = program
        self.callers: list[Any] = []
        self.on_images: set[Value] = set()
        self.in_shards = in_shards
        self.replaced: list[Equation] = []
        self._written_by: dict[Value, Equation] = {}
        self._known: dict[Value, Any] = {}

    def inline(self, closed: Any, arguments: Sequence[Value]) -> list[Value]:
        """Append the equations of a jaxpr, applied to values; returns the values of its results."""
        jaxpr, constants = _open(closed)
        env: dict[Any, Value] = dict(zip(jaxpr.constvars, map(self.program.new_constant, constants), strict=True))
        env.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Value:
            if not isinstance(atom, jex.Literal):
                return env[atom]
            # A literal inside a shard_map belongs to its mesh, a NumPy array to none.
            return self.program.new_constant(np.asarray(atom.val) if self.in_shards else atom.val)

        for eqn in jaxpr.eqns:
            outputs = self._lay_flat(eqn, [read(atom) for atom in eqn.invars])
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _lay_flat(self, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        """Append an equation, or those that it stands for; returns the values of its results."""
        found = PRIMITIVES.get(eqn.primitive.name)
        start, why = len(self.program.equations), "" if found else "there is no rule for this primitive"
        if found is not None and found.call is not None:
            inner = None if found.call.jaxpr is None else eqn.params[found.call.jaxpr]
            self.callers.append(eqn.source_info)
            try:
                return _EXPANSIONS[found.call.expansion](self, eqn, inner, inputs)
            except _NotFollowed as error:
                del self.program.equations[start:]
                why = str(error)
            finally:
                self.callers.pop()
        if any(_is_mutable(var.aval) for var in (*eqn.invars, *eqn.outvars)):
            raise GraphError(
                f"expected a function of arrays, got `{eqn.primitive.name}` of a mutable one (jax.Ref) at "
                f"{source_info_util.summarize(eqn.source_info)}; write the model without it"
            )
        structs = [(getattr(var.aval, "shape", ()), getattr(var.aval, "dtype", None)) for var in eqn.outvars]
        return self._emit(eqn.primitive, inputs, structs, eqn.params, eqn.source_info, opaque=why)

    def custom_derivative(self, eqn: Any, jaxpr: Any, inputs: Sequence[Value]) -> list[Value]:
        equations = self.program.equations
        start = len(equations)
        outputs = self.inline(jaxpr, inputs)
        body = equations[start:]
        written = {value for equation in body for value in equation.outputs}
        # A call that hands on an input, or one array twice, writes no value of its own and cannot be kept whole.
        # What names an axis of a mesh means something else when it is mapped over whole arrays.
        is_whole = not self.in_shards and not any(map(makes_channels, body))
        if not is_whole or len(set(outputs)) < len(outputs) or not written.issuperset(outputs):
            return outputs
        sources = self._sources(eqn.source_info)
        whole = Equation(eqn.primitive, tuple(inputs), tuple(outputs), eqn.params, sources, tuple(open_bodies(body)))
        equations[start:] = [whole]
        return outputs

    def unroll(self, eqn: Any, jaxpr: Any, inputs: Sequence[Value]) -> list[Value]:
        length, (num_consts, num_carry) = eqn.params["length"], _scan_counts(eqn.params)
        if not num_carry and self.on_images.issuperset(inputs[num_consts:]):
            return self._mapped(jaxpr, inputs, num_consts)
        if length > MAX_UNROLL:
            raise _NotFollowed(f"it has {length} steps, more than {MAX_UNROLL}")
        constants, stacked = list(inputs[:num_consts]), inputs[num_consts + num_carry :]
        carry = list(inputs[num_consts : num_consts + num_carry])
        steps: dict[int, list[Value]] = {}
        for step in reversed(range(length)) if eqn.params["reverse"] else range(length):
            sliced = [self._pick(value, step, eqn.source_info) for value in stacked]
            outputs = self.inline(jaxpr, [*constants, *carry, *sliced])
            carry, steps[step] = outputs[:num_carry], outputs[num_carry:]
        results = zip(*(steps[step] for step in range(length)), strict=True)
        return carry + [self._stacked(values, eqn.source_info) for values in results]

    def repeat(self, eqn: Any, _: Any, inputs: Sequence[Value]) -> list[Value]:
        num_cond, num_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        for_cond, for_body = inputs[:num_cond], inputs[num_cond : num_cond + num_body]
        carry = list(inputs[num_cond + num_body :])
        for _ in range(MAX_UNROLL + 1):
            start = len(self.program.equations)
            (condition,) = self.inline(eqn.params["cond_jaxpr"], [*for_cond, *carry])
            goes_on = self._constant(condition)
            del self.program.equations[start:]
            if goes_on is None:
                raise _NotFollowed("the number of its steps depends on data")
            if not goes_on:
                return carry
            carry = self.inline(eqn.params["body_jaxpr"], [*for_body, *carry])
        raise _NotFollowed(f"it has more than {MAX_UNROLL} steps")

    def _constant(self, value: Value) -> Any:
        """The array that a value is whatever the leaves and the images; None if it depends on them."""
        if value not in self._known:
            eqn, found = self._written_by.get(value), self.program.constants.get(value)
            if eqn is not None and not eqn.opaque:
                operands = [self._constant(operand) for operand in eqn.inputs]
                if all(operand is not None for operand in operands):
                    with jax.ensure_compile_time_eval():
                        self._known.update(zip(eqn.outputs, apply(eqn, operands), strict=True))
                    return self._known[value]
            self._known[value] = found
        return self._known[value]

    def shards(self, eqn: Any, jaxpr: Any, inputs: Sequence[Value]) -> list[Value]:
        manual, sizes = eqn.params.get("newly_manual_axes"), dict(eqn.params["mesh"].shape)
        mesh = {name: size for name, size in sizes.items() if manual is None or name in manual}
        specs = [[shards.spec_of(spec, var.aval.ndim) for spec, var in zip(eqn.params[side], own, strict=True)]
                 for side, own in (("in_specs", eqn.invars), ("out_specs", eqn.outvars))]  # fmt: skip
        inner = _Tracer(Program(), in_shards=True)
        part = inner.program
        part.leaves = tuple(part.new_value(var.aval.shape, var.aval.dtype) for var in _open(jaxpr)[0].invars)
        part.results = tuple(inner.inline(jaxpr, part.leaves))
        if part.effects or any("callback" in one.name for one in part.equations):
            raise _NotFollowed("it calls Python once for each shard")
        try:
            results = self._retraced(shards.whole(part, mesh, *specs), inputs)
        except (NotImplementedError, NameError, TypeError, ValueError) as error:
            raise _NotFollowed(f"its shards cannot be mapped ({error})") from error
        if math.prod(mesh.values()) > 1:
            over = ", ".join(f"{name} of {size}" for name, size in mesh.items())
            self.program.meshes.append(
                f"`{eqn.primitive.name}` at {source_info_util.summarize(eqn.source_info)}, axis {over}"
            )
        return results

    def collective(self, eqn: Any, _: Any, inputs: Sequence[Value]) -> list[Value]:
        if not self.in_shards:
            along = eqn.params.get("axes", ("",))
            if any(isinstance(axis, str) for axis in along):
                raise _NotFollowed("it names an axis of a mesh outside of a shard_map that is followed")
            return [self._reduced(eqn, value, along) for value in inputs]
        structs = [(var.aval.shape, var.aval.dtype) for var in eqn.outvars]
        return self._emit(eqn.primitive, inputs, structs, eqn.params, eqn.source_info)

    def _reduced(self, eqn: Any, value: Value, along: tuple[int, ...]) -> Value:
        """A collective that was mapped over shards: a reduction along the axes that hold them."""
        name, product = eqn.primitive.name.removeprefix("p"), self._written_by.get(value)
        if product is not None and product.name == "transpose":
            order = product.params["permutation"]
            before = self._reduced(eqn, product.inputs[0], tuple(order[k] for k in along))
            self.replaced.append(product)
            kept = [axis for k, axis in enumerate(order) if k not in along]
            order = tuple(sorted(kept).index(axis) for axis in kept)
            return self._append(product.primitive, (before,), {"permutation": order}, product.sources[0])
        if name == "sum" and product is not None and product.name == "dot_general":
            contracting, batch = product.params["dimension_numbers"]
            if max(along) < len(batch[0]):
                # Each device has a part of the inner dimension: the sum of its products is one product of whole arrays.
                summed = [tuple(side[k] for k in along) for side in batch]
                kept = [tuple(axis for k, axis in enumerate(side) if k not in along) for side in batch]
                inner = tuple((*more, *own) for own, more in zip(contracting, summed, strict=True))
                self.replaced.append(product)
                params = {**product.params, "dimension_numbers": (inner, tuple(kept))}
                return self._append(product.primitive, product.inputs, params, product.sources[0])
        (result,) = self._retraced(lambda x: [getattr(jnp, name)(x, along)], [value])
        return result

    def _mapped(self, jaxpr: Any, inputs: Sequence[Value], num_consts: int) -> list[Value]:
        """A loop over data without a carry, as of `lax.map`, takes all its steps at once at any batch size."""
        in_axes = (None,) * num_consts + (0,) * (len(inputs) - num_consts)
        try:
            return self._retraced(jax.vmap(jex.jaxpr_as_fun(jaxpr), in_axes), inputs)
        except NotImplementedError as error:
            raise _NotFollowed(f"it maps something that has no batched form ({error})") from error

    def _retraced(self, function: Callable[..., Any], inputs: Sequence[Value]) -> list[Value]:
        """Append the equations of a function of arrays."""
        shapes, dtypes = self.program.shapes, self.program.dtypes
        return self.inline(
            jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shapes[v], dtypes[v]) for v in inputs)), inputs
        )

    def select(self, eqn: Any, jaxprs: Any, inputs: Sequence[Value]) -> list[Value]:
        which, *operands = inputs
        if any(_has_callback(branch) for branch in jaxprs):
            raise _NotFollowed("a branch calls Python, which must not run where it is not taken")
        branches = [self.inline(branch, operands) for branch in jaxprs]
        return [
            self._append(lax_primitives.select_n_p, (which, *cases), {}, eqn.source_info)
            for cases in zip(*branches, strict=True)
        ]

    def stack(self, eqn: Any, _: Any, inputs: Sequence[Value]) -> list[Value]:
        return [self._stacked(inputs, eqn.source_info, eqn.params["axis"])]

    def split(self, eqn: Any, _: Any, inputs: Sequence[Value]) -> list[Value]:
        (value,), axis = inputs, eqn.params["axis"]
        edges = accumulate(map(int, eqn.params["sizes"]), initial=0)
        return [self._slice(value, run, axis, eqn.source_info) for run in pairwise(edges)]

    def unstack(self, eqn: Any, _: Any, inputs: Sequence[Value]) -> list[Value]:
        (value,), axis = inputs, eqn.params["axis"]
        return [self._pick(value, k, eqn.source_info, axis) for k in range(self.program.shapes[value][axis])]

    def _slice(self, value: Value, run: tuple[int, int], axis: int, source: Any) -> Value:
        starts, limits = [0] * len(self.program.shapes[value]), list(self.program.shapes[value])
        starts[axis], limits[axis] = run
        params = {"start_indices": tuple(starts), "limit_indices": tuple(limits), "strides": None}
        return self._append(lax_primitives.slice_p, (value,), params, source)

    def _pick(self, value: Value, position: int, source: Any, axis: int = 0) -> Value:
        """`value[position]`, along `axis`."""
        kept = self._slice(value, (position, position + 1), axis, source)
        return self._append(lax_primitives.squeeze_p, (kept,), {"dimensions": (axis,)}, source)

    def _stacked(self, values: Sequence[Value], source: Any, axis: int = 0) -> Value:
        """The values along a new axis, the inverse of `_pick`."""
        shape = self.program.shapes[values[0]]
        old_axes = (*range(axis), *range(axis + 1, len(shape) + 1))
        params = {"shape": (*shape[:axis], 1, *shape[axis:]), "broadcast_dimensions": old_axes, "sharding": None}
        rows = [self._append(lax_primitives.broadcast_in_dim_p, (value,), params, source) for value in values]
        return self._append(lax_primitives.concatenate_p, rows, {"dimension": axis}, source)

    def _append(self, primitive: Any, inputs: Sequence[Value], params: Mapping[str, Any], source: Any) -> Value:
        """Append an equation with one result that the jaxpr did not have."""
        shapes, dtypes = self.program.shapes, self.program.dtypes
        structs = [jax.ShapeDtypeStruct(shapes[value], dtypes[value]) for value in inputs]
        result = jax.eval_shape(lambda *xs: primitive.bind(*xs, **params), *structs)
        (output,) = self._emit(primitive, inputs, [(result.shape, result.dtype)], params, source)
        return output

    def _emit(
        self,
        primitive: Any,
        inputs: Sequence[Value],
        results: Sequence[tuple[tuple[int, ...], Any]],
        params: Mapping[str, Any],
        source: Any,
        *,
        opaque: str = "",
    ) -> list[Value]:
        outputs = [self.program.new_value(shape, dtype) for shape, dtype in results]
        if not self.on_images.isdisjoint(inputs):
            self.on_images.update(outputs)
        eqn = Equation(primitive, tuple(inputs), tuple(outputs), params, self._sources(source), opaque=opaque)
        self._written_by.update(dict.fromkeys(outputs, eqn))
        (self.program.equations if outputs else self.program.effects).append(eqn)
        return outputs

    def _sources(self, innermost: Any) -> tuple[Any, ...]:
        """Where an equation comes from, through the calls that are being inlined."""
        return (innermost, *reversed(self.callers))


def _is_mutable(aval: Any) -> bool:
    return hasattr(aval, "inner_aval")


def _has_callback(closed: Any) -> bool:
    """Whether a jaxpr calls Python."""
    return any(
        "callback" in eqn.primitive.name or any(map(_has_callback, _inner(eqn))) for eqn in _open(closed)[0].eqns
    )


def _inner(eqn: Any) -> list[Any]:
    """The jaxprs that an equation holds."""
    held = [one for value in eqn.params.values() for one in (value if isinstance(value, tuple) else (value,))]
    return [one for one in held if hasattr(_open(one)[0], "eqns")]


def _scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """Constants and carries of a scan; from JAX 0.11 on the sizes of its inputs' parts."""
    if "ft_in" in params:
        constants, carry, _ = params["ft_in"].unpack()
        return len(constants), len(carry)
    return params["num_consts"], params["num_carry"]


_EXPANSIONS: dict[Expansion, Callable[[_Tracer, Any, Any, Sequence[Value]], list[Value]]] = {
    Expansion.INLINE: lambda tracer, _, jaxpr, inputs: tracer.inline(jaxpr, inputs),
    Expansion.CUSTOM_DERIVATIVE: _Tracer.custom_derivative,
    Expansion.UNROLL: _Tracer.unroll,
    Expansion.REPEAT: _Tracer.repeat,
    Expansion.SHARDS: _Tracer.shards,
    Expansion.COLLECTIVE: _Tracer.collective,
    Expansion.SELECT: _Tracer.select,
    Expansion.STACK: _Tracer.stack,
    Expansion.SPLIT: _Tracer.split,
    Expansion.UNSTACK: _Tracer.unstack,
}
