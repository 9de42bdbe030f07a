"""Convolutions in the layout that CPUs compute fast, NHWC images and HWIO kernels, whatever a model's own is.

Outside of loops XLA brings them into it by itself. In the body of a loop it does not, and falls back to plain nested
loops that are up to 30 times slower; a transposition written out costs next to nothing and changes no number.
`experiments/bench_layout.py` measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as lax_primitives

from jaxguard.graph.program import Equation, apply


def apply_in_loop(eqn: Equation, arguments: Sequence[Any]) -> list[Any]:
    """`jaxguard.graph.program.apply` for the body of a loop: the same results, convolutions as NHWC and HWIO."""
    if eqn.primitive is not lax_primitives.conv_general_dilated_p:
        return apply(eqn, arguments)
    images, kernel = arguments
    own = eqn.params["dimension_numbers"]
    rank = images.ndim
    space = tuple(range(1, rank - 1))
    native = lax.ConvDimensionNumbers(
        lhs_spec=(0, rank - 1, *space), rhs_spec=(rank - 1, rank - 2, *range(rank - 2)), out_spec=(0, rank - 1, *space)
    )
    # A spec lists the axes of batch, channels and space (of a kernel: out, in and taps): here they are put in order.
    batch, channels, *sides = own.lhs_spec
    kernel_out, kernel_in, *taps = own.rhs_spec
    params = {**eqn.params, "dimension_numbers": native}
    result = eqn.primitive.bind(
        jnp.transpose(images, (batch, *sides, channels)),
        jnp.transpose(kernel, (*taps, kernel_in, kernel_out)),
        **params,
    )
    batch, channels, *sides = own.out_spec
    return [jnp.moveaxis(result, range(rank), (batch, *sides, channels))]
