"""What an array axis is made of: a union-find over axis factors.

An axis of size `n` is an `Axis` node. Equal axes are tied into one node; where a reshape or a concatenation looks
inside an axis, its node is refined, in place, into a *product* (row-major, outermost first) or a *sum* (parts laid end
to end) of smaller nodes. What is left unrefined at the end, an *atom*, is one set of channels that can only be
permuted together, wherever in the model it occurs:

    >>> heads_times_dim, kernel_in = Axis(12), Axis(12)
    >>> heads, dim = split(heads_times_dim, (3, 4))      # reshape (..., 12) -> (..., 3, 4)
    >>> tie(heads_times_dim, kernel_in)                  # the 12 meets a kernel's input axis
    >>> [atom.size for atom, _ in atoms(kernel_in)]
    [3, 4]
    >>> find(atoms(kernel_in)[1][0]) is find(dim)
    True

A *frozen* atom may not be permuted, because the program depends on the order of its elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Literal

import numpy as np


class Axis:
    """A node of the union-find; only the attributes of its representative, `find(node)`, are up to date.

    Attributes:
        size: number of elements.
        kind: `atom`, `product` or `sum`.
        parts: nodes it is refined into, empty for an atom.
        frozen: why its elements may not be permuted, or None.
    """

    __slots__ = ("frozen", "kind", "link", "parts", "size")

    def __init__(self, size: int, frozen: str | None = None):
        self.size = size
        self.kind: Literal["atom", "product", "sum"] = "atom"
        self.parts: tuple[Axis, ...] = ()
        self.frozen = frozen
        self.link: Axis | None = None


def find(node: Axis) -> Axis:
    """Representative of a node's class."""
    root = node
    while root.link is not None:
        root = root.link
    while node.link is not None:
        node.link, node = root, node.link
    return root


def product(parts: Sequence[Axis]) -> Axis:
    """Axis of a row-major reshape of `parts` into one dimension."""
    return _compose("product", [part for part in parts if find(part).size != 1], 1)


def total(parts: Sequence[Axis]) -> Axis:
    """Axis of the concatenation of `parts`."""
    return _compose("sum", [part for part in parts if find(part).size != 0], 0)


def _compose(kind: Literal["product", "sum"], parts: Sequence[Axis], empty: int) -> Axis:
    if len(parts) == 1:
        return find(parts[0])
    sizes = [find(part).size for part in parts]
    node = Axis((int(np.prod(sizes)) if kind == "product" else sum(sizes)) if parts else empty)
    if parts:
        node.kind, node.parts = kind, tuple(parts)
    return node


def _flat(node: Axis, kind: str) -> list[Axis]:
    node = find(node)
    return [leaf for part in node.parts for leaf in _flat(part, kind)] if node.kind == kind else [node]


def summands(node: Axis) -> list[Axis]:
    """The parts an axis is the concatenation of; the axis itself where it is none."""
    return _flat(node, "sum")


def freeze(node: Axis, reason: str) -> None:
    """Forbid permuting the elements of `node`; the first reason given is kept."""
    node = find(node)
    if node.kind == "atom":
        node.frozen = node.frozen or reason
    for part in node.parts:
        freeze(part, reason)


def tie(a: Axis, b: Axis) -> None:
    """State that two axes index the same channels, refining both until they agree."""
    a, b = find(a), find(b)
    if a.size != b.size:
        raise ValueError(f"axes of {a.size} and {b.size} elements cannot be tied")
    if a is b:
        return
    if b.kind == "atom":
        a, b = b, a
    if a.kind == "atom":
        # An atom knows nothing of its inside: it takes on the other's structure, and hands on why it is frozen.
        if a.frozen:
            freeze(b, a.frozen)
    elif a.kind == b.kind == "product":
        common = _common_refinement(_sizes(a), _sizes(b))
        _tie_all(a, b, split(a, common), split(b, common))
    elif a.kind == b.kind == "sum":
        # Cut both wherever either has an edge, and tie the pieces one by one.
        edges = sorted({*accumulate(_sizes(a)), *accumulate(_sizes(b))})
        common = tuple(int(size) for size in np.diff([0, *edges]))
        _tie_all(a, b, cut(a, common), cut(b, common))
    else:
        # A product equals a sum if its outermost factor can be cut where the sum has its edges.
        whole, laid = (a, b) if a.kind == "product" else (b, a)
        common = _sizes(laid)
        _tie_all(a, b, cut(whole, common), cut(laid, common))
    a, b = find(a), find(b)
    if a is not b:
        a.link = b


def _sizes(node: Axis) -> tuple[int, ...]:
    return tuple(part.size for part in _flat(node, node.kind))


def _tie_all(a: Axis, b: Axis, left: Sequence[Axis] | None, right: Sequence[Axis] | None) -> None:
    if left is None or right is None:
        freeze(a, "its parts do not line up")
        freeze(b, "its parts do not line up")
        return
    for x, y in zip(left, right, strict=True):
        tie(x, y)


