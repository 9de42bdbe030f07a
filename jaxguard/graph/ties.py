"""The axes of a program's values, tied where they index the same channels; which equations mix a batch's images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.graph import axes, axis_rules
from jaxguard.graph.axes import Axis, freeze
from jaxguard.graph.axis_rules import Axes
from jaxguard.graph.primitives import row
from jaxguard.graph.program import Equation, Program, Value, interpret


def tie_equations(
    equations: Iterable[Equation], nodes: dict[Value, Axes], shapes: Sequence[tuple[int, ...]]
) -> dict[Value, Axes]:
    """Tie the axes of the values that some equations read and write.

    Args:
        equations: primitive equations, in execution order.
        nodes: axes of the values known so far; completed in place.
        shapes: shape of every value.

    Returns:
        `nodes`, with the axes of every value the equations read or write.
    """

    def apply_rule(eqn: Equation, operands: list[Axes | None]) -> list[Axes]:
        inputs = [nodes.setdefault(value, axes_of(shapes[value])) for value in eqn.inputs]
        outputs = [axes_of(shapes[value]) for value in eqn.outputs]
        row(eqn).ties(eqn, inputs, outputs)
        return outputs

    return interpret(equations, nodes, apply_rule)


def axes_of(shape: Sequence[int]) -> Axes:
    """Untied axes of an array."""
    return tuple(map(Axis, shape))


def tie_program(program: Program) -> dict[Value, Axes]:
    """Axes of every value of a program, tied by all its equations; those of its images and logits are frozen."""
    nodes = tie_equations(program.primitive_equations(), {}, program.shapes)
    # A constant that varies along an axis, such as a positional code, pins the order of its elements.
    for value, array in program.constants.items():
        for axis, node in enumerate(nodes.get(value, ())):
            if node.size > 1 and _varies(array, axis):
                freeze(node, "constant array")
    for value in (*program.leaves, program.images, program.logits):
        nodes.setdefault(value, axes_of(program.shapes[value]))
    for value, reason in ((program.images, "input"), (program.logits, "output")):
        for node in nodes[value]:
            freeze(node, reason)
    return nodes


def _varies(array: Any, axis: int) -> bool:
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):  # random keys
        return True
    array = np.asarray(array)
    return bool(np.any(array != np.take(array, [0], axis)))


_KEEP = (axis_rules.elementwise, axis_rules.identity, axis_rules.transpose, axis_rules.dot_general)
"""Rules under which an axis that goes into the result goes there as it is."""


def mixing_equations(program: Program, nodes: dict[Value, Axes], batch_axes: Mapping[Value, int]) -> frozenset[int]:
    """Numbers of the equations whose results are not known to belong to one image each.

    Args:
        program: a traced model.
        nodes: axes of its values.
        batch_axes: value -> its axis that runs over the images, where it has one.
    """
    on_images, batch = program.dependents({program.images}), set(axes.factors(nodes[program.images][0]))

    def carries_images(value: Value) -> bool:
        return any(not batch.isdisjoint(axes.factors(node)) for node in nodes[value])

    return frozenset(
        k
        for k, eqn in enumerate(program.equations)
        if not on_images.isdisjoint(eqn.outputs)
        and (not all(map(carries_images, eqn.outputs)) or not _hands_on(eqn, program, batch_axes))
    )


def _hands_on(eqn: Equation, program: Program, batch_axes: Mapping[Value, int]) -> bool:
    """Whether the rule of this one equation, whatever ties come later, takes the images in order to its results."""
    if eqn.body or row(eqn).ties in _KEEP:
        return True
    operands, results = ([axes_of(program.shapes[v]) for v in values] for values in (eqn.inputs, eqn.outputs))
    row(eqn).ties(eqn, operands, results)
    arrived = {atom for own in results for node in own for atom in axes.factors(node)}
    images = [own[batch_axes[v]] for v, own in zip(eqn.inputs, operands, strict=True) if v in batch_axes]
    return all(atom in arrived and not atom.frozen for node in images for atom in axes.factors(node))
