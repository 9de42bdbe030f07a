"""Where a model bends: its ReLUs, and whether what enters them is piecewise linear in the image.

Every value of the traced program is constant, linear in the image (up to an offset), piecewise linear, or neither. A
ReLU is a maximum with zero, or a choice by sign (leaky ReLU), of a value that is linear or piecewise linear: the image
lies on a *hinge* where that value, a unit's pre-activation behind its bias and norm, is zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from jaxguard.errors import FingerprintError
from jaxguard.graph import ChannelGraph
from jaxguard.graph.program import LINEAR_MAPS, Equation, Program, Value


class Form(IntEnum):
    """How a value depends on the images."""

    CONSTANT = 0
    LINEAR = 1
    PIECEWISE = 2
    OTHER = 3


LINEAR = {
    *("add", "add_any", "sub", "neg", "reduce_sum", "reduce_window_sum", "cumsum"),
    *("reshape", "squeeze", "expand_dims", "transpose", "broadcast_in_dim", "slice", "pad", "concatenate", "rev"),
    *("copy", "copy_p", "name", "stop_gradient", "convert_element_type", "sharding_constraint"),
}
"""Primitives whose result is linear in all their operands together."""

BILINEAR = {"mul", *LINEAR_MAPS}
"""Linear where one operand alone depends on the images."""

COMPARISONS = {"gt", "ge", "lt", "le", "eq", "ne"}

PIECEWISE = {
    *("max", "min", "clamp", "abs", "sign", "select_n", "and", "or", "not"),
    *("reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min"),
    *COMPARISONS,
}
"""Piecewise linear in operands that are."""

MOVES_ZEROS = {"broadcast_in_dim", "convert_element_type", "reshape", "copy", "neg"}


@dataclass(frozen=True)
class HingeLayer:
    """A ReLU whose units' hyperplanes can be found.

    Attributes:
        name: of the layers whose outputs enter it.
        value: what enters it, in the graph's program.
        depth: 1 for a ReLU behind no other, 2 behind one at most, ...
        is_linear: whether that value is linear in the image, so that hinges are whole hyperplanes.
        units: channels times locations.
    """

    name: str
    value: Value
    depth: int
    is_linear: bool
    units: int


class _Walk:
    """One pass over a program.

    Attributes:
        forms: value -> form; constants have no entry.
        found: ReLUs, by the value that enters them.
        smooth: the first equation whose result is not piecewise linear, or None.
    """

    def __init__(self, graph: ChannelGraph):
        program = graph.program
        self.forms: dict[Value, Form] = {program.images: Form.LINEAR}
        self.found: dict[Value, HingeLayer] = {}
        self.smooth: Equation | None = None
        self._depths: dict[Value, int] = {program.images: 0}
        self._makers: dict[Value, tuple[str, ...]] = {program.images: ()}
        self._zeros = {value for value, array in program.constants.items() if not np.any(np.asarray(array))}
        self._signs: dict[Value, Value] = {}
        names = {producer.result: producer.name for producer in graph.producers}
        whole = {program.images, *(value for eqn in program.equations for value in eqn.outputs)}
        kept = {value: axis for value, axis in graph.batch_axes.items() if value in whole}
        for eqn in program.primitive_equations():
            self._step(program, eqn, names, kept)

    def _step(self, program: Program, eqn: Equation, names: Mapping[Value, str], kept: Mapping[Value, int]) -> None:
        moving = [value for value in eqn.inputs if value in self.forms]
        if not moving:
            if eqn.name in MOVES_ZEROS and self._zeros.issuperset(eqn.inputs):
                self._zeros.update(eqn.outputs)
            return
        form = _form(program, eqn, self.forms)
        if form is Form.OTHER and self.smooth is None:
            self.smooth = eqn
        depth = max(self._depths[value] for value in moving)
        makers = tuple(dict.fromkeys(name for value in moving for name in self._makers[value]))
        entering = self._enters(eqn) if form is Form.PIECEWISE else None
        if entering is not None:
            if entering in kept and entering not in self.found:
                shape = program.shapes[entering]
                units = int(np.prod(shape)) // shape[kept[entering]]
                name, linear = "+".join(makers) or "the image", self.forms[entering] is Form.LINEAR
                self.found[entering] = HingeLayer(name, entering, self._depths[entering] + 1, linear, units)
            depth, makers = max(depth, self._depths[entering] + 1), ()
        for value in eqn.outputs:
            self.forms[value], self._depths[value] = form, depth
            self._makers[value] = (names[value],) if value in names else makers

    def _enters(self, eqn: Equation) -> Value | None:
        """The value whose sign decides, if this is a ReLU."""
        if eqn.name in COMPARISONS and self._zeros.intersection(eqn.inputs):
            self._signs[eqn.outputs[0]] = next(value for value in eqn.inputs if value in self.forms)
        if eqn.name == "max" and self._zeros.intersection(eqn.inputs):
            return next(value for value in eqn.inputs if value in self.forms)
        if eqn.name == "select_n":
            return self._signs.get(eqn.inputs[0])
        return None


def _form(program: Program, eqn: Equation, forms: Mapping[Value, Form]) -> Form:
    given = [forms.get(value, Form.CONSTANT) for value in eqn.inputs]
    most, moving = max(given), sum(form > Form.CONSTANT for form in given)
    if eqn.name in LINEAR or (eqn.name in BILINEAR and moving == 1) or (eqn.name == "div" and moving == 1 and given[0]):
        lossy = any(np.issubdtype(program.dtypes[v], np.integer) for v in eqn.outputs)
        return Form.OTHER if lossy else most
    if eqn.name in PIECEWISE:
        return max(most, Form.PIECEWISE)
    return Form.OTHER


def hinge_layers(graph: ChannelGraph) -> tuple[tuple[HingeLayer, ...], str | None]:
    """The ReLUs of a model whose inputs are piecewise linear in the image, in program order.

    Args:
        graph: the model's channel graph.

    Returns:
        The ReLUs; and, unless the logits are piecewise linear too, what keeps them from being so and where.

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
    walk = _Walk(graph)
    smooth = f"`{walk.smooth.name}` at {walk.smooth.where}" if walk.smooth else None
    if not walk.found:
        raise FingerprintError(
            "expected a network with ReLUs of values that are piecewise linear in the image, found "
            f"{smooth or 'none at all, a linear model'} instead in tafa_hinge(); take a fingerprint that needs no "
            "ReLU, such as sac or ipguard"
        )
    ends_piecewise = walk.forms.get(graph.program.logits, Form.CONSTANT) < Form.OTHER
    return tuple(walk.found.values()), None if ends_piecewise else smooth


def of_depths(found: Sequence[HingeLayer], depths: Sequence[int]) -> dict[int, tuple[HingeLayer, ...]]:
    """The ReLUs of chosen layers.

    Args:
        found: of `hinge_layers`.
        depths: wanted; those that the model does not have are left out.

    Returns:
        Depth -> its ReLUs, those with the same number of ReLUs before them.

    Raises:
        FingerprintError: the model has none of them.
    """
    chosen = {depth: tuple(layer for layer in found if layer.depth == depth) for depth in depths}
    chosen = {depth: layers for depth, layers in chosen.items() if layers}
    if not chosen:
        raise FingerprintError(
            f"expected layers among {sorted({layer.depth for layer in found})}, those whose ReLUs this model has, came "
            f"{tuple(depths)} in tafa_hinge(layers=...)"
        )
    return chosen
