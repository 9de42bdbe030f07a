"""Which equations mix the images of a batch, or may do so."""

from __future__ import annotations

from collections.abc import Mapping

from jaxguard.graph import axes, axis_rules
from jaxguard.graph.axis_rules import Axes
from jaxguard.graph.primitives import row
from jaxguard.graph.program import Equation, Program, Value
from jaxguard.graph.ties import axes_of

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
