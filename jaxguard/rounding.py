"""Convolutions and products of a program, computed otherwise: the program is traced and its equations are rewritten.

A TPU multiplies float32 in one pass of bfloat16 unless it is asked for more: each operand of a convolution or product
is rounded to 8 bits of significand, and products are summed in float32. `in_bfloat16` does the same on any machine;
`in_passes` asks for another precision, whatever the program asked for when it was traced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex

Change = Callable[[Any], list[Any]]
"""A product's equation -> the equations in its place, the last of which has its outputs."""

PRODUCT = frozenset({"precision", "preferred_element_type"})
"""Parameters that JAX gives to primitives whose first two operands are multiplied and summed, and to no others."""

(_ROUNDING,) = jax.make_jaxpr(lambda x: lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7))(0.0).eqns


def in_bfloat16(eqn: Any) -> list[Any]:
    """Both operands rounded to bfloat16, as values of their own type; a `Change`."""
    roundings, operands = [], list(eqn.invars)
    for position, operand in enumerate(eqn.invars[:2]):
        if operand.aval.dtype in (jnp.float32, jnp.float64):
            operands[position] = jex.Var(operand.aval)
            roundings.append(
                eqn.replace(
                    primitive=_ROUNDING.primitive,
                    params=_ROUNDING.params,
                    invars=[operand],
                    outvars=[operands[position]],
                )
            )
    return [*roundings, eqn.replace(invars=operands)]


def in_passes(precision: lax.Precision) -> Change:
    """The change to a precision of the machine's own."""

    def change(eqn: Any) -> list[Any]:
        return [eqn.replace(params={**eqn.params, "precision": (precision, precision)})]

    return change


def rewritten(function: Callable[..., Any], change: Change) -> Callable[..., Any]:
    """A function whose products are changed, also in the functions, loops and derivatives that it is made of.

    Args:
        function: of arrays, pytrees of such, and anything else.
        change: of every product.

    Returns:
        The function, to be traced: under `jax.jit`, with derivatives inside it rather than around it. Products of a
        Pallas kernel stay as they are.

    Example:
        >>> third = jnp.float32(1 / 3)
        >>> jax.jit(rewritten(jnp.dot, in_bfloat16))(third, jnp.ones(())).item()
        0.333984375
    """

    def changed(*args: Any, **kwargs: Any) -> Any:
        arguments = [*args, *kwargs.values()]
        places = [k for k, one in enumerate(arguments) if any(isinstance(x, jax.Array) for x in jax.tree.leaves(one))]

        def of_arrays(*arrays: Any) -> Any:
            whole = list(arguments)
            for place, array in zip(places, arrays, strict=True):
                whole[place] = array
            return function(*whole[: len(args)], **dict(zip(kwargs, whole[len(args) :], strict=True)))

        arrays = [arguments[place] for place in places]
        closed, results = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
        outputs = jex.jaxpr_as_fun(_Changer(change).closed(closed))(*jax.tree.leaves(arrays))
        return jax.tree.unflatten(jax.tree.structure(results), outputs)

    return changed


class _Changer:
    """Changes jaxprs, each once: what several calls share stays shared, and is compiled once."""

    def __init__(self, change: Change):
        self.change = change
        self.known: dict[int, tuple[Any, Any]] = {}

    def closed(self, closed: Any) -> Any:
        return closed.replace(jaxpr=self.jaxpr(closed.jaxpr))

    def jaxpr(self, jaxpr: Any) -> Any:
        equations = []
        for eqn in jaxpr.eqns:
            if eqn.params.keys() >= PRODUCT:
                equations += self.change(eqn)
            elif "pallas" in eqn.primitive.name:
                equations.append(eqn)
            else:
                equations.append(eqn.replace(params={name: self.inner(one) for name, one in eqn.params.items()}))
        return jaxpr.replace(eqns=equations)

    def inner(self, parameter: Any) -> Any:
        """A parameter of an equation: jaxprs in it are changed."""
        if isinstance(parameter, (tuple, list)):
            return type(parameter)(map(self.inner, parameter)) if type(parameter) in (tuple, list) else parameter
        if not isinstance(parameter, (jex.ClosedJaxpr, jex.Jaxpr)):
            return parameter
        if id(parameter) not in self.known:
            made = self.closed(parameter) if isinstance(parameter, jex.ClosedJaxpr) else self.jaxpr(parameter)
            self.known[id(parameter)] = parameter, made  # kept, so that no other takes its id
        return self.known[id(parameter)][1]
