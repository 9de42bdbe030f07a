"""Where a model bends: its ReLUs, and whether what enters them is piecewise linear in the image.

Every value of the traced program is constant, linear in the image (up to an offset), piecewise linear, or neither. A
ReLU is a maximum with zero, or a choice by sign (leaky ReLU), of a value that is linear or piecewise linear: the image
is on a *hinge* where that value, a unit's pre-activation after bias and norm, is zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from jaxguard.errors import FingerprintError
from jaxguard.graph import ChannelGraph
from jaxguard.graph.primitives import Form, row
from jaxguard.graph.program import Equation, Program, Value, interpret


class Dependence(IntEnum):
    """How a value depends on the images."""

    CONSTANT = 0
    LINEAR = 1
    PIECEWISE = 2
    OTHER = 3


@dataclass(frozen=True)
class HingeLayer:
    """A ReLU whose units' hyperplanes can be found.

    Attributes:
        name: of the layers whose outputs enter it.
        value: what enters it, in the graph's program.
        depth: 1 for a ReLU with no other before it, 2 for at most one, ...
        is_linear: whether that value is linear in the image, so that hinges are whole hyperplanes.
        units: channels times locations.
    """

    name: str
    value: Value
    depth: int
    is_linear: bool
    units: int


@dataclass(frozen=True)
class _Fact:
    """What is known about a value.

    Attributes:
        dependence: on the images.
        is_zero: whether it is a constant that is zero everywhere.
        depth: number of ReLUs on the longest path from the images.
        makers: names of the layers that computed it since the last ReLU.
        sign_of: for a comparison with zero, the value compared.
    """

    dependence: Dependence = Dependence.CONSTANT
    is_zero: bool = False
    depth: int = 0
    makers: tuple[str, ...] = ()
    sign_of: Value | None = None


class _Analysis:
    """One pass over a program.

    Attributes:
        facts: value -> what is known; constants that are not zero have no entry.
        found: ReLUs by the value that enters them.
        smooth: the first equation whose result is not piecewise linear, or None.
    """

    def __init__(self, graph: ChannelGraph):
        self.program = program = graph.program
        self.found: dict[Value, HingeLayer] = {}
        self.smooth: Equation | None = None
        self._names = {producer.result: producer.name for producer in graph.producers}
        # Values inside a custom-derivative call cannot be evaluated on their own.
        # Only values of the flat program have a place there; those inside `relu`'s custom derivative have none.
        whole = {program.images, *(value for eqn in program.equations for value in eqn.outputs)}
        self._batch_axes = {value: axis for value, axis in graph.batch_axes.items() if value in whole}
        zeros = (value for value, array in program.constants.items() if not np.any(np.asarray(array)))
        self.facts = dict.fromkeys(zeros, _Fact(is_zero=True)) | {program.images: _Fact(Dependence.LINEAR)}
        interpret(program.primitive_equations(), self.facts, self._step)

    def _step(self, eqn: Equation, operands: list[_Fact | None]) -> list[_Fact | None]:
        given = [fact or _Fact() for fact in operands]
        moving = [fact for fact in given if fact.dependence]
        if not moving:
            is_zero = row(eqn).form is Form.LINEAR and all(fact.is_zero for fact in given)
            return [_Fact(is_zero=True) if is_zero else None] * len(eqn.outputs)
        dependence = _dependence(self.program, eqn, [fact.dependence for fact in given])
        if dependence is Dependence.OTHER and self.smooth is None:
            self.smooth = eqn
        depth = max(fact.depth for fact in moving)
        makers = tuple(dict.fromkeys(name for fact in moving for name in fact.makers))
        compared = next((value for value, fact in zip(eqn.inputs, given, strict=True) if fact.dependence), None)
        with_zero = any(fact.is_zero for fact in given)
        entering = None
        if dependence is Dependence.PIECEWISE and eqn.name == "max" and with_zero:
            # `max(x, 0)` is a ReLU of x; `select(x > 0, ...)` below is another spelling of it.
            entering = compared
        elif dependence is Dependence.PIECEWISE and eqn.name == "select_n":
            entering = given[0].sign_of
        if entering is not None:
            entered = self._enter(entering, makers)
            depth, makers = max(depth, entered), ()
        sign_of = compared if row(eqn).form is Form.COMPARISON and with_zero else None
        return [
            _Fact(dependence, False, depth, (self._names[value],) if value in self._names else makers, sign_of)
            for value in eqn.outputs
        ]

    def _enter(self, value: Value, makers: tuple[str, ...]) -> int:
        """Note that a value enters a ReLU, if it can be evaluated; returns the depth of that ReLU."""
        fact = self.facts[value]
        if value in self._batch_axes and value not in self.found:
            shape = self.program.shapes[value]
            units = math.prod(shape) // shape[self._batch_axes[value]]
            name, linear = "+".join(makers) or "the image", fact.dependence is Dependence.LINEAR
            self.found[value] = HingeLayer(name, value, fact.depth + 1, linear, units)
        return fact.depth + 1


def _dependence(program: Program, eqn: Equation, given: Sequence[Dependence]) -> Dependence:
    """How the result of an equation depends on the images, from how its operands do."""
    form, most, moving = row(eqn).form, max(given), sum(one > Dependence.CONSTANT for one in given)
    is_linear = (
        form is Form.LINEAR
        or (form is Form.MULTILINEAR and moving == 1)
        or (form is Form.LINEAR_IN_FIRST and moving == 1 and given[0] > Dependence.CONSTANT)
    )
    if is_linear:
        # A linear map into integers rounds, and is not linear.
        rounds = any(np.issubdtype(program.dtypes[value], np.integer) for value in eqn.outputs)
        return Dependence.OTHER if rounds else most
    if form in (Form.PIECEWISE, Form.COMPARISON):
        return max(most, Dependence.PIECEWISE)
    return Dependence.OTHER


def hinge_layers(graph: ChannelGraph) -> tuple[tuple[HingeLayer, ...], str | None]:
    """The ReLUs of a model whose inputs are piecewise linear in the image, in program order.

    Returns:
        The ReLUs; and, unless the logits are piecewise linear too, the first equation that is not, and where it is.

    Raises:
        FingerprintError: there is no such ReLU.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxguard.graph import channel_graph
        >>> mlp = lambda v, x: jax.nn.relu(jax.nn.relu(x @ v["a"]) @ v["b"]) @ v["c"]
        >>> v = {"a": jnp.ones((4, 5)), "b": jnp.ones((5, 6)), "c": jnp.ones((6, 3))}
        >>> found, _ = hinge_layers(channel_graph(mlp, v, jnp.ones((1, 4))))
        >>> [(layer.name, layer.depth, layer.is_linear, layer.units) for layer in found]
        [('a', 1, True, 5), ('b', 2, False, 6)]
    """
    analysis = _Analysis(graph)
    smooth = f"`{analysis.smooth.name}` at {analysis.smooth.where}" if analysis.smooth else None
    if not analysis.found:
        raise FingerprintError(
            "expected a network with ReLUs of values that are piecewise linear in the image, got "
            f"{smooth or 'none at all, a linear model'} instead in tafa_hinge(); use a fingerprint that needs no "
            "ReLU, such as sac or ipguard"
        )
    logits = analysis.facts.get(graph.program.logits, _Fact())
    ends_piecewise = logits.dependence < Dependence.OTHER
    return tuple(analysis.found.values()), None if ends_piecewise else smooth


def of_depths(found: Sequence[HingeLayer], depths: Sequence[int]) -> dict[int, tuple[HingeLayer, ...]]:
    """Depth -> the ReLUs of that depth; depths that the model does not have are left out.

    Raises:
        FingerprintError: the model has none of the depths.
    """
    chosen = {depth: tuple(layer for layer in found if layer.depth == depth) for depth in depths}
    chosen = {depth: layers for depth, layers in chosen.items() if layers}
    if not chosen:
        raise FingerprintError(
            f"expected layers among {sorted({layer.depth for layer in found})}, those with ReLUs in this model, got "
            f"{tuple(depths)} in tafa_hinge(layers=...)"
        )
    return chosen
