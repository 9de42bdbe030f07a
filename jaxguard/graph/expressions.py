"""Which values of a program are the same computation of the same leaves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxguard.graph.program import Equation, Program, Value, interpret


def number_expressions(program: Program) -> dict[Value, int]:
    """Numbers the values that do not depend on the images, so that equal numbers mean equal arrays.

    Two values are equal if the same primitive makes them from equal values. A kernel that is recomputed in every
    step of a recurrent layer thus has one number, and kernels that are mixed from one bank in different ways have
    several.

    Args:
        program: a traced model.

    Returns:
        Value -> number; values that depend on the images have none.
    """
    numbers: dict[Any, int] = {}
    moving = program.dependents({program.images})

    def number(key: Any) -> int:
        return numbers.setdefault(key, len(numbers))

    def rule(eqn: Equation, operands: list[int | None]) -> list[int | None]:
        if moving.intersection(eqn.outputs):
            return [None] * len(eqn.outputs)
        # Equations whose results may differ from run to run equal themselves alone.
        parameters = id(eqn) if eqn.opaque else repr(sorted(eqn.params.items()))
        return [number((eqn.name, parameters, tuple(operands), k)) for k in range(len(eqn.outputs))]

    facts = {leaf: number(("leaf", leaf)) for leaf in program.leaves}
    facts |= {value: number(_constant_key(value, array)) for value, array in program.constants.items()}
    return interpret(program.primitive_equations(), facts, rule)


def _constant_key(value: Value, array: Any) -> Any:
    is_plain = isinstance(array, np.ndarray | np.generic | int | float | bool | jax.Array)
    if is_plain and not isinstance(array, Tracer) and np.size(array) < 1024 and not _is_key(array):
        array = np.asarray(array)
        return array.dtype.str, array.shape, array.tobytes()
    return id(array)


def _is_key(array: Any) -> bool:
    return jnp.issubdtype(getattr(array, "dtype", np.float32), jax.dtypes.extended)
