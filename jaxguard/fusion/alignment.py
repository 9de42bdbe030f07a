"""Transport maps from one model's channels to another's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.fusion.channels import Channels, Row, Unordered, mix, read
from jaxguard.graph import Member
from jaxguard.kernels import transport

Leaves = Mapping[str, jax.Array]
"""Leaf path -> array."""


@dataclass(frozen=True)
class Alignment:
    """The transport of a set's channels.

    Attributes:
        name: of the set; sets that share an axis, such as heads and their dimensions, share a name.
        columns: `[C, C]`; target channel `j` is the mixture `columns[:, j]` of source channels.
        distance: mean distance by which the channels' mass moved.
        error: L1 error of the plan's marginals.
        converged: False if Sinkhorn ran out of iterations.
    """

    name: str
    columns: jax.Array
    distance: float
    error: float
    converged: bool


def transported(leaf: jax.Array, members: Sequence[tuple[Member, Alignment]]) -> jax.Array:
    """A leaf of the source with the channels of `members` transported; float32, or unchanged without members."""
    for member, alignment in members:
        leaf = mix(leaf, member, alignment.columns)
    return leaf


def align(
    channels: Sequence[Channels],
    sources: Sequence[Leaves],
    target: Leaves,
    *,
    source_masses: Sequence[np.ndarray | None] | None = None,
    target_masses: Sequence[np.ndarray | None] | None = None,
    active: Sequence[Collection[int]] | None = None,
    cost_on_transported: bool = True,
    canonical: bool = True,
    sweeps: int = 3,
    solver: transport.Solver = "exact",
    **settings: Any,
) -> list[dict[int, Alignment]]:
    """Matches the channels of several sources with those of one target.

    The cost of a pair is the Euclidean distance of their kernels and biases. The first sweep matches a set by the
    layers whose inputs have already been transported: where a residual stream begins, only by the stem. If there is no
    such layer, as for heads and their dimensions, it compares sorted values, which do not depend on the unknown order.
    Further sweeps use all layers, until nothing changes.

    Args:
        channels: of `find_channels`.
        sources: the models to transport.
        target: the model whose order of channels is kept.
        source_masses: `[C]` per set, None for uniform masses.
        target_masses: `[C]` per set, None for uniform masses.
        active: per source, the indices of the sets to match; channels of other sets keep their places. None for all.
        cost_on_transported: whether to transport a layer's inputs before comparing its channels, which independently
            trained models need. If False, all sets of all sources are solved at once.
        canonical: whether equal channels get equal treatment.
        sweeps: upper limit, >= 1.
        solver: see `transport.solve`.
        **settings: of the solver.

    Returns:
        Per source: index of the set -> its alignment.
    """
    found: list[dict[int, Alignment]] = [{} for _ in sources]
    nothing = [None] * len(channels)
    masses = list(zip(source_masses or nothing, target_masses or nothing, strict=True))

    def solve(numbers: Sequence[int], rows: Sequence[Sequence[Row]], *, first: bool = False) -> None:
        """Matches some sets of all sources; sets of equal size are one batched problem."""
        stacks: dict[int, list[tuple[int, int, Any, Any]]] = defaultdict(list)
        for number, chosen in zip(numbers, rows, strict=True):
            unordered: list[Unordered] = ["nothing"] * len(chosen)
            if first:
                unordered = [_unordered(channels, number, row) for row in chosen]
            theirs = _points(target, chosen, unordered)
            # Equal channels, such as pruned ones, must not be told apart by rounding: they are transported as one.
            theirs_ties = transport.equal_rows(theirs) if canonical else None
            for which, leaves in enumerate(sources):
                if active is not None and number not in active[which]:
                    continue
                before = _places(channels, found[which]) if cost_on_transported else ()
                ours = _points(leaves, chosen, unordered, before)
                ties = (transport.equal_rows(ours), theirs_ties) if canonical else (None, None)
                # Problems of one size are solved as a stack: on a device that is one program.
                stacks[channels[number].size].append((number, which, transport.distances(ours, theirs), ties))
        for stack in stacks.values():
            costs = jnp.stack([cost for _, _, cost, _ in stack])
            sides = [[masses[number][side] for number, *_ in stack] for side in (0, 1)]
            # Each axis 0 of the stack is one pair of a set and a source.
            plans = transport.solve(
                costs,
                *(_stacked(side, costs.shape[1]) for side in sides),
                source_ties=np.stack([ties[0] for *_, ties in stack]) if canonical else None,
                target_ties=np.stack([ties[1] for *_, ties in stack]) if canonical else None,
                solver=solver,
                **settings,
            )
            moved = transport.objective(plans, costs)
            for k, (number, which, *_) in enumerate(stack):
                columns = jnp.asarray(plans.columns[k], jnp.float32)
                measured = float(moved[k]), float(plans.error[k]), bool(plans.converged[k])
                found[which][number] = Alignment(channels[number].name, columns, *measured)

    if not cost_on_transported:
        solve(range(len(channels)), [one.rows for one in channels])
        return found
    # First sweep, in program order: use only the rows whose inputs belong to sets that are matched already.
    complete = True
    for number, one in enumerate(channels):
        ready = [row for row in one.rows if _unordered(channels, number, row) == "nothing"]
        complete = complete and len(ready) == len(one.rows)
        solve([number], [ready or one.rows], first=True)
    # If every set could use all its rows, another sweep would change nothing.
    for _ in range(0 if complete else sweeps - 1):
        before = [dict(one) for one in found]
        for number, one in enumerate(channels):
            solve([number], [one.rows])
        # A sweep that changes no map is a fixed point: the next would do the same.
        pairs = ((old[k].columns, new[k].columns) for old, new in zip(before, found, strict=True) for k in new)
        if all(np.array_equal(old, new) for old, new in pairs):
            break
    return found


def _points(
    leaves: Leaves,
    rows: Sequence[Row],
    unordered: Sequence[Unordered],
    before: Sequence[tuple[Member, Alignment]] = (),
) -> jax.Array:
    """Feature vectors `[C, F]` of a set's channels, with the other axes of their leaves transported."""
    parts = []
    for row, sort in zip(rows, unordered, strict=True):
        for member in (row.kernel, row.bias) if row.bias else (row.kernel,):
            others = [(place, how) for place, how in before if place.path == member.path and place is not member]
            # Channels are compared in the target's order: the axes that other sets own are transported first.
            parts.append(read(transported(leaves[member.path], others), member, sort))
    return jnp.concatenate(parts, axis=1)


def _places(channels: Sequence[Channels], found: Mapping[int, Alignment]) -> list[tuple[Member, Alignment]]:
    """Every place of the sets that are matched so far, with its alignment."""
    return [(member, found[number]) for number in found for member in channels[number].members]


def _unordered(channels: Sequence[Channels], number: int, row: Row) -> Unordered:
    """Which part of a row's kernel has an unknown order, since its sets are not matched before this one."""
    axes = {
        member.axis
        for later, one in enumerate(channels[number:], start=number)
        for member in one.members
        if member.path == row.kernel.path and member is not row.kernel
    }
    if axes - {row.kernel.axis}:
        return "everything"
    return "repeats" if axes else "nothing"


def _stacked(masses: Sequence[np.ndarray | None], size: int) -> np.ndarray | None:
    if all(mass is None for mass in masses):
        return None
    return np.stack([np.ones(size) / size if mass is None else mass / mass.sum() for mass in masses])
