"""Which layers make the model's outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jaxguard.graph import axes
from jaxguard.graph.axes import Axis
from jaxguard.graph.axis_rules import Axes
from jaxguard.graph.channels import Producer
from jaxguard.graph.primitives import makes_channels
from jaxguard.graph.program import Program, Value


def output_producers(program: Program, nodes: dict[Value, Axes], producers: Sequence[Producer]) -> frozenset[int]:
    """Numbers of the producers whose channels are the model's classes; these are never cut.

    Args:
        program: a traced model.
        nodes: axes of its values.
        producers: its layers.
    """
    classes = _class_axes(program, nodes)
    made = (_atoms(nodes[producer.result][k] for k in producer.gate_axes) for producer in producers)
    return frozenset(k for k, channels in enumerate(made) if channels & classes)


def _class_axes(program: Program, nodes: dict[Value, Axes]) -> set[Axis]:
    """Atoms of the axes that may hold the classes: the outputs' own, and those they were read from by position."""
    batch, on_images = _atoms(nodes[program.images][:1]), program.dependents({program.images})
    wanted = (_atoms(nodes[program.logits][-1:]) - batch) | _reduced_at_the_end(program, nodes, on_images)
    for eqn in reversed(list(program.primitive_equations())):
        results = [
            node
            for value in eqn.outputs
            for node in nodes.get(value, ())
            if node.size > 1 and not wanted.isdisjoint(axes.factors(node))
        ]
        if not results or makes_channels(eqn):
            continue
        operands = [node for value in eqn.inputs if value in on_images for node in nodes[value]]
        if not _atoms(operands).issuperset(_atoms(results)):
            # Classes that are picked, sorted, or handed through an opaque equation have an axis of their own.
            wanted |= {atom for atom in _atoms(operands) if atom.frozen} - batch
    return wanted | (_atoms(nodes[program.logits]) - batch)


def _reduced_at_the_end(program: Program, nodes: dict[Value, Axes], on_images: set[Value]) -> set[Axis]:
    """Atoms of the axes that a last argmax or sum takes away where the outputs are one number per image."""
    writers = {value: eqn for eqn in program.primitive_equations() for value in eqn.outputs}
    value = program.logits
    if len(nodes[value]) > 1:
        return set()
    while (eqn := writers.get(value)) is not None and not makes_channels(eqn):
        moving = [operand for operand in eqn.inputs if operand in on_images]
        taken = _atoms(node for one in moving for node in nodes[one]) - _atoms(nodes[value])
        if taken or not moving:
            return taken - _atoms(nodes[program.images][:1])
        value = moving[0]
    return set()


def _atoms(nodes: Iterable[Axis]) -> set[Axis]:
    return {atom for node in nodes for atom in axes.factors(node)}
