"""A value function as a program, so that equal ones share what is compiled."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.core import eval_jaxpr
from jax.tree_util import Partial

ValuesFn = Callable[[jax.Array], jax.Array]
"""`gates [B, N] -> values [B]`; `jax.vmap` of a function of one coalition will do.

Neighbours among the `B` coalitions differ as little as possible. A function that is slow to trace, a large model, is
best given as a `jax.tree_util.Partial` of a hashable function and its arrays: it is then traced once and not once a
call.
"""


@dataclass(frozen=True)
class Program:
    """What a value function computes, without its arrays; equal to any other that computes the same.

    Attributes:
        signature: see `_signature`.
        jaxpr: of the first function that was traced to it.
    """

    signature: Hashable
    jaxpr: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.signature == other.signature

    def __hash__(self) -> int:
        return hash(self.signature)


@dataclass(frozen=True)
class _Traced:
    """A value function for some numbers of coalitions; its arguments are the arrays of each program."""

    programs: tuple[tuple[int, Program], ...]

    def __call__(self, *arrays: Any) -> jax.Array:
        *closed_over, gates = arrays
        for (rows, program), own in zip(self.programs, closed_over, strict=True):
            if rows == gates.shape[0]:
                return eval_jaxpr(program.jaxpr, own, gates)[0]
        raise ValueError(f"expected coalitions [{' or '.join(str(rows) for rows, _ in self.programs)}, N]")


def traced(values_fn: ValuesFn, players: int, rows: Sequence[int]) -> Partial:
    """The function as an argument of compiled code.

    A plain function, a lambda, is traced: what it closes over becomes an argument, and its program is compared with
    those seen before. A `Partial` is taken as it is.

    Args:
        values_fn: `gates [B, N] -> values [B]`.
        players: `N`.
        rows: all `B` with which it will be called.

    Returns:
        The function as a pytree.
    """
    if isinstance(values_fn, Partial):
        return values_fn
    if not jax.sharding.get_abstract_mesh().empty:
        # Its program depends on how its arguments are distributed, which is not known yet. Code that is distributed is
        # part of a larger program anyway, and compiled with it.
        return Partial(values_fn)
    programs, arrays = [], []
    for count in sorted({*rows}):
        # What the function closes over appears as constants of its jaxpr: they become arguments, so that the same
        # program serves other arrays, such as another suspect's weights.
        closed = jax.make_jaxpr(values_fn)(jnp.ones((count, players)))
        programs.append((count, Program(_signature(closed.jaxpr), closed.jaxpr)))
        arrays.append(tuple(closed.consts))
    return Partial(_Traced(tuple(programs)), *arrays)


def _signature(jaxpr: Any) -> Hashable:
    """A program with its variables numbered; two are equal only if they compute the same.

    What cannot be compared counts as different: such a function is compiled again.
    """
    numbers: dict[Any, int] = {}

    def bound(variable: Any) -> Hashable:
        numbers[variable] = len(numbers)
        return repr(variable.aval)

    def read(atom: Any) -> Hashable:
        if isinstance(atom, jex.Literal):
            value = np.asarray(atom.val)
            return str(value.dtype), value.tobytes(), repr(atom.aval)
        return numbers[atom]

    # Variables are numbered in order of appearance: two traces of one function give the same numbers, although their
    # variables are different objects.
    heads = tuple(bound(variable) for variable in (*jaxpr.constvars, *jaxpr.invars))
    equations = tuple(
        (
            eqn.primitive,
            tuple(read(atom) for atom in eqn.invars),
            tuple((name, _comparable(value)) for name, value in sorted(eqn.params.items()) if name not in _RULES),
            tuple(bound(variable) for variable in eqn.outvars),
        )
        for eqn in jaxpr.eqns
    )
    return heads, equations, tuple(read(atom) for atom in jaxpr.outvars)


_RULES = {"jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "out_trees"}
"""Parameters that hold derivatives of a function which is part of the program itself; remade at each trace."""


def _comparable(value: Any) -> Hashable:
    if isinstance(value, jex.ClosedJaxpr):
        return _signature(value.jaxpr), tuple(_comparable(const) for const in value.consts)
    if isinstance(value, jex.Jaxpr):
        return _signature(value)
    if isinstance(value, (tuple, list)):
        return type(value), tuple(_comparable(part) for part in value)
    if isinstance(value, dict):
        return tuple((key, _comparable(part)) for key, part in value.items())
    return (type(value), value) if isinstance(value, Hashable) else _Same(value)


@dataclass(frozen=True, eq=False)
class _Same:
    """Equal to nothing but the same object."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
