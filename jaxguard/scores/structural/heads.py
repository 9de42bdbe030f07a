"""Which dense layers give the outputs of a network: by their names, and since they feed no other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxguard.scores.structural.dialects import ATTENTION_BLOCK, AUXILIARY, HEAD, OUTPUT

if TYPE_CHECKING:
    from jaxguard.scores.structural.reading import Producer

IMAGE_CHANNELS = 4
"""A convolution that reads so few channels reads an image, or single channels, and no dense layer."""


def outputs(producers: Sequence[Producer]) -> list[Producer]:
    """The layers whose channels are classes, not features.

    In a module called a head it is what feeds none of its other layers. Without such a module, auxiliary ones aside, it
    is the last dense layer of a telling name that feeds no other, or the last layer of the file.

    Args:
        producers: all, in module order, with their norms.

    Returns:
        Some of them; none where no layer can be told to be one.
    """
    plain = [p for p in producers if p.norm is None and p.stack is None and _has_no_taps(p)]
    heads: dict[tuple[str, ...], list[Producer]] = {}
    for one in plain:
        if (prefix := _head_of(one.module)) is not None:
            heads.setdefault(prefix, []).append(one)
    found = [one for members in heads.values() for one in _free(members)]
    if not all(AUXILIARY.fullmatch(prefix[-1]) for prefix in heads):
        return found
    readers = [p for p in producers if len(p.form.shape) != 4 or _fan_in(p) > IMAGE_CHANNELS]
    free = [p for p in plain if len(p.form.shape) == 2 and p not in found and not _is_read(p, readers)]
    named = [p for p in free if _is_output(p.module)]
    if named:
        outermost = min(len(p.module) for p in named)
        return found + [p for p in named if len(p.module) == outermost][-1:]
    return found + [p for p in free if p is producers[-1] and not _is_of_attention(p)]


def _is_of_attention(one: Producer) -> bool:
    """Whether it lies in a module of attention, as the last low-rank factors of an adapter often do."""
    return any(ATTENTION_BLOCK.fullmatch(word) for word in one.module)


def _has_no_taps(one: Producer) -> bool:
    return math.prod(one.form.shape[axis] for axis in one.axes[2]) == 1


def _head_of(module: tuple[str, ...]) -> tuple[str, ...] | None:
    """The path down to the word that says head; none inside numbered blocks and attention, whose heads are others."""
    for depth, word in enumerate(module):
        if word.isdigit() or ATTENTION_BLOCK.fullmatch(word):
            return None
        if HEAD.fullmatch(word):
            return module[: depth + 1]
    return None


def _free(members: Sequence[Producer]) -> Sequence[Producer]:
    """Those of a head that no other of its layers reads, or no later one where all sizes are alike."""
    free = [one for one in members if not _is_read(one, members)]
    return free or [one for k, one in enumerate(members) if not _is_read(one, members[k + 1 :])]


def _is_read(one: Producer, readers: Sequence[Producer]) -> bool:
    return any(other is not one and _fan_in(other) == one.channels for other in readers)


def _fan_in(one: Producer) -> int:
    return math.prod(one.form.shape[axis] for axis in one.axes[1])


def _is_output(module: tuple[str, ...]) -> bool:
    """Whether the last word that is no number may be an output's, as in `classifier.1`, outside of numbered blocks."""
    words = list(module)
    while words and words[-1].isdigit():
        words.pop()
    return bool(words) and OUTPUT.fullmatch(words[-1]) is not None and not any(word.isdigit() for word in words)
