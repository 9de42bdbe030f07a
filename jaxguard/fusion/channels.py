"""Sets of channels that are transported together: their features, and all their places in the leaves."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import programs
from jaxguard.errors import GraphError
from jaxguard.graph import ChannelGraph, Group, LeafView, Member, Producer

Chain = Literal["dataflow", "parameter_order"]
Unordered = Literal["nothing", "repeats", "everything"]


class Row(NamedTuple):
    """Features of a channel: its part of a kernel, and of the kernel's bias.

    Attributes:
        producer: index of the producer.
        kernel: the channels on the kernel's output axis.
        bias: the channels on the bias, or None.
    """

    producer: int
    kernel: Member
    bias: Member | None


@dataclass(frozen=True)
class Channels:
    """Channels with one transport map.

    Attributes:
        name: first layer that produces them.
        size: number of channels `C`.
        rows: their features; several if a residual sum ties layers together.
        members: all their places in the leaves.
    """

    name: str
    size: int
    rows: tuple[Row, ...]
    members: tuple[Member, ...]


def find_channels(
    graph: ChannelGraph, chain: Chain = "dataflow", layers: Sequence[str] | None = None
) -> tuple[Channels, ...]:
    """The sets of channels of a model, in program order.

    Args:
        graph: the model's channel graph.
        chain: `dataflow` has one set per permutable group, transported in all its places. `parameter_order` is a list
            of layers; each set is produced by one and read by the next, as in the OTBR reference, which ignores
            residual sums, norms and biases.
        layers: names of producers, for `parameter_order`; by default all convolutions except shortcuts, by name.

    Returns:
        The sets.

    Raises:
        GraphError: unknown chain or layer, or, in `parameter_order`, a layer that does not read what the one before
            it makes.
    """
    if chain not in get_args(Chain) or (layers is not None and chain == "dataflow"):
        raise GraphError(
            f"expected chain 'dataflow', or 'parameter_order' with or without layers, got {chain!r} and layers "
            f"{layers}; leave out layers to follow the graph"
        )
    if chain == "parameter_order":
        return _by_parameter_order(graph, layers)
    made = [(group, _rows(graph, group)) for group in graph.groups if group.permutable]
    ordered = sorted(((rows[0].producer, k) for k, (_, rows) in enumerate(made) if rows))
    found = [made[k] for _, k in ordered]
    return tuple(Channels(group.name, group.size, rows, group.members) for group, rows in found)


def _rows(graph: ChannelGraph, group: Group) -> tuple[Row, ...]:
    rows = []
    for number, producer in enumerate(graph.producers):
        bias = next((m for m in group.members if producer.bias and m.path == producer.bias.path), None)
        rows += [Row(number, member, bias) for member in group.members if _is_output(member, producer.kernel)]
    # A kernel that is used twice counts once.
    return tuple({(row.kernel.path, row.kernel.axis): row for row in reversed(rows)}.values())[::-1]


def _is_output(member: Member, kernel: LeafView) -> bool:
    if member.path != kernel.path or member.axis not in kernel.axes:
        return False
    run = kernel.index[member.axis]
    return bool(((member.positions >= run.start) & (member.positions < run.stop)).any())


def _by_parameter_order(graph: ChannelGraph, layers: Sequence[str] | None) -> tuple[Channels, ...]:
    if layers is None:
        layers = [p.name for p in graph.producers if p.is_convolution and "shortcut" not in p.name.lower()]
    producers = [graph.producer(name) for name in layers]
    shapes = dict(zip(graph.program.paths, (graph.program.shapes[leaf] for leaf in graph.program.leaves), strict=True))
    ends = [(_whole(p, p.kernel.axes, shapes), _whole(p, p.in_axes, shapes)) for p in producers]
    found = []
    for number, (producer, (output, _)) in enumerate(zip(producers, ends, strict=True)):
        members = [output]
        if number + 1 < len(producers):
            after, reads = producers[number + 1], ends[number + 1][1]
            if reads.positions.size != producer.channels:
                raise GraphError(
                    f"expected {after.name} to read the {producer.channels} channels of {producer.name}, the layer "
                    f"before it in parameter order, got a kernel with {reads.positions.size} inputs at {after.where}; "
                    "pass chain='dataflow', or name the layers"
                )
            members.append(reads)
        row = Row(graph.producers.index(producer), output, None)
        found.append(Channels(producer.name, producer.channels, (row,), tuple(members)))
    return tuple(found)


def _whole(producer: Producer, axes: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> Member:
    """All channels on one axis of a kernel."""
    path, shape = producer.kernel.path, shapes[producer.kernel.path]
    is_whole = producer.kernel.index == tuple(slice(0, size) for size in shape)
    if len(axes) > 1 or producer.groups > 1 or not is_whole:
        raise GraphError(
            f"expected an ordinary convolution or dense layer, got {producer.name} at {producer.where}, which is "
            "grouped, stacked or split; pass chain='dataflow', or name other layers"
        )
    # The graph does not track an axis of one channel: it is the one that is neither a tap nor the output.
    axis = axes[0] if axes else next(k for k in range(len(shape)) if k not in producer.kernel.axes and shape[k] == 1)
    return Member(path, axis, np.arange(shape[axis])[None])


def masses_of(graph: ChannelGraph, channels: Channels, by_producer: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Masses of a set's channels: the sum over its layers.

    Args:
        graph: the model's channel graph.
        channels: a set.
        by_producer: name -> `[C]` of the producer.

    Returns:
        float64 `[C]` of the set; None if none of its layers has masses.

    Raises:
        GraphError: the number of masses is not that of the layer's channels.
    """
    total = None
    for row in channels.rows:
        producer = graph.producers[row.producer]
        if producer.name not in by_producer:
            continue
        # Float64, as plans are solved in: masses that should be equal must not differ in the last digit.
        masses = np.asarray(by_producer[producer.name], np.float64)
        if masses.shape != (producer.channels,):
            raise GraphError(f"expected {producer.channels} masses for {producer.name}, got shape {masses.shape}")
        view, axis = producer.kernel, row.kernel.axis
        others = tuple(k for k, other in enumerate(view.axes) if other != axis)
        along = masses.reshape(view.shape).sum(others)
        run = view.index[axis]
        # The producer may write only a run of the set's axis: other positions have no mass.
        padded = np.zeros(max(run.stop, int(row.kernel.positions.max()) + 1))
        padded[run.start : run.stop] = along
        # positions [R, C]: a channel that is repeated, as after a flatten, has the mass of all its places.
        mine = padded[row.kernel.positions].sum(0)
        total = mine if total is None else total + mine
    return total


