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
    """How the channels of a set were carried over.

    Attributes:
        name: of the set; sets that share an axis, such as heads and their dimensions, share a name.
        columns: `[C, C]`; target channel `j` is the mixture `columns[:, j]` of source channels.
        distance: mean distance that the channels' mass was moved.
        error: L1 error of the plan's marginals.
        converged: False where Sinkhorn ran out of iterations.
    """

    name: str
    columns: jax.Array
    distance: float
    error: float
    converged: bool


def carried(leaf: jax.Array, members: Sequence[tuple[Member, Alignment]]) -> jax.Array:
    """A leaf with its channels carried over.

    Args:
        leaf: of the source.
        members: where they lie in it, and how they are carried over.

    Returns:
        The leaf, float32 unless there was nothing to do.
    """
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

    The cost of a pair is the Euclidean distance of their kernels and biases. In the first sweep a set is matched by the
    layers whose inputs have been carried over already, so by the stem alone where a residual stream begins; where there
    is none, as with heads and their dimensions, by what does not depend on the order that is not known yet. Further
    sweeps then take all layers as they are, until nothing changes.

    Args:
        channels: of `find_channels`.
        sources: the models to be carried over.
        target: the model they are carried over to.
        source_masses: per set `[C]`, None for uniform ones.
        target_masses: likewise.
        active: per source, numbers of the sets that are matched; the channels of others stay where they are. All
            where None.
        cost_on_transported: whether inputs are carried over before channels are compared, as two models trained apart
            need it. Without, all sets of all sources are solved at once.
        canonical: whether equal channels are treated alike.
        sweeps: at most, >= 1.
        solver: see `transport.solve`.
        **settings: of the solver.

    Returns:
        Per source: number of the set -> how it was carried over.
    """
    found: list[dict[int, Alignment]] = [{} for _ in sources]
    nothing = [None] * len(channels)
    masses = list(zip(source_masses or nothing, target_masses or nothing, strict=True))

    def solve(numbers: Sequence[int], rows: Sequence[Sequence[Row]], *, first: bool = False) -> None:
        """Matches some sets of all sources, those of equal size in one stack."""
        stacks: dict[int, list[tuple[int, int, Any, Any]]] = defaultdict(list)
        for number, chosen in zip(numbers, rows, strict=True):
            unordered: list[Unordered] = ["nothing"] * len(chosen)
            if first:
                unordered = [_unordered(channels, number, row) for row in chosen]
            theirs = _points(target, chosen, unordered)
            theirs_ties = transport.equal_rows(theirs) if canonical else None
            for which, leaves in enumerate(sources):
                if active is not None and number not in active[which]:
                    continue
                before = _places(channels, found[which]) if cost_on_transported else ()
                ours = _points(leaves, chosen, unordered, before)
                ties = (transport.equal_rows(ours), theirs_ties) if canonical else (None, None)
                stacks[channels[number].size].append((number, which, transport.distances(ours, theirs), ties))
        for stack in stacks.values():
            costs = jnp.stack([cost for _, _, cost, _ in stack])
            sides = [[masses[number][side] for number, *_ in stack] for side in (0, 1)]
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
    complete = True
    for number, one in enumerate(channels):
        ready = [row for row in one.rows if _unordered(channels, number, row) == "nothing"]
        complete = complete and len(ready) == len(one.rows)
        solve([number], [ready or one.rows], first=True)
    for _ in range(0 if complete else sweeps - 1):
        before = [dict(one) for one in found]
        for number, one in enumerate(channels):
            solve([number], [one.rows])
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
    """What describes each channel of a set, `[C, F]`, after all else in its leaves has been carried over."""
    parts = []
    for row, sort in zip(rows, unordered, strict=True):
        for member in (row.kernel, row.bias) if row.bias else (row.kernel,):
            others = [(place, how) for place, how in before if place.path == member.path and place is not member]
            parts.append(read(carried(leaves[member.path], others), member, sort))
    return jnp.concatenate(parts, axis=1)


def _places(channels: Sequence[Channels], found: Mapping[int, Alignment]) -> list[tuple[Member, Alignment]]:
    """Everything that has been carried over so far, a kernel's inputs above all."""
    return [(member, found[number]) for number in found for member in channels[number].members]


def _unordered(channels: Sequence[Channels], number: int, row: Row) -> Unordered:
    """What of a row's kernel belongs to sets that are not matched yet when this one is."""
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
