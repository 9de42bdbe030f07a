"""How units pass through each primitive: one rule a row.

A rule `(units, eqn) -> None` fills in the exponents of the equation's results, and says what those of its operands have
to satisfy. A primitive without a row wants its operands to have no unit, which is always safe.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from jaxguard.graph.program import Equation, Value
from jaxguard.theft.units import Units, plus, times


def dimensionless(units: Units, eqn: Equation) -> None:
    """Whatever is not known to be homogeneous."""
    for value in eqn.inputs:
        units.cancel_all(value)


def _same(units: Units, eqn: Equation, operands: Sequence[Value] | None = None) -> None:
    """Sums, maxima: all operands are measured alike, and so is the result."""
    operands = eqn.inputs if operands is None else operands
    (result,) = eqn.outputs
    if all(value in units.blank for value in operands):
        units.blank.add(result)
    units.forms[result] = {
        (axis, atom): units.equal(atom, [units.form(value, axis, atom) for value in operands])
        for axis, atom in units.coordinates(result)
    }


def _compared(units: Units, eqn: Equation) -> None:
    """What is compared is measured alike; the answer has no unit."""
    for axis, atom in units.coordinates(eqn.outputs[0]):
        units.equal(atom, [units.form(value, axis, atom) for value in eqn.inputs])


def _converted(units: Units, eqn: Equation) -> None:
    """Between floating-point types."""
    kinds = {np.dtype(units.program.dtypes[value]).kind for value in (*eqn.inputs, *eqn.outputs)}
    rule = _same if kinds <= {"f", "V"} else dimensionless  # V: bfloat16 and the like
    rule(units, eqn)


def _selected(units: Units, eqn: Equation) -> None:
    units.cancel_all(eqn.inputs[0])
    _same(units, eqn, eqn.inputs[1:])


def _product(units: Units, eqn: Equation) -> None:
    left, right = eqn.inputs
    (result,) = eqn.outputs
    sign = -1 if eqn.name == "div" else 1
    if left in units.blank or (right in units.blank and sign > 0):
        units.blank.add(result)
        return
    units.forms[result] = {
        (axis, atom): plus(units.form(left, axis, atom), units.form(right, axis, atom), sign)
        for axis, atom in units.coordinates(result)
    }


def _power(exponent_of: Callable[[Equation], float]) -> Callable[[Units, Equation], None]:
    def rule(units: Units, eqn: Equation) -> None:
        (operand,), (result,), power = eqn.inputs, eqn.outputs, exponent_of(eqn)
        units.forms[result] = {
            (axis, atom): times(power, units.form(operand, axis, atom)) for axis, atom in units.coordinates(result)
        }

    return rule


def _sign(units: Units, eqn: Equation) -> None:
    """Positive factors do not change it."""


def _transposed(units: Units, eqn: Equation) -> None:
    units.move(eqn, eqn.params["permutation"])


def _broadcast(units: Units, eqn: Equation) -> None:
    from_axis = {axis: k for k, axis in enumerate(eqn.params["broadcast_dimensions"])}
    units.move(eqn, [from_axis.get(axis) for axis in range(len(eqn.params["shape"]))])


def _squeezed(units: Units, eqn: Equation) -> None:
    rank, dropped = len(units.program.shapes[eqn.inputs[0]]), eqn.params["dimensions"]
    units.move(eqn, [axis for axis in range(rank) if axis not in dropped])


def _expanded(units: Units, eqn: Equation) -> None:
    rank, new = len(units.program.shapes[eqn.outputs[0]]), eqn.params["dimensions"]
    old = iter(range(rank))
    units.move(eqn, [None if axis in new else next(old) for axis in range(rank)])


def _reshaped(units: Units, eqn: Equation) -> None:
    """Channels are followed by name, where they run along one axis before and one after."""
    (operand, *_), (result,) = eqn.inputs, eqn.outputs
    if operand in units.blank:
        units.blank.add(result)
        return
    before, after = defaultdict(list), defaultdict(list)
    for places, value in ((before, operand), (after, result)):
        for axis, atom in units.coordinates(value):
            places[atom].append(axis)
    units.forms[result] = {}
    for atom, sources in before.items():
        if len(sources) == len(after[atom]) == 1:
            units.forms[result][after[atom][0], atom] = units.form(operand, sources[0], atom)
        else:
            units.cancel_all(operand, sources)


def _reduced(units: Units, eqn: Equation) -> None:
    gone = eqn.params["axes"]
    units.cancel_all(eqn.inputs[0], gone)
    units.move(eqn, [axis for axis in range(len(units.program.shapes[eqn.inputs[0]])) if axis not in gone])


def _pooled(units: Units, eqn: Equation) -> None:
    windows = eqn.params["window_dimensions"]
    units.cancel_all(eqn.inputs[0], [axis for axis, window in enumerate(windows) if window > 1])
    units.move(eqn, [axis if window == 1 else None for axis, window in enumerate(windows)])


def _sliced(units: Units, eqn: Equation) -> None:
    strides = eqn.params["strides"] or (1,) * len(eqn.params["start_indices"])
    units.cancel_all(eqn.inputs[0], [axis for axis, stride in enumerate(strides) if stride != 1])
    units.move(eqn, [axis if stride == 1 else None for axis, stride in enumerate(strides)])


def _padded(units: Units, eqn: Equation) -> None:
    """Zeros at the edges are measured in any unit."""
    operand, edge = eqn.inputs
    (result,) = eqn.outputs
    grown = any(low > 0 or high > 0 or interior for low, high, interior in eqn.params["padding_config"])
    if grown and edge not in units.blank:
        units.cancel_all(operand)
    inside = set(units.coordinates(operand))
    if operand in units.blank and (edge in units.blank or not grown):
        units.blank.add(result)
    units.forms[result] = {
        (axis, atom): units.form(operand if (axis, atom) in inside else edge, axis, atom)
        for axis, atom in units.coordinates(result)
    }


def _concatenated(units: Units, eqn: Equation) -> None:
    """Parts have their own channels along the axis, and are measured alike along the others."""
    (result,), along = eqn.outputs, eqn.params["dimension"]
    if all(value in units.blank for value in eqn.inputs):
        units.blank.add(result)
    inside = [set(units.coordinates(value)) for value in eqn.inputs]
    units.forms[result] = {}
    for axis, atom in units.coordinates(result):
        parts = [v for v, known in zip(eqn.inputs, inside, strict=True) if axis != along or (axis, atom) in known]
        units.forms[result][axis, atom] = units.equal(atom, [units.form(value, axis, atom) for value in parts])


def _contracted(units: Units, eqn: Equation) -> None:
    """`dot_general`: batch axes first, then the free axes of the left operand, then of the right."""
    (contract_left, contract_right), (batch_left, batch_right) = eqn.params["dimension_numbers"]
    left, right = eqn.inputs
    (result,) = eqn.outputs
    if left in units.blank or right in units.blank:
        units.blank.add(result)
        return
    for i, j in zip(contract_left, contract_right, strict=True):
        for atom in {atom for axis, atom in units.coordinates(left) if axis == i}:
            units.cancel(atom, plus(units.form(left, i, atom), units.form(right, j, atom)))
    sources: list[list[tuple[Value, int]]] = [
        [(left, i), (right, j)] for i, j in zip(batch_left, batch_right, strict=True)
    ]
    for value, used in ((left, (*contract_left, *batch_left)), (right, (*contract_right, *batch_right))):
        sources += [[(value, k)] for k in range(len(units.program.shapes[value])) if k not in used]
    units.forms[result] = {}
    for axis, atom in units.coordinates(result):
        first, *others = (units.form(value, k, atom) for value, k in sources[axis])
        for other in others:
            first = plus(first, other)
        units.forms[result][axis, atom] = first


def _convolved(units: Units, eqn: Equation) -> None:
    """`groups` blocks of input channels, each mapped to its block of output channels."""
    numbers = eqn.params["dimension_numbers"]
    images, kernel = eqn.inputs
    (result,) = eqn.outputs
    if images in units.blank or kernel in units.blank:
        units.blank.add(result)
        return
    if eqn.params["batch_group_count"] != 1:
        dimensionless(units, eqn)
        return
    feature, (kernel_out, kernel_in, *_) = numbers.lhs_spec[1], numbers.rhs_spec
    read = {atom for axis, atom in units.coordinates(images) if axis == feature}
    summed = {atom for axis, atom in units.coordinates(kernel) if axis == kernel_in}
    for atom in summed:
        units.cancel(atom, plus(units.form(images, feature, atom), units.form(kernel, kernel_in, atom)))
    units.forms[result] = {}
    for axis, atom in units.coordinates(result):
        if axis == numbers.out_spec[1]:
            form = units.form(kernel, kernel_out, atom)
            blockwise = atom in read and atom not in summed
            units.forms[result][axis, atom] = plus(form, units.form(images, feature, atom)) if blockwise else form
        elif axis == numbers.out_spec[0]:
            units.forms[result][axis, atom] = units.form(images, numbers.lhs_spec[0], atom)


RULES: dict[str, Callable[[Units, Equation], None]] = {
    **dict.fromkeys(("add", "add_any", "sub", "max", "min", "clamp"), _same),
    **dict.fromkeys(("neg", "abs", "copy", "copy_p", "name", "stop_gradient", "reduce_precision"), _same),
    **dict.fromkeys(("eq", "ne", "gt", "ge", "lt", "le"), _compared),
    **dict.fromkeys(("mul", "div"), _product),
    "convert_element_type": _converted,
    "select_n": _selected,
    "sign": _sign,
    "square": _power(lambda eqn: 2),
    "sqrt": _power(lambda eqn: 0.5),
    "rsqrt": _power(lambda eqn: -0.5),
    "integer_pow": _power(lambda eqn: eqn.params["y"]),
    "transpose": _transposed,
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeezed,
    "expand_dims": _expanded,
    "reshape": _reshaped,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min"), _reduced),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _pooled),
    "slice": _sliced,
    "pad": _padded,
    "concatenate": _concatenated,
    "dot_general": _contracted,
    "conv_general_dilated": _convolved,
}
"""Primitive name -> how exponents pass; any other wants its operands to have none."""