def read(leaf: jax.Array, member: Member, unordered: Unordered = "nothing") -> jax.Array:
    """The values of each channel in a leaf, `[C, F]`.

    Args:
        leaf: the array at `member.path`.
        member: place of the channels.
        unordered: which values to sort because their order is unknown: the channel's `repeats` along its own axis (the
            dimensions of a head), or `everything`.
    """
    return _read(leaf, member.positions, member.axis, unordered)


@functools.partial(programs.jit, static_argnames=("axis", "unordered"))
def _read(leaf: jax.Array, positions: jax.Array, axis: int, unordered: Unordered) -> jax.Array:
    # positions [R, C]: the leaf becomes [axis, ...], then [R, C, ...], then [C, R, ...].
    found = jnp.moveaxis(jnp.moveaxis(leaf.astype(jnp.float32), axis, 0)[positions], 1, 0)
    # Sorting removes an order that is not known yet: what is left can be compared whatever the order was.
    found = jnp.sort(found, 1) if unordered == "repeats" else found
    flat = found.reshape(positions.shape[1], -1)
    return jnp.sort(flat, 1) if unordered == "everything" else flat


def mix(leaf: jax.Array, member: Member, columns: jax.Array) -> jax.Array:
    """Replaces channel `j` of a leaf by `sum_i columns[i, j]` times channel `i`; float32, of the leaf's shape.

    Args:
        leaf: the array at `member.path`.
        member: place of the channels.
        columns: `[C, C]`.
    """
    return _mix(leaf, member.positions, columns, member.axis)


@functools.partial(programs.jit, static_argnames="axis")
def _mix(leaf: jax.Array, positions: jax.Array, columns: jax.Array, axis: int) -> jax.Array:
    moved = jnp.moveaxis(leaf.astype(jnp.float32), axis, 0)
    # Every repeat r of the channels is mixed by the same columns.
    mixed = jnp.einsum("ij,ri...->rj...", columns, moved[positions])
    return jnp.moveaxis(moved.at[positions].set(mixed), 0, axis)
