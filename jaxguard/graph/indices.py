"""Reads at positions that are known while tracing, made plain slices.

A loop over layers that takes `w[i]` reads a stacked leaf by a dynamic slice or a gather. Once the loop is laid flat,
`i` is a constant in every step, and each step is a slice of its own, as in a Python loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import primitives as lax_primitives

from jaxguard.graph import axis_rules
from jaxguard.graph.primitives import row
from jaxguard.graph.program import Equation, Program, Value

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