def _common_refinement(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...] | None:
    """Factors of which both sequences are regroupings: `(6, 4), (3, 8) -> (3, 2, 4)`; None where there are none."""
    # In a row-major layout a factor ends wherever either sequence has a partial product.
    edges = sorted({*accumulate(a, int.__mul__), *accumulate(b, int.__mul__)})
    factors, previous = [], 1
    for edge in edges:
        if edge % previous:
            return None
        factors.append(edge // previous)
        previous = edge
    return tuple(factor for factor in factors if factor != 1)


def split(node: Axis, sizes: Sequence[int] | None) -> tuple[Axis, ...] | None:
    """Refine an axis into factors of the given sizes, outermost first; None where its structure forbids it."""
    if sizes is None:
        return None
    factors: list[Axis] = []
    for size in reversed(sizes):
        if size == 1:
            factors.append(Axis(1))
            continue
        pair = _split_inner(node, size)
        if pair is None:
            return None
        node, inner = pair
        factors.append(inner)
    return tuple(reversed(factors))


def _split_inner(node: Axis, inner: int) -> tuple[Axis, Axis] | None:
    """Refine into `(outer, inner)`."""
    node = find(node)
    if node.size == inner:
        return Axis(1), node
    if node.size % inner:
        return None
    if node.kind == "sum":
        # (a * i) + (b * i) = (a + b) * i: every part must have the inner factor, and they all share one.
        pairs = [_split_inner(part, inner) for part in _flat(node, "sum")]
        if any(pair is None for pair in pairs):
            return None
        outers, inners = zip(*(pair for pair in pairs if pair), strict=True)
        for other in inners[1:]:
            tie(inners[0], other)
        node.kind, node.parts = "product", (total(outers), inners[0])
    elif node.kind == "atom":
        node.kind, node.parts = "product", (Axis(node.size // inner, node.frozen), Axis(inner, node.frozen))
    # Take factors from the innermost end until their product is `inner`, splitting the last one if it is too large.
    outer_parts = _flat(node, "product")
    inner_parts: list[Axis] = []
    rest = inner
    while rest > 1:
        part = outer_parts.pop()
        if part.size <= rest and rest % part.size == 0:
            inner_parts.insert(0, part)
            rest //= part.size
            continue
        pair = _split_inner(part, rest) if part.size % rest == 0 else None
        if pair is None:
            return None
        outer_parts.append(pair[0])
        inner_parts.insert(0, pair[1])
        rest = 1
    return product(outer_parts), product(inner_parts)


def cut(node: Axis, sizes: Sequence[int]) -> tuple[Axis, ...] | None:
    """Refine an axis into consecutive parts of the given sizes; None where its structure forbids it."""
    node = find(node)
    if len(sizes) == 1:
        return (node,)
    if node.kind == "atom":
        node.kind, node.parts = "sum", tuple(Axis(size, node.frozen) for size in sizes)
        return node.parts
    if node.kind == "product":
        # Whole rows of a row-major product are a run of it; a cut inside a row has no such form.
        outer, *rest = _flat(node, "product")
        inner = product(rest)
        if any(size % inner.size for size in sizes):
            return None
        pieces = cut(outer, [size // inner.size for size in sizes])
        return None if pieces is None else tuple(product((piece, inner)) for piece in pieces)
    remaining, result = _flat(node, "sum"), []
    for size in sizes:
        taken: list[Axis] = []
        need = size
        while need:
            part = remaining.pop(0)
            if part.size > need:
                halves = cut(part, (need, part.size - need))
                if halves is None:
                    return None
                part = halves[0]
                remaining.insert(0, halves[1])
            taken.append(part)
            need -= find(part).size
        result.append(total(taken))
    return tuple(result)


def factors(node: Axis) -> Iterator[Axis]:
    """Atoms of an axis, without the places of their elements."""
    node = find(node)
    if node.kind == "atom":
        yield node
    for part in node.parts:
        yield from factors(part)


def atoms(node: Axis) -> list[tuple[Axis, np.ndarray]]:
    """Atoms of an axis with the positions `[repeats, atom size]` of their elements along it."""
    return list(_walk(node, np.arange(find(node).size)[None]))


def _walk(node: Axis, positions: np.ndarray) -> Iterator[tuple[Axis, np.ndarray]]:
    node = find(node)
    if node.kind == "sum":
        offset = 0
        for part in node.parts:
            size = find(part).size
            yield from _walk(part, positions[:, offset : offset + size])
            offset += size
    elif node.kind == "product":
        sizes = [find(part).size for part in node.parts]
        # Each factor varies along one axis of the grid; along the others its elements are repeated.
        grid = positions.reshape(-1, *sizes)
        for k, part in enumerate(node.parts, start=1):
            yield from _walk(part, np.moveaxis(grid, k, -1).reshape(-1, sizes[k - 1]))
    else:
        yield node, positions
