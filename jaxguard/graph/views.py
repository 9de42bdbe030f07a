"""Where the channels of a value lie in the parameter leaf it is computed from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.graph import axes, axis_rules
from jaxguard.graph.primitives import Channels, Form, row
from jaxguard.graph.program import Equation, Program, Value, open_bodies
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

    def read(self, leaf: jax.Array) -> jax.Array:
        """The channels of a vector-like leaf, such as a BatchNorm's scale.

        Args:
            leaf: the array at `path`; it holds nothing but them.

        Returns:
            `[C]`, in channel order.
        """
        run = leaf[self.index]
        # Axes without channels have size 1: put first, they vanish in the reshape, and the rest is in channel order.
        others = [axis for axis in range(run.ndim) if axis not in self.axes]
        return jnp.transpose(run, (*others, *self.axes)).reshape(-1)


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
    index = _run_of(program, leaf, cone)
    if index is None:
        return None
    found: list[int] = []
    while wanted:
        axis = next((k for k, run in enumerate(runs) if run and run == wanted[: len(run)]), None)
        if axis is None or axis in found:
            return None
        found.append(axis)
        wanted = wanted[len(runs[axis]) :]
    shape = tuple(index[axis].stop - index[axis].start for axis in found)
    if math.prod(shape) != math.prod(program.shapes[value][dim] for dim in dims):
        return None
    return LeafView(program.paths[program.leaves.index(leaf)], index, tuple(found), shape)


def laid_out(per_channel: jax.Array, axes: Sequence[int], shape: Sequence[int], rank: int) -> jax.Array:
    """One value per channel, in a shape that broadcasts against an array that the channels lie in.

    Args:
        per_channel: `[C]`.
        axes: of the array, slowest first.
        shape: sizes of those axes.
        rank: of the array.
    """
    sizes = [1] * rank
    for axis, size in zip(axes, shape, strict=True):
        sizes[axis] = size
    # The grid has its axes in the channels' order; the array may have them in another.
    return jnp.transpose(per_channel.reshape(shape), np.argsort(axes).tolist()).reshape(sizes)


def _run_of(program: Program, leaf: Value, cone: Sequence[Equation]) -> tuple[slice, ...] | None:
    """The run of each leaf axis that a cone reads, through slices and reshapes in any order.

    Returns:
        One slice per axis; None if the cone reads several runs, or what is no run of every axis.
    """
    # NumPy follows strides through views of memory that is reserved and never touched.
    whole = np.empty(program.shapes[leaf], np.int8)
    views = {leaf: whole}
    runs: set[tuple[tuple[int, int], ...] | None] = set()
    for eqn in open_bodies(cone):
        for value in set(eqn.inputs) & views.keys():
            moved = _moved_view(eqn, views[value], program.shapes[eqn.outputs[0]])
            if moved is None:
                runs.add(_corners(whole, views[value]))
            else:
                views[eqn.outputs[0]] = moved
    read = {value for eqn in open_bodies(cone) for value in eqn.inputs}
    runs |= {_corners(whole, view) for value, view in views.items() if value not in read}
    if len(runs) != 1 or (corners := runs.pop()) is None:
        return None
    return tuple(slice(*corner) for corner in corners)


def _moved_view(eqn: Equation, view: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """The same elements as an equation arranges them; None if it does more than arrange them."""
    if row(eqn).channels is Channels.KEEPS and view.shape == shape:
        return view
    if row(eqn).ties is axis_rules.slice_:
        strides = eqn.params["strides"] or (1,) * view.ndim
        return view[tuple(map(slice, eqn.params["start_indices"], eqn.params["limit_indices"], strides))]
    if row(eqn).ties is axis_rules.transpose:
        return view.transpose(eqn.params["permutation"])
    if row(eqn).form is Form.LINEAR and row(eqn).channels in (Channels.MOVES, Channels.SPREADS):
        # A reshape, or an axis of one that is added or dropped: a view, if the elements lie in one order.
        is_unit = [size for size in view.shape if size != 1] == [size for size in shape if size != 1]
        if is_unit or row(eqn).ties is axis_rules.reshape:
            arranged = view.reshape(shape)
            return arranged if np.shares_memory(arranged, view) else None
    return None


def _corners(whole: np.ndarray, view: np.ndarray) -> tuple[tuple[int, int], ...] | None:
    """Start and stop of the run along each axis of the whole array that a view of it takes; None if it is no run."""
    if not whole.size or not view.size:
        return tuple((0, size) for size in whole.shape)
    first = view.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    last = first + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
    low, high = (np.unravel_index(place, whole.shape) for place in (first, last))
    corners = tuple((int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
    return corners if math.prod(b - a for a, b in corners) == view.size else None


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
