"""A model as data: its jaxpr, inlined into one flat list of equations that can be analysed, cut and evaluated.

Calls (`jit`, `remat`, ...) are inlined with fresh values at every call site, `scan` is unrolled, `cond` becomes a
select between its branches, `stack`, `split` and `unstack` become concatenation and slices, so that every convolution
of a model is one equation and few primitives need a rule. A `custom_jvp` / `custom_vjp` call without a convolution or
product inside is evaluated whole, which keeps its gradient rule, but shows its body to the analyses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex
from jax.extend import source_info_util
from jax.extend.core import primitives

from jaxguard.errors import GraphError

Variables = Mapping[str, Any]
"""A pytree of arrays, for Flax `{"params": ..., "batch_stats": ...}`; never modified in place."""

ApplyFn = Callable[[Variables, jax.Array], jax.Array]
"""`(variables, images [B, H, W, C]) -> logits [B, K]`, in evaluation mode."""

Value = int
"""An array of the program, by number."""

LINEAR_MAPS = ("conv_general_dilated", "dot_general")
MAX_UNROLL = 256


@dataclass(frozen=True, eq=False, slots=True)
class Equation:
    """One primitive application, `outputs = primitive(inputs, **params)`.

    Attributes:
        sources: where it was traced from, then the calls it was inlined through, innermost first.
        body: for a custom-derivative call, the equations inside; they read and write the same values.
    """

    primitive: jex.Primitive
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    params: Mapping[str, Any]
    sources: tuple[Any, ...]
    body: tuple[Equation, ...] = ()

    @property
    def name(self) -> str:
        """Name of the primitive."""
        return self.primitive.name

    @property
    def where(self) -> str:
        """File, line and function that the equation was traced from; its caller's where jax kept none of its own."""
        return next(filter(None, map(source_info_util.summarize, self.sources)), "an unknown line")


@dataclass(eq=False)
class Program:
    """A traced `apply_fn(variables, images)`.

    Attributes:
        paths: leaf path of each leaf of the variables, in pytree order, such as `params/conv1/kernel`.
        leaves: value of each leaf.
        images: value of the images.
        logits: value of the result.
        equations: in execution order; each value is written once.
        constants: arrays the model closes over, and literals.
        shapes: shape of each value.
        dtypes: dtype of each value.
    """

    paths: tuple[str, ...] = ()
    leaves: tuple[Value, ...] = ()
    images: Value = -1
    logits: Value = -1
    equations: list[Equation] = field(default_factory=list)
    constants: dict[Value, Any] = field(default_factory=dict)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    dtypes: list[Any] = field(default_factory=list)
    _callers: list[Any] = field(default_factory=list)

    def primitive_equations(self) -> Iterator[Equation]:
        """All equations, custom-derivative calls replaced by their bodies."""
        for equation in self.equations:
            yield from equation.body or (equation,)

    def evaluate(
        self,
        known: Mapping[Value, Any],
        equations: Iterable[Equation] | None = None,
        after: Callable[[Value, Any], Any] | None = None,
    ) -> dict[Value, Any]:
        """Run equations on known values.

        Args:
            known: arrays of the values the equations read, constants excepted.
            equations: which to run, in order; all by default.
            after: `(value, array) -> array`, called on every result before anything reads it.

        Returns:
            The known values and all results.
        """
        env = {**self.constants, **known}
        for equation in self.equations if equations is None else equations:
            arguments = [env[value] for value in equation.inputs]
            results = equation.primitive.bind(*arguments, **equation.primitive.get_bind_params(equation.params))
            if not equation.primitive.multiple_results:
                results = [results]
            for value, result in zip(equation.outputs, results, strict=True):
                env[value] = result if after is None else after(value, result)
        return env

    def cone(self, value: Value) -> list[Equation]:
        """The equations that `value` depends on, in execution order."""
        needed, kept = {value}, []
        for equation in reversed(self.equations):
            if needed.intersection(equation.outputs):
                needed.update(equation.inputs)
                kept.append(equation)
        return kept[::-1]

    def new_value(self, shape: tuple[int, ...], dtype: Any) -> Value:
        """Number a new array."""
        self.shapes.append(tuple(shape))
        self.dtypes.append(dtype)
        return len(self.shapes) - 1

    def sources(self, innermost: Any) -> tuple[Any, ...]:
        """Where an equation comes from, through the calls that are being inlined."""
        return (innermost, *reversed(self._callers))

    def new_constant(self, array: Any) -> Value:
        """Number a constant array."""
        value = self.new_value(np.shape(array), jax.dtypes.result_type(array))
        self.constants[value] = array
        return value


