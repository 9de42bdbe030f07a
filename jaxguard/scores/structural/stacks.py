"""Layers that a loop runs through lie stacked in one leaf, as `nn.scan`, `layer_stack` and MaxText write them."""

from __future__ import annotations

from collections.abc import Mapping

from jaxguard.scores.structural import dialects
from jaxguard.scores.structural.forms import Leaf

UNKNOWN = -1
"""The axis of a stack in which two axes have one size in all leaves."""


def stacked(leaves: Mapping[str, Leaf]) -> dict[str, int]:
    """Find stacks: modules below which every leaf has an axis of one size, and vectors have two.

    Args:
        leaves: floating-point leaves by name.

    Returns:
        The axis of the stack by name, 0 or 1 or `UNKNOWN`, for all leaves of stacked modules.
    """
    below: dict[tuple[str, ...], list[Leaf]] = {}
    for leaf in leaves.values():
        for depth in range(1, len(leaf.words.module) + 1):
            below.setdefault(leaf.words.module[:depth], []).append(leaf)
    found: dict[str, int] = {}
    for prefix in sorted(below, key=len):
        members = below[prefix]
        if any(leaf.name in found for leaf in members):
            continue
        axis = _axis(prefix, members)
        if axis is not None:
            found |= {leaf.name: axis for leaf in members}
    return found


def _axis(prefix: tuple[str, ...], members: list[Leaf]) -> int | None:
    is_list = all(leaf.words.module[len(prefix) :][:1] and leaf.words.module[len(prefix)].isdigit() for leaf in members)
    if is_list or prefix[-1].isdigit() or min(len(leaf.shape) for leaf in members) < 2:
        return None
    vectors = [leaf for leaf in members if _is_vector(leaf)]
    if any(sum(size > 1 for size in leaf.shape) < 2 for leaf in vectors) or _has_bias_per_head(members):
        return None  # (C, 1, 1) of Equinox, or [heads, dim] behind [D, heads, dim], are one layer's
    matrices = [leaf for leaf in members if not _is_vector(leaf)]
    if not matrices or min(len(leaf.shape) for leaf in matrices) < 3:
        return None
    if any(dialects.EXPERTS.fullmatch(word) for word in prefix):
        return None
    is_named = dialects.STACKED.fullmatch(prefix[-1]) is not None
    if not (vectors or is_named):  # vectors of two axes show the stack; without one only the module's name does
        return None
    alike = [axis for axis in (0, 1) if len({leaf.shape[axis] for leaf in members}) == 1]
    return alike[0] if len(alike) == 1 else UNKNOWN if alike else None


def _has_bias_per_head(members: list[Leaf]) -> bool:
    attention = [leaf for leaf in members if dialects.ATTENTION.fullmatch(leaf.words.last)]
    return any(
        bias.words.module == kernel.words.module and kernel.shape[-len(bias.shape) :] == bias.shape
        for bias in attention
        for kernel in attention
        if _is_vector(bias) and not _is_vector(kernel)
    )


def _is_vector(leaf: Leaf) -> bool:
    part = leaf.words.part
    if part == "weight" and dialects.NORM.fullmatch(leaf.words.last):
        return True
    return bool(dialects.BIAS.fullmatch(part) or (part not in ("weight", "kernel") and dialects.SCALE.fullmatch(part)))
