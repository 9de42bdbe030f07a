"""Tracing a model into a `Program`.

Calls (`jit`, `remat`, ...) are inlined with fresh values at every call site, `scan` is unrolled, and `while` where its
condition is a constant; `shard_map` becomes a map over whole arrays, `cond` a select between its branches, `stack`,
`split` and `unstack` become concatenation and slices, so that every convolution of a model is one equation and few
primitives need an axis rule. A custom-derivative call without a layer inside is evaluated whole, which keeps its
gradient rule, but shows its body to the analyses.

What cannot be laid flat, such as a loop whose number of steps depends on data, stays one *opaque* equation. Nothing of
a model is run: callbacks are opaque too, and run when the program does, as they would in the model. Those that have no
results, such as `jax.debug.print`, are left out and listed in `Program.effects`.

A loop over layers that takes `w[i]` reads a stacked leaf by a dynamic slice or a gather. Once the loop is laid flat,
`i` is a constant in every step, and the read becomes a plain slice, as in a Python loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex
from jax.extend import source_info_util
from jax.extend.core import primitives as lax_primitives

from jaxguard.errors import GraphError
from jaxguard.graph import axis_rules
from jaxguard.graph.expansions import EXPANSIONS, NotFollowed, opened
from jaxguard.graph.primitives import PRIMITIVES, row
from jaxguard.graph.program import ApplyFn, Equation, Program, Value, apply, leaf_paths


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
    tracer = Tracer(Program(paths=leaf_paths(variables)))
    program = tracer.program
    # The inputs of the jaxpr are the leaves in tree order, then the images.
    arguments = [program.new_value(v.aval.shape, v.aval.dtype) for v in opened(closed)[0].invars]
    program.leaves, program.images = tuple(arguments[:-1]), arguments[-1]
    tracer.on_images.add(program.images)
    (program.logits,) = tracer.inline(closed, arguments)
    _drop_unused(program, tracer.replaced)
    settle_indices(program, tracer.constant)
    return program


def _drop_unused(program: Program, replaced: Sequence[Equation]) -> None:
    """Removes opaque and replaced equations on which the logits do not depend, with all that depends on them alone."""
    droppable = [value for eqn in program.equations if eqn.opaque or eqn in replaced for value in eqn.outputs]
    if droppable:
        behind, needed = program.dependents(droppable), set(program.cone(program.logits))
        unused = {eqn for eqn in program.equations if eqn not in needed and behind.intersection(eqn.outputs)}
        program.effects += [eqn for eqn in program.equations if eqn in unused and "callback" in eqn.name]
        program.equations = [eqn for eqn in program.equations if eqn not in unused]


class Tracer:
    """Appends the equations of jaxprs to a program.

    Attributes:
        program: the program.
        callers: source of each call that is being inlined, outermost first.
        on_images: values that depend on the images.
        in_shards: whether the program is that of one shard.
        written_by: value -> the equation that computes it.
        replaced: equations in whose place there is another, unless something else reads them.
    """

    def __init__(self, program: Program, *, in_shards: bool = False):
        self.program = program
        self.callers: list[Any] = []
        self.on_images: set[Value] = set()
        self.in_shards = in_shards
        self.replaced: list[Equation] = []
        self.written_by: dict[Value, Equation] = {}
        self._known: dict[Value, Any] = {}

    def inline(self, closed: Any, arguments: Sequence[Value]) -> list[Value]:
        """Append the equations of a jaxpr, applied to values; returns the values of its results."""
        jaxpr, constants = opened(closed)
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
                return EXPANSIONS[found.call.expansion](self, eqn, inner, inputs)
            except NotFollowed as error:
                # What an expansion has appended before it gave up must go: the equation is kept as one, opaque.
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
        return self.emit(eqn.primitive, inputs, structs, eqn.params, eqn.source_info, opaque=why)

    def constant(self, value: Value) -> Any:
        """The array that a value is whatever the leaves and the images; None if it depends on them."""
        if value in self.on_images:
            return None
        if value not in self._known:
            eqn, found = self.written_by.get(value), self.program.constants.get(value)
            if eqn is not None and not eqn.opaque:
                operands = [self.constant(operand) for operand in eqn.inputs]
                if all(operand is not None for operand in operands):
                    with jax.ensure_compile_time_eval():
                        self._known.update(zip(eqn.outputs, apply(eqn, operands), strict=True))
                    return self._known[value]
            self._known[value] = found
        return self._known[value]

    def retraced(self, function: Callable[..., Any], inputs: Sequence[Value]) -> list[Value]:
        """Append the equations of a function of arrays."""
        shapes, dtypes = self.program.shapes, self.program.dtypes
        return self.inline(
            jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shapes[v], dtypes[v]) for v in inputs)), inputs
        )

    def run(self, value: Value, ends: tuple[int, int], axis: int, source: Any) -> Value:
        """The elements from one position to another along an axis."""
        starts, limits = [0] * len(self.program.shapes[value]), list(self.program.shapes[value])
        starts[axis], limits[axis] = ends
        params = {"start_indices": tuple(starts), "limit_indices": tuple(limits), "strides": None}
        return self.append(lax_primitives.slice_p, (value,), params, source)

    def pick(self, value: Value, position: int, source: Any, axis: int = 0) -> Value:
        """`value[position]`, along `axis`."""
        kept = self.run(value, (position, position + 1), axis, source)
        return self.append(lax_primitives.squeeze_p, (kept,), {"dimensions": (axis,)}, source)

    def stacked(self, values: Sequence[Value], source: Any, axis: int = 0) -> Value:
        """The values along a new axis, the inverse of `pick`."""
        shape = self.program.shapes[values[0]]
        old_axes = (*range(axis), *range(axis + 1, len(shape) + 1))
        params = {"shape": (*shape[:axis], 1, *shape[axis:]), "broadcast_dimensions": old_axes, "sharding": None}
        rows = [self.append(lax_primitives.broadcast_in_dim_p, (value,), params, source) for value in values]
        return self.append(lax_primitives.concatenate_p, rows, {"dimension": axis}, source)

    def append(self, primitive: Any, inputs: Sequence[Value], params: Mapping[str, Any], source: Any) -> Value:
        """Append an equation with one result that the jaxpr did not have."""
        shapes, dtypes = self.program.shapes, self.program.dtypes
        structs = [jax.ShapeDtypeStruct(shapes[value], dtypes[value]) for value in inputs]
        result = jax.eval_shape(lambda *xs: primitive.bind(*xs, **params), *structs)
        (output,) = self.emit(primitive, inputs, [(result.shape, result.dtype)], params, source)
        return output

    def emit(
        self,
        primitive: Any,
        inputs: Sequence[Value],
        results: Sequence[tuple[tuple[int, ...], Any]],
        params: Mapping[str, Any],
        source: Any,
        *,
        opaque: str = "",
    ) -> list[Value]:
        """Append an equation; returns the values of its results."""
        outputs = [self.program.new_value(shape, dtype) for shape, dtype in results]
        if not self.on_images.isdisjoint(inputs):
            self.on_images.update(outputs)
        eqn = Equation(primitive, tuple(inputs), tuple(outputs), params, self.sources(source), opaque=opaque)
        self.written_by.update(dict.fromkeys(outputs, eqn))
        (self.program.equations if outputs else self.program.effects).append(eqn)
        return outputs

    def sources(self, innermost: Any) -> tuple[Any, ...]:
        """Where an equation comes from, through the calls that are being inlined."""
        return (innermost, *reversed(self.callers))


def _is_mutable(aval: Any) -> bool:
    return hasattr(aval, "inner_aval")


Constant = Callable[[Value], Any]
"""The array that a value is whatever the leaves and the images; None if it depends on them."""


def settle_indices(program: Program, constant: Constant) -> None:
    """Replaces dynamic slices and gathers of one element or run at constant positions by slices, in place.

    Args:
        program: a traced model.
        constant: of the tracer that made it.
    """
    equations: list[Equation] = []
    for eqn in program.equations:
        settle = _READS.get(row(eqn).ties)
        equations += (settle and settle(program, eqn, constant)) or [eqn]
    program.equations = equations


def _slice(program: Program, eqn: Equation, starts: list[int], output: Value) -> Equation:
    limits = [start + size for start, size in zip(starts, eqn.params["slice_sizes"], strict=True)]
    params = {"start_indices": tuple(starts), "limit_indices": tuple(limits), "strides": None}
    return Equation(lax_primitives.slice_p, eqn.inputs[:1], (output,), params, eqn.sources)


def _clamped(program: Program, eqn: Equation, starts: list[int]) -> list[int]:
    """As JAX reads beyond an end: the last run that fits."""
    sizes = zip(program.shapes[eqn.inputs[0]], eqn.params["slice_sizes"], strict=True)
    return [min(max(start, 0), size - taken) for start, (size, taken) in zip(starts, sizes, strict=True)]


def _dynamic_slice(program: Program, eqn: Equation, constant: Constant) -> list[Equation] | None:
    starts = [start for value in eqn.inputs[1:] if (start := constant(value)) is not None]
    if len(starts) < len(eqn.inputs) - 1:
        return None
    return [_slice(program, eqn, _clamped(program, eqn, [int(start) for start in starts]), *eqn.outputs)]


def _gather(program: Program, eqn: Equation, constant: Constant) -> list[Equation] | None:
    numbers, (output,) = eqn.params["dimension_numbers"], eqn.outputs
    # One vector of positions reads one run; what it is laid out as differs from the run by unit axes alone.
    if int(np.prod(program.shapes[eqn.inputs[1]][:-1])) != 1 or getattr(numbers, "operand_batching_dims", ()):
        return None
    positions = constant(eqn.inputs[1])
    if positions is None:
        return None
    starts = [0] * len(eqn.params["slice_sizes"])
    for axis, position in zip(numbers.start_index_map, np.reshape(positions, -1).tolist(), strict=True):
        starts[axis] = int(position)
    clamped = _clamped(program, eqn, starts)
    if clamped != starts and eqn.params["mode"] != jax.lax.GatherScatterMode.CLIP:  # may be filled with NaN
        return None
    dtype = program.dtypes[eqn.inputs[0]]
    run = program.new_value(eqn.params["slice_sizes"], dtype)
    params = {"new_sizes": program.shapes[output], "dimensions": None, "sharding": None}
    return [
        _slice(program, eqn, clamped, run),
        Equation(lax_primitives.reshape_p, (run,), (output,), params, eqn.sources),
    ]


_READS: dict[Any, Any] = {axis_rules.dynamic_slice: _dynamic_slice, axis_rules.gather: _gather}
