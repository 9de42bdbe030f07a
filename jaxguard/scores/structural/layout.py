"""Which axes of a kernel are its output channels: by the dialect, and by what fits together in the file.

A file's own sizes are evidence: a bias is as long as the output axis beside it, and the output axis of one layer is
the input axis of the next. Kernels that are named alike are laid alike, so each is evidence for the others. Where
neither a rule of the dialect nor a size decides, the layout is not known, and that is the answer.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxguard.scores.structural.forms import Form, Shape

Axes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Output channels, fan-in, taps."""

LEAST_AGREEMENT = 2 / 3
"""Share of the evidence of kernels named alike that must agree, for those among them without any of their own."""


@dataclass(frozen=True)
class Candidate:
    """A leaf that is a kernel, with all that is known of its layout.

    Attributes:
        module: words of its module's path.
        stem: for reports.
        form: how its weight is formed.
        shape: without a stack's axis.
        kind: kernels of one kind are laid alike: dialect, part and number of axes.
        dialect: its name.
        out_first: of the dialect; None without a rule.
        taps_first: of the dialect; None without a rule.
        bias: length of the bias beside it; 0 without.
        width: channels of the norm behind it; 0 without.
        fixed: axes, where the dialect leaves nothing to infer.
        stack: axis of stacked layers in the leaf, or None.
    """

    module: tuple[str, ...]
    stem: str
    form: Form
    shape: Shape
    kind: tuple[str, str, int]
    dialect: str
    out_first: bool | None
    taps_first: bool | None
    bias: int = 0
    width: int = 0
    fixed: Axes | None = None
    stack: int | None = None


@dataclass(frozen=True)
class Layout:
    """Axes of a kernel, or None where they are not known, and what says so."""

    axes: Axes | None
    evidence: str


def layouts(candidates: Sequence[Candidate], widths: frozenset[int]) -> list[Layout]:
    """Infer the layout of all kernels of a file.

    Args:
        candidates: in the order of their modules.
        widths: lengths of the file's vectors.

    Returns:
        One for each.
    """
    resolved = [replace(one, taps_first=_taps_first(one)) for one in candidates]
    own = [_own_evidence(one) for one in resolved]
    chains = _chains(resolved)
    # Of each kind: how many kernels say that the output axis comes first, and how many that it comes second.
    votes: Counter[tuple[tuple[str, str, int], bool]] = Counter()
    for one, said in zip(resolved, own, strict=True):
        if said is not None:
            votes[one.kind, said] += 1
    found = []
    for one, said in zip(resolved, own, strict=True):
        found.append(_decided(one, said, votes, chains, widths))
    return found


def _decided(  # noqa: PLR0911  # one return per kind of evidence
    one: Candidate, said: bool | None, votes: Counter, chains: Counter, widths: frozenset[int]
) -> Layout:
    if one.fixed is not None:
        return Layout(one.fixed, f"{one.dialect}: axes by name")
    if one.taps_first is None:
        return Layout(None, "layout not known: neither names nor sizes tell the taps of this kernel from its channels")
    first, second = votes[one.kind, True], votes[one.kind, False]
    alike = first + second
    if said is not None:
        if said == one.out_first or one.out_first is None:
            return Layout(_axes(one, said), f"{one.dialect}: its bias or norm agrees")
        return Layout(_axes(one, said), f"{one.dialect}, but its bias or norm has the length of the other axis")
    if one.out_first is not None:
        against = second if one.out_first else first
        if against and against >= LEAST_AGREEMENT * alike and alike > 1 and _input(one, not one.out_first) in widths:
            return Layout(_axes(one, not one.out_first), f"as {against} of {alike} kernels of its kind")
        if against and against == alike and _input(one, not one.out_first) in widths:
            return Layout(_axes(one, not one.out_first), f"as {against} of {alike} kernels of its kind")
        agreed = f", {alike - against} of {alike} alike agree by size" if alike else ""
        return Layout(_axes(one, one.out_first), f"{one.dialect}: by name{agreed}")
    if alike and max(first, second) >= LEAST_AGREEMENT * alike:
        return Layout(_axes(one, first > second), f"as {max(first, second)} of {alike} kernels of its kind")
    forward, backward = chains[one.kind, True], chains[one.kind, False]
    if forward != backward:
        return Layout(_axes(one, forward > backward), f"{max(forward, backward)} kernels fit the one before")
    return Layout(None, "layout not known: neither names nor sizes tell the output axis from the input axis")


def _pair(one: Candidate) -> tuple[int, int]:
    """The two axes that are no taps, in the order they lie."""
    rank = len(one.shape)
    return (rank - 2, rank - 1) if one.taps_first else (0, 1)


def _axes(one: Candidate, out_first: bool) -> Axes:
    first, second = _pair(one)
    out, fan_in = (first, second) if out_first else (second, first)
    taps = tuple(axis for axis in range(len(one.shape)) if axis not in (first, second))
    return (out,), (fan_in,), taps


def _input(one: Candidate, out_first: bool) -> int:
    return one.shape[_axes(one, out_first)[1][0]]


def _taps_first(one: Candidate) -> bool | None:
    """Whether taps lie before the channels; a rule of the dialect, or equal small sizes at one end only."""
    if one.taps_first is not None or len(one.shape) == 2:
        return bool(one.taps_first)
    head, tail = one.shape[:-2], one.shape[2:]
    in_front, behind = (len(set(part)) == 1 and part[0] <= MOST_TAPS for part in (head, tail))
    if len(one.shape) == 3 and in_front and behind:
        return None
    return in_front if in_front != behind else None


MOST_TAPS = 11
"""Side of the largest window of a convolution that is told from channels by its size."""


def _own_evidence(one: Candidate) -> bool | None:
    """Whether a bias or norm beside the kernel says that its output axis is the first of the two; None without."""
    if one.taps_first is None or one.fixed is not None:
        return None
    first, second = (one.shape[axis] for axis in _pair(one))
    for length in (one.bias, one.width):
        if length and first != second and length in (first, second):
            return length == first
    return None


def _chains(candidates: Sequence[Candidate]) -> Counter[tuple[tuple[str, str, int], bool]]:
    """Of kernels without a rule: how many inputs are the output before, if the output axis is the first, or second."""
    found: Counter[tuple[tuple[str, str, int], bool]] = Counter()
    for before, after in itertools.pairwise(candidates):
        if None in (before.taps_first, after.taps_first) or before.fixed or after.fixed:
            continue
        for out_first in (True, False):
            made = before.shape[_axes(before, out_first)[0][0]]
            taken = _input(after, out_first)
            flattened = len(before.shape) > len(after.shape) and taken % made == 0
            if made == taken or flattened:
                found[before.kind, out_first] += 1
                if after.kind != before.kind:
                    found[after.kind, out_first] += 1
    return found