def leaf_paths(variables: Any) -> tuple[str, ...]:
    """Paths of the leaves of a pytree in its order, names joined by `/`.

    >>> leaf_paths({"params": {"conv": {"kernel": 0, "bias": 0}}})
    ('params/conv/bias', 'params/conv/kernel')
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(variables)
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat)


def trace(apply_fn: ApplyFn, variables: Any, images: Any) -> Program:
    """Trace a model into a flat program.

    Args:
        apply_fn: `(variables, images) -> logits`.
        variables: pytree of arrays or `jax.ShapeDtypeStruct`s; only shapes and dtypes are looked at.
        images: likewise, `[B, ...]`.

    Returns:
        The program.

    Raises:
        GraphError: the model returns anything but one array, or loops in a way that cannot be unrolled.
    """
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.result_type(x)), (variables, images))
    closed, result = jax.make_jaxpr(apply_fn, return_shape=True)(*structs)
    if not isinstance(result, jax.ShapeDtypeStruct):
        raise GraphError(
            f"expected apply_fn to return one array of logits, got {jax.tree.structure(result)}; "
            "wrap it so that it returns the logits alone"
        )
    program = Program(paths=leaf_paths(variables))
    arguments = [program.new_value(v.aval.shape, v.aval.dtype) for v in _open(closed)[0].invars]
    program.leaves, program.images = tuple(arguments[:-1]), arguments[-1]
    (program.logits,) = _inline(program, closed, arguments)
    return program


def _open(closed: Any) -> tuple[Any, Sequence[Any]]:
    """Jaxpr and constants; from JAX 0.11 on they are one object."""
    return getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())


def _inline(program: Program, closed: Any, arguments: Sequence[Value]) -> list[Value]:
    jaxpr, constants = _open(closed)
    env: dict[Any, Value] = dict(zip(jaxpr.constvars, map(program.new_constant, constants), strict=True))
    env.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Value:
        return program.new_constant(atom.val) if isinstance(atom, jex.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        expand = CALLS.get(eqn.primitive.name)
        if expand is None:
            outputs = _emit(program, eqn, inputs)
        else:
            program._callers.append(eqn.source_info)
            outputs = expand(program, eqn, inputs)
            program._callers.pop()
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _emit(program: Program, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    outputs = [program.new_value(var.aval.shape, getattr(var.aval, "dtype", None)) for var in eqn.outvars]
    sources = program.sources(eqn.source_info)
    program.equations.append(Equation(eqn.primitive, tuple(inputs), tuple(outputs), eqn.params, sources))
    return outputs


def _call(program: Program, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    closed = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
    return _inline(program, closed, inputs)


def _custom_derivative(program: Program, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    start = len(program.equations)
    outputs = _call(program, eqn, inputs)
    body = program.equations[start:]
    written = {value for equation in body for value in equation.outputs}
    has_linear_map = any(equation.name in LINEAR_MAPS for equation in body)
    if has_linear_map or len(set(outputs)) < len(outputs) or not written.issuperset(outputs):
        return outputs
    del program.equations[start:]
    inner = tuple(part for equation in body for part in equation.body or (equation,))
    sources = program.sources(eqn.source_info)
    program.equations.append(Equation(eqn.primitive, tuple(inputs), tuple(outputs), eqn.params, sources, inner))
    return outputs


def _scan(program: Program, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    length, (num_consts, num_carry) = eqn.params["length"], _scan_counts(eqn.params)
    if length > MAX_UNROLL:
        raise GraphError(
            f"expected a scan of at most {MAX_UNROLL} steps, got {length} at "
            f"{source_info_util.summarize(eqn.source_info)}; audit a shorter form of the model"
        )
    constants, stacked = list(inputs[:num_consts]), inputs[num_consts + num_carry :]
    carry = list(inputs[num_consts : num_consts + num_carry])
    steps: dict[int, list[Value]] = {}
    for step in reversed(range(length)) if eqn.params["reverse"] else range(length):
        sliced = [_pick(program, value, step, eqn.source_info) for value in stacked]
        outputs = _inline(program, eqn.params["jaxpr"], [*constants, *carry, *sliced])
        carry, steps[step] = outputs[:num_carry], outputs[num_carry:]
    results = zip(*(steps[step] for step in range(length)), strict=True)
    return carry + [_lay_out(program, values, eqn.source_info) for values in results]


def _scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """Constants and carries of a scan; from JAX 0.11 on the sizes of its inputs' parts."""
    if "ft_in" in params:
        constants, carry, _ = params["ft_in"].unpack()
        return len(constants), len(carry)
    return params["num_consts"], params["num_carry"]


