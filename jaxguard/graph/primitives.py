"""The table of primitives: one row states everything the package has to know about one.

To support a new primitive, add its row to `PRIMITIVES`; nothing else in jaxguard lists primitives. One without a row
is *opaque*: it is evaluated as it is, and all channels that flow into it are frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from jaxguard.graph import axis_rules
from jaxguard.graph.axis_rules import Rule
from jaxguard.graph.program import Equation


class Channels(Enum):
    """What a primitive does to the channels of its operands."""

    MAKES = auto()
    """Makes new ones: the contractions of convolutions and dense layers."""
    ADDS = auto()
    SUBTRACTS = auto()
    MULTIPLIES = auto()
    DIVIDES = auto()
    KEEPS = auto()
    """Each result is its operand, possibly in another precision."""
    MOVES = auto()
    """Rearranges elements, or picks some of them."""
    SPREADS = auto()
    """Lays elements out in a larger array, which may repeat them."""
    POOLS = auto()
    """Reduces elements along axes or windows in a way that does not depend on their order."""
    ENDS = auto()
    """Anything else: channels are not followed through it."""


class Form(Enum):
    """What function of its operands the result of a primitive is."""

    LINEAR = auto()
    """Linear in all operands together, up to rounding."""
    MULTILINEAR = auto()
    """Linear in each operand while the others are constant."""
    LINEAR_IN_FIRST = auto()
    """Linear in the first operand while the others are constant."""
    PIECEWISE = auto()
    """Piecewise linear in all operands together."""
    COMPARISON = auto()
    """Piecewise constant: which of two operands is larger."""
    ROOT = auto()
    """A root or power, such as a norm takes of its variance."""
    OPAQUE = auto()
    """None of these."""


class Expansion(Enum):
    """How `trace` lays an equation that stands for others flat."""

    INLINE = auto()
    """The equations of its jaxpr."""
    CUSTOM_DERIVATIVE = auto()
    """Likewise if it contains a layer; else kept whole, its equations beside it, so that its gradient rule holds."""
    UNROLL = auto()
    """The equations of its jaxpr once per step, between slices and a concatenation."""
    REPEAT = auto()
    """The equations of its jaxpr once per step, while the condition of the loop is a constant."""
    SHARDS = auto()
    """The equations of its jaxpr on whole arrays, see `jaxguard.graph.shards`."""
    COLLECTIVE = auto()
    """Inside `SHARDS` alone: what it does along axes of the mesh."""
    SELECT = auto()
    """All branches, and a select between their results."""
    STACK = auto()
    """A concatenation along a new axis."""
    SPLIT = auto()
    """Slices."""
    UNSTACK = auto()
    """Slices of one element."""


class Call(NamedTuple):
    """An equation that stands for others.

    Attributes:
        expansion: how it is laid flat.
        jaxpr: its parameter that holds one jaxpr or several, or None.
    """

    expansion: Expansion
    jaxpr: str | None


@dataclass(frozen=True)
class Primitive:
    """What has to be known about a primitive.

    Attributes:
        name: of the primitive.
        ties: how it ties the axes of its operands to those of its results; also, where the channels go that it moves.
        channels: what it does to channels.
        form: what function of its operands it computes.
        call: how it is laid flat if it stands for other equations, or None.
        jax: versions of JAX that have it: `any`, or a bound such as `< 0.11`.
    """

    name: str
    ties: Rule
    channels: Channels
    form: Form
    call: Call | None
    jax: str


def _rows(names: str, ties: Rule, channels: Channels, form: Form, jax: str = "any") -> list[Primitive]:
    return [Primitive(name, ties, channels, form, None, jax) for name in names.split()]


def _calls(names: str, expansion: Expansion, jaxpr: str | None, jax: str = "any") -> list[Primitive]:
    call = Call(expansion, jaxpr)
    return [Primitive(name, axis_rules.opaque, Channels.ENDS, Form.OPAQUE, call, jax) for name in names.split()]


_LAYERS = [
    *_rows("dot_general", axis_rules.dot_general, Channels.MAKES, Form.MULTILINEAR),
    *_rows("conv_general_dilated", axis_rules.conv_general_dilated, Channels.MAKES, Form.MULTILINEAR),
]

_ELEMENTWISE = [
    *_rows("add add_any", axis_rules.elementwise, Channels.ADDS, Form.LINEAR),
    *_rows("sub", axis_rules.elementwise, Channels.SUBTRACTS, Form.LINEAR),
    *_rows("mul", axis_rules.elementwise, Channels.MULTIPLIES, Form.MULTILINEAR),
    *_rows("div", axis_rules.elementwise, Channels.DIVIDES, Form.LINEAR_IN_FIRST),
    *_rows(
        "convert_element_type copy name reduce_precision stop_gradient",
        axis_rules.elementwise,
        Channels.KEEPS,
        Form.LINEAR,
    ),
    *_rows(
        "device_put optimization_barrier pvary sharding_constraint", axis_rules.identity, Channels.KEEPS, Form.LINEAR
    ),
    *_rows("neg", axis_rules.elementwise, Channels.ENDS, Form.LINEAR),
    *_rows("abs and clamp max min not or select_n sign xor", axis_rules.elementwise, Channels.ENDS, Form.PIECEWISE),
    *_rows("eq eq_to ge gt le le_to lt lt_to ne", axis_rules.elementwise, Channels.ENDS, Form.COMPARISON),
    *_rows("pow rsqrt sqrt", axis_rules.elementwise, Channels.ENDS, Form.ROOT),
    *_rows(
        """
        acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clz complex conj cos cosh digamma erf
        erf_inv erfc exp exp2 expm1 floor igamma igammac imag integer_pow is_finite lgamma log log1p logistic mulhi
        nextafter polygamma population_count real regularized_incomplete_beta rem round shift_left
        shift_right_arithmetic shift_right_logical sin sinh square tan tanh zeta
        """,
        axis_rules.elementwise,
        Channels.ENDS,
        Form.OPAQUE,
    ),
    *_rows("log2", axis_rules.elementwise, Channels.ENDS, Form.OPAQUE, jax=">= 0.11"),
]

_SHAPES = [
    *_rows("transpose", axis_rules.transpose, Channels.MOVES, Form.LINEAR),
    *_rows("reshape", axis_rules.reshape, Channels.MOVES, Form.LINEAR),
    *_rows("squeeze", axis_rules.squeeze, Channels.MOVES, Form.LINEAR),
    *_rows("rev", axis_rules.along_axis("dimensions"), Channels.MOVES, Form.LINEAR),
    *_rows("slice", axis_rules.slice_, Channels.MOVES, Form.LINEAR),
    *_rows("dynamic_slice", axis_rules.dynamic_slice, Channels.MOVES, Form.LINEAR_IN_FIRST),
    *_rows("gather", axis_rules.gather, Channels.MOVES, Form.LINEAR_IN_FIRST),
    *_rows("broadcast_in_dim", axis_rules.broadcast_in_dim, Channels.SPREADS, Form.LINEAR),
    *_rows("tile", axis_rules.tile, Channels.SPREADS, Form.LINEAR),
    *_rows("concatenate", axis_rules.concatenate, Channels.SPREADS, Form.LINEAR),
    *_rows("pad", axis_rules.pad, Channels.SPREADS, Form.LINEAR),
    *_rows("dynamic_update_slice", axis_rules.dynamic_update_slice, Channels.ENDS, Form.OPAQUE),
    *_rows("iota", axis_rules.iota, Channels.ENDS, Form.OPAQUE),
]

_REDUCTIONS = [
    *_rows("reduce_sum", axis_rules.reduction, Channels.POOLS, Form.LINEAR),
    *_rows("reduce_max reduce_min", axis_rules.reduction, Channels.POOLS, Form.PIECEWISE),
    *_rows("reduce_and reduce_or reduce_prod reduce_xor", axis_rules.reduction, Channels.ENDS, Form.OPAQUE),
    *_rows("reduce_window_sum", axis_rules.windowed, Channels.POOLS, Form.LINEAR),
    *_rows("reduce_window_max reduce_window_min", axis_rules.windowed, Channels.POOLS, Form.PIECEWISE),
    *_rows("reduce_window", axis_rules.windowed, Channels.POOLS, Form.OPAQUE),
    *_rows("argmax argmin", axis_rules.arg_reduction, Channels.ENDS, Form.OPAQUE),
    *_rows("cumsum", axis_rules.along_axis("axis"), Channels.ENDS, Form.LINEAR),
    *_rows("cummax cummin", axis_rules.along_axis("axis"), Channels.ENDS, Form.PIECEWISE),
    *_rows("cumlogsumexp cumprod", axis_rules.along_axis("axis"), Channels.ENDS, Form.OPAQUE),
    *_rows("sort", axis_rules.along_axis("dimension"), Channels.ENDS, Form.OPAQUE),
    *_rows("top_k", axis_rules.top_k, Channels.ENDS, Form.OPAQUE),
    *_rows("reduce", axis_rules.reduce_by_function, Channels.ENDS, Form.OPAQUE),
]

_BY_POSITION = [
    *_rows(
        "scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub",
        axis_rules.scatter,
        Channels.ENDS,
        Form.OPAQUE,
    ),
    *_rows("fft", axis_rules.fft, Channels.ENDS, Form.OPAQUE),
    *_rows(
        "cholesky eig eigh geqrf hessenberg householder_product lu qr schur svd triangular_solve tridiagonal",
        axis_rules.leading(2),
        Channels.ENDS,
        Form.OPAQUE,
    ),
    *_rows("lu_pivots_to_permutation", axis_rules.leading(1), Channels.ENDS, Form.OPAQUE),
]

_CALLS = [
    *_calls("jit", Expansion.INLINE, "jaxpr"),
    *_calls("closed_call", Expansion.INLINE, "call_jaxpr", jax="< 0.11"),
    *_calls("remat2", Expansion.INLINE, "jaxpr"),
    *_calls("custom_partitioning custom_vmap_call", Expansion.INLINE, "call"),
    *_calls("custom_jvp_call custom_vjp_call", Expansion.CUSTOM_DERIVATIVE, "call_jaxpr"),
    *_calls("scan", Expansion.UNROLL, "jaxpr"),
    *_calls("while", Expansion.REPEAT, None),
    *_calls("shard_map", Expansion.SHARDS, "jaxpr"),
    *_calls(
        "all_gather all_gather_invariant all_to_all axis_index pmax pmin ppermute psum psum_invariant reduce_scatter",
        Expansion.COLLECTIVE,
        None,
    ),
    *_calls("cond", Expansion.SELECT, "branches"),
    *_calls("stack", Expansion.STACK, None),
    *_calls("split", Expansion.SPLIT, None),
    *_calls("unstack", Expansion.UNSTACK, None),
]

PRIMITIVES = {row.name: row for row in (*_LAYERS, *_ELEMENTWISE, *_SHAPES, *_REDUCTIONS, *_BY_POSITION, *_CALLS)}
"""Name -> row."""


UNKNOWN = Primitive("", axis_rules.opaque, Channels.ENDS, Form.OPAQUE, None, "any")
"""The row of a primitive that has none."""


def row(eqn: Equation) -> Primitive:
    """The row of an equation's primitive; `UNKNOWN` where it has none."""
    return PRIMITIVES.get(eqn.name, UNKNOWN)


def makes_channels(eqn: Equation) -> bool:
    """Whether an equation is a convolution or a product of matrices."""
    return row(eqn).channels is Channels.MAKES
