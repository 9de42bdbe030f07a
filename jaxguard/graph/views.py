"""Where the channels of a value lie in the parameter leaf it is computed from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxguard.graph import axes
from jaxguard.graph.program import Program, Value, open_bodies
from jaxguard.graph.ties import axes_of, tie_equations

LEAF_NAMES = ("kernel", "weight", "scale", "var")


@dataclass(frozen=True)
class LeafView:
    """Channels as they lie in a parameter leaf.

    Attributes:
        path: leaf path, such as `params/conv1/kernel`.
        index: per leaf axis, the run that is used; stacked layers use one step each.
        axes: leaf axes that the channels run over, slowest first.
        shape: sizes of those axes; their product is `C`.
    """

    path: str
    index: tuple[slice, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]


def find_view(program: Program, leaf: Value, value: Value, dims: Sequence[int]) -> LeafView | None:
    """Where the channels along `dims` of `value` lie in `leaf`.

    Args:
        program: a traced model.
        leaf: a parameter leaf.
        value: computed from `leaf` by moves, slices and arithmetic.
        dims: axes of `value`, slowest first.

    Returns:
        The view; None if the channels are not a run of the leaf's axes, or of one slice of it.
    """
    cone = program.cone(value)
    nodes = {leaf: axes_of(program.shapes[leaf])}
    tie_equations(open_bodies(cone), nodes, program.shapes)
    # Channels are runs of the leaf's atoms: what a slice left out has no atoms in the value.
    used = {atom for node in nodes[value] for atom, _ in axes.atoms(node)}
    runs = [[atom for atom, _ in axes.atoms(node) if atom.size > 1 and atom in used] for node in nodes[leaf]]
    wanted = [atom for dim in dims for atom, _ in axes.atoms(nodes[value][dim]) if atom.size > 1]
    index = tuple(slice(0, size) for size in program.shapes[leaf])
    slices = [eqn for eqn in cone if eqn.name == "slice" and eqn.inputs[0] == leaf]
    for eqn in slices:
        index = tuple(map(slice, eqn.params["start_indices"], eqn.params["limit_indices"]))
    found: list[int] = []
    while wanted:
        axis = next((k for k, run in enumerate(runs) if run and run == wanted[: len(run)]), None)
        if axis is None or axis in found:
            return None
        found.append(axis)
        wanted = wanted[len(runs[axis]) :]
    shape = tuple(index[axis].stop - index[axis].start for axis in found)
    if len(slices) > 1 or math.prod(shape) != math.prod(program.shapes[value][dim] for dim in dims):
        return None
    return LeafView(program.paths[program.leaves.index(leaf)], index, tuple(found), shape)


def stem(path: str) -> str:
    """Layer name of a leaf path: without the collection and the usual leaf names.

    >>> stem("params/layer1_0/conv1/kernel"), stem("params/head/w1"), stem("conv/kernel/.value")
    ('layer1_0/conv1', 'head/w1', 'conv')
    """
    parts = path.split("/")
    if len(parts) > 1 and parts[0] in ("params", "batch_stats"):
        parts = parts[1:]
    if len(parts) > 1 and parts[-1] in ("value", ".value") and parts[-2] in LEAF_NAMES:
        parts = parts[:-1]
    if len(parts) > 1 and parts[-1] in LEAF_NAMES:
        parts = parts[:-1]
    return "/".join(parts)
