"""The kinds of triggers that are searched, one row each.

Each kind has a version of its own, so that one that is new or has changed is searched alone and all others' results
stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from jaxguard.inversion import additive, all_to_all, blended, cleansing, pair_search, patch_kind, source_target, warping
from jaxguard.inversion.ascent import Task
from jaxguard.inversion.judges import Judges
from jaxguard.inversion.whole_images import Family
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
        search_fn: task, judges, classes int `[K]`, seed -> a row for each size, in any order, as soon as it is found;
            raises `ascent.UnsearchableError` where it lacks something.
        is_local: whether its triggers are small and for all classes alike: several classes with one that works show a
            network that reacts to everything. Changes of the whole image turn sound networks too, and some pairs of
            classes are near in any: there only the gap says anything.
    """

    name: str
    version: int
    unit: str
    sizes_fn: Callable[[tuple[int, int, int]], tuple[float, ...]]
    cost_fn: Callable[[tuple[int, int, int], int, int, int], float]
    search_fn: Callable[[Task, Judges, np.ndarray, int], Iterator[TriggerRow]]
    is_local: bool = False

    def named(self, sizes: list[float] | tuple[float, ...]) -> str:
        """The kind with some sizes, in words; empty for none."""
        return self.unit.format(", ".join(f"{size:g}" for size in sizes)) if sizes else ""


def _of_whole_images(family: Family, version: int, unit: str) -> Kind:
    return Kind(family.name, version, unit, family.sizes_of, family.forwards, family.rows)


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
            is_local=True,
        ),
        _of_whole_images(additive.LARGEST, 1, "changes of every pixel by at most {} 255ths"),
        _of_whole_images(additive.SQUARE, 1, "changes of {} 255ths in the root mean square"),
        _of_whole_images(blended.FAMILY, 1, "blended patterns of strength {}"),
        _of_whole_images(warping.FAMILY, 1, "smooth shifts by up to {} % of the edge"),
        Kind(cleansing.NAME, 1, "masks of any size", cleansing.sizes, cleansing.forwards, cleansing.rows),
        Kind(
            all_to_all.NAME,
            1,
            "patches of {} pixels of edge that turn every class into another one",
            pair_search.sizes,
            all_to_all.forwards,
            all_to_all.rows,
        ),
        Kind(
            source_target.NAME,
            3,
            "patches of {} pixels of edge that turn one class into another one",
            pair_search.sizes,
            source_target.forwards,
            source_target.rows,
        ),
    )
}
"""Name -> kind."""

DEFAULT = ("patch", "blended", "all-to-all")
"""Kinds that are searched unless others are named.

Chosen on the even half of the reference population: all-to-all finds what the others do not, and costs none of theirs.
"""
