"""What the ties of a whole program say: the groups of axes that hold the same channels, and the classes' producers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxguard.graph import axes
from jaxguard.graph.axes import Axis
from jaxguard.graph.axis_rules import Axes
from jaxguard.graph.channels import Producer
from jaxguard.graph.primitives import makes_channels
from jaxguard.graph.program import Program, Value


class Member(NamedTuple):
    """One place in the variables that holds a group's channels.

    Attributes:
        path: leaf path.
        axis: axis of the leaf.
        positions: `[R, C]` int; channel `c` is found at every `positions[r, c]` along the axis.
    """

    path: str
    axis: int
    positions: np.ndarray

    @property
    def stride(self) -> int:
        """Distance between neighbouring channels; above 1 after a flatten or for grouped channels."""
        return int(self.positions[0, 1] - self.positions[0, 0])


@dataclass(frozen=True)
class Group:
    """Channels that can only be permuted together.

    Attributes:
        name: first layer that makes them, or first leaf that holds them.
        size: number of channels `C`.
        members: every place in the variables that holds them.
        frozen: why they may not be permuted, or None.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    frozen: str | None

    @property
    def permutable(self) -> bool:
        """Whether any permutation, applied to all members, leaves the model's function unchanged."""
        return self.frozen is None


def find_groups(program: Program, nodes: dict[Value, Axes], producers: Sequence[Producer]) -> tuple[Group, ...]:
    """Groups with at least two channels and one parameter axis, in leaf order; spatial axes are left out."""
    members: dict[Axis, list[Member]] = defaultdict(list)
    # One atom is one set of channels, so every leaf axis in which it occurs is a place where they lie.
    for leaf, path in zip(program.leaves, program.paths, strict=True):
        for axis, node in enumerate(nodes[leaf]):
            for atom, positions in axes.atoms(node):
                if atom.size > 1 and atom.frozen != "window":
                    members[atom].append(Member(path, axis, positions))
    names: dict[Axis, str] = {}  # a group is named by the first layer whose output channels it holds
    for producer in producers:
        for axis in producer.gate_axes:
            for atom, _ in axes.atoms(nodes[producer.gate][axis]):
                names.setdefault(atom, producer.name)
    return tuple(
        Group(names.get(atom, found[0].path), atom.size, tuple(found), atom.frozen) for atom, found in members.items()
    )


def output_producers(program: Program, nodes: dict[Value, Axes], producers: Sequence[Producer]) -> frozenset[int]:
    """Numbers of the producers whose channels are the model's classes; these are never cut.

    Args:
        program: a traced model.
        nodes: axes of its values.
        producers: its layers.
    """
    classes = _class_axes(program, nodes)
    made = (_atoms(nodes[producer.gate][k] for k in producer.gate_axes) for producer in producers)
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
        # What an operand has and the result has not was reduced away: the classes, or nothing yet.
        taken = _atoms(node for one in moving for node in nodes[one]) - _atoms(nodes[value])
        if taken or not moving:
            return taken - _atoms(nodes[program.images][:1])
        value = moving[0]
    return set()


def _atoms(nodes: Iterable[Axis]) -> set[Axis]:
    return {atom for node in nodes for atom in axes.factors(node)}