def _cond(program: Program, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    which, *operands = inputs
    branches = [_inline(program, branch, operands) for branch in eqn.params["branches"]]
    return [
        _append(program, primitives.select_n_p, (which, *cases), {}, eqn.source_info)
        for cases in zip(*branches, strict=True)
    ]


def _append(program: Program, primitive: Any, inputs: Sequence[Value], params: Mapping[str, Any], source: Any) -> Value:
    structs = [jax.ShapeDtypeStruct(program.shapes[value], program.dtypes[value]) for value in inputs]
    result = jax.eval_shape(lambda *xs: primitive.bind(*xs, **params), *structs)
    output = program.new_value(result.shape, result.dtype)
    program.equations.append(Equation(primitive, tuple(inputs), (output,), params, program.sources(source)))
    return output


def _stack(program: Program, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    return [_lay_out(program, inputs, eqn.source_info, eqn.params["axis"])]


def _split(program: Program, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    (value,), axis = inputs, eqn.params["axis"]
    edges = accumulate(map(int, eqn.params["sizes"]), initial=0)
    return [_slice(program, value, run, axis, eqn.source_info) for run in pairwise(edges)]


def _unstack(program: Program, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    (value,), axis = inputs, eqn.params["axis"]
    return [_pick(program, value, k, eqn.source_info, axis) for k in range(program.shapes[value][axis])]


def _slice(program: Program, value: Value, run: tuple[int, int], axis: int, source: Any) -> Value:
    starts, limits = [0] * len(program.shapes[value]), list(program.shapes[value])
    starts[axis], limits[axis] = run
    params = {"start_indices": tuple(starts), "limit_indices": tuple(limits), "strides": None}
    return _append(program, primitives.slice_p, (value,), params, source)


def _pick(program: Program, value: Value, position: int, source: Any, axis: int = 0) -> Value:
    """`value[position]`, along `axis`."""
    row = _slice(program, value, (position, position + 1), axis, source)
    return _append(program, primitives.squeeze_p, (row,), {"dimensions": (axis,)}, source)


def _lay_out(program: Program, values: Sequence[Value], source: Any, axis: int = 0) -> Value:
    """The values along a new axis, the inverse of `_pick`."""
    shape = program.shapes[values[0]]
    old_axes = (*range(axis), *range(axis + 1, len(shape) + 1))
    params = {"shape": (*shape[:axis], 1, *shape[axis:]), "broadcast_dimensions": old_axes, "sharding": None}
    rows = [_append(program, primitives.broadcast_in_dim_p, (value,), params, source) for value in values]
    return _append(program, primitives.concatenate_p, rows, {"dimension": axis}, source)


CALLS: dict[str, Callable[[Program, Any, Sequence[Value]], list[Value]]] = {
    "jit": _call,
    "pjit": _call,
    "closed_call": _call,
    "core_call": _call,
    "remat": _call,
    "remat2": _call,
    "checkpoint": _call,
    "custom_jvp_call": _custom_derivative,
    "custom_vjp_call": _custom_derivative,
    "scan": _scan,
    "cond": _cond,
    "stack": _stack,
    "split": _split,
    "unstack": _unstack,
}
"""Primitives that carry jaxprs or are short for others -> how they are laid flat."""
