"""Groups: the parameter axes that hold the same channels, gathered from the ties of a whole program."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxguard.graph import axes
from jaxguard.graph.axes import Axis
from jaxguard.graph.axis_rules import Axes
from jaxguard.graph.channels import Producer
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
            for atom, _ in axes.atoms(nodes[producer.result][axis]):
                names.setdefault(atom, producer.name)
    return tuple(
        Group(names.get(atom, found[0].path), atom.size, tuple(found), atom.frozen) for atom, found in members.items()
    )
