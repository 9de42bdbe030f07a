"""Which leaves may be set to zero so that a channel of the traced program is zero: proposals, to be tried out.

A sum is zero if all its parts are, a product if one factor is. Behind a layer these rules lead from its gate to the
*terms* that have to be zero: a scale and a bias, or a kernel and a bias. Before it they lead from a term to sets of
leaves: `w + A @ B` to `{w, B}`, `v / |v| * g` to `{v}` and `{g}`. Most functions are not looked at: that zero leaves
make a term zero, and nothing else, is found out in `jaxguard.graph.cuts`.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxguard.graph import axis_rules
from jaxguard.graph.channels import Producer, kernel_dims
from jaxguard.graph.primitives import Channels, Form, row
from jaxguard.graph.program import Equation, Program, Value

MAX_PROPOSALS = 16


class Term(NamedTuple):
    """A value that does not depend on the images and has to be zero in a channel.

    Attributes:
        value: a kernel, scale, mean or bias, as the layer reads it.
        axes: of the value, that the channels run over.
    """

    value: Value
    axes: tuple[int, ...]


class Way(NamedTuple):
    """Terms that make a channel zero together, and the equations that read them."""

    terms: tuple[Term, ...]
    readers: frozenset[Equation]


class Setting(NamedTuple):
    """A leaf, and what its channels are set to: a value with one element, or zero."""

    leaf: Value
    fill: Value | None = None


Proposal = frozenset[Setting]


class Zeroing:
    """Proposals for one program.

    Attributes:
        moving: values that depend on the images.
        consumers: value -> the equations that read it.
    """

    def __init__(self, program: Program, producers: Sequence[Producer]):
        self.program = program
        self.moving = program.dependents({program.images})
        self.consumers: dict[Value, list[Equation]] = defaultdict(list)
        for eqn in program.equations:
            for value in set(eqn.inputs):
                self.consumers[value].append(eqn)
        self._written_by = {value: eqn for eqn in program.primitive_equations() for value in eqn.outputs}
        self._made_by = {producer.result: producer for producer in producers}
        self._on_leaves = program.dependents(program.leaves)
        self._proposals: dict[Value, list[Proposal]] = {}

    def ways(self, value: Value, axes: tuple[int, ...]) -> list[Way]:
        """How a channel of a value behind a layer becomes zero, the last factors first.

        Args:
            value: the gated value.
            axes: of the value, that the channels run over.

        Returns:
            Alternatives; none where something stands between that is no sum and no product.
        """
        if value in self._made_by:
            made = self._made_by[value]
            side = made.equation.inputs.index(made.operand)
            dims = kernel_dims(made.equation, side, len(self.program.shapes[made.operand]))
            return [Way((Term(made.operand, dims.outputs),), frozenset({made.equation}))]
        eqn = self._written_by.get(value)
        if eqn is None:
            return []
        channels = row(eqn).channels
        if channels in (Channels.ADDS, Channels.SUBTRACTS):
            found = [
                Way(tuple(t for way in ways for t in way.terms), frozenset().union(*(way.readers for way in ways)))
                for ways in itertools.product(*(self._operand(v, value, axes) for v in eqn.inputs))
            ]
        elif channels is Channels.MULTIPLIES:
            # Factors that do not depend on the images first: a leaf can be set to zero, an activation cannot.
            factors = sorted(eqn.inputs, key=self.moving.__contains__)
            found = [way for v in factors for way in self._operand(v, value, axes)]
        elif channels is Channels.DIVIDES or (len(eqn.inputs) == 1 and _is_linear_elementwise(eqn)):
            found = self._operand(eqn.inputs[0], value, axes)
        else:
            found = []
        return [Way(way.terms, way.readers | {eqn}) for way in found][:MAX_PROPOSALS]

    def _operand(self, value: Value, result: Value, axes: tuple[int, ...]) -> list[Way]:
        if value in self.moving:
            # What is read elsewhere too must not become zero there.
            return self.ways(value, axes) if len(self.consumers[value]) == 1 and value != self.program.logits else []
        if value not in self._on_leaves:
            constant = self.program.constants.get(value)
            return [Way((), frozenset())] if constant is not None and not np.any(np.asarray(constant)) else []
        shape, like = self.program.shapes[value], self.program.shapes[result]
        is_channelwise = len(shape) == len(like) and all(shape[k] == like[k] for k in axes)
        return [Way((Term(value, axes),), frozenset())] if is_channelwise else []

    def proposals(self, value: Value) -> list[Proposal]:
        """Sets of leaves that may make a value zero.

        Args:
            value: one that does not depend on the images.

        Returns:
            At most `MAX_PROPOSALS`; the smallest first.
        """
        if value not in self._proposals:
            found = dict.fromkeys(self._propose(value))
            self._proposals[value] = sorted(found, key=len)[:MAX_PROPOSALS]
        return self._proposals[value]

    def _propose(self, value: Value) -> Iterable[Proposal]:
        if value in self.program.leaves:
            return [frozenset({Setting(value)})]
        if value not in self._on_leaves:
            return [frozenset()]
        eqn = self._written_by[value]
        operands = [v for v in eqn.inputs if v in self._on_leaves]
        if eqn.opaque:
            return []
        if row(eqn).channels in (Channels.MULTIPLIES, Channels.MAKES):
            return [one for v in operands for one in self.proposals(v)]
        if row(eqn).channels is Channels.DIVIDES or row(eqn).form is Form.LINEAR_IN_FIRST:
            return self.proposals(eqn.inputs[0])
        # Any other function of several operands is zero for sure only where it is tried: all of them to zero at once.
        together = (frozenset().union(*parts) for parts in itertools.product(*map(self.proposals, operands)))
        return [*itertools.islice(together, MAX_PROPOSALS), *self._at_zero_point(eqn)]

    def _at_zero_point(self, eqn: Equation) -> list[Proposal]:
        """Of a difference `q - z` with one zero point for all channels: `q = z`."""
        if row(eqn).channels is not Channels.SUBTRACTS or eqn.inputs[0] not in self._on_leaves:
            return []
        fill = eqn.inputs[1]
        while self.program.shapes[fill] and np.prod(self.program.shapes[fill]) > 1:
            spread = self._written_by.get(fill)
            if spread is None or row(spread).ties is not axis_rules.broadcast_in_dim:
                return []
            fill = spread.inputs[0]
        single = [one for one in self.proposals(eqn.inputs[0]) if len(one) == 1]
        return [frozenset({Setting(setting.leaf, fill)}) for (setting,) in map(tuple, single)]


def _is_linear_elementwise(eqn: Equation) -> bool:
    return row(eqn).form is Form.LINEAR and row(eqn).ties in (axis_rules.elementwise, axis_rules.identity)
