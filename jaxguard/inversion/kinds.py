"""The kinds of triggers that are searched, one row each.

Each kind has a version of its own, so that one that is new or has changed is searched alone and all others' results
stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from jaxguard.inversion import patch_kind
from jaxguard.inversion.ascent import Task
from jaxguard.inversion.judges import Judges
from jaxguard.types.searches import TriggerRow


@dataclass(frozen=True)
class Kind:
    """One kind of triggers.

    Attributes:
        name: in one word.
        version: raised with every change that moves gaps: those of different versions are not compared.
        unit: what its sizes are, with `{}` in their place, such as `patches of {} pixels of edge`.
        sizes_fn: shape `(H, W, C)` of the images -> the sizes that are searched, ascending.
        cost_fn: shape, classes, images to search on, images to judge by -> forward passes, about; a backward pass
            counts as `ascent.GRADIENT`.
        search_fn: task, judges, classes int `[K]`, seed -> a row for each size, in any order, as soon as it is found.
    """

    name: str
    version: int
    unit: str
    sizes_fn: Callable[[tuple[int, int, int]], tuple[float, ...]]
    cost_fn: Callable[[tuple[int, int, int], int, int, int], float]
    search_fn: Callable[[Task, Judges, np.ndarray, int], Iterator[TriggerRow]]

    def named(self, sizes: list[float] | tuple[float, ...]) -> str:
        """The kind with some sizes, in words; empty for none."""
        return self.unit.format(", ".join(f"{size:g}" for size in sizes)) if sizes else ""


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            patch_kind.NAME,
            2,
            "patches of {} pixels of edge",
            patch_kind.sizes,
            patch_kind.forwards,
            patch_kind.rows,
        ),
    )
}
"""Name -> kind."""

DEFAULT = ("patch",)
"""Kinds that are searched unless others are named."""
