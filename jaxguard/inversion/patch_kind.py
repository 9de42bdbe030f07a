"""Small patches as a kind of trigger: all edges, and the rows they make."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from jaxguard.inversion import patch_search
from jaxguard.inversion.ascent import Task
from jaxguard.inversion.judges import Judges
from jaxguard.inversion.patches import Patches, edges_of
from jaxguard.types.searches import TriggerRow

NAME = "patch"


def sizes(shape: tuple[int, int, int]) -> tuple[float, ...]:
    """Edges in pixels."""
    return edges_of(*shape[:2])


def forwards(shape: tuple[int, int, int], num_classes: int, images: int, judging: int) -> float:
    """Cost of the search and of judging, in forward passes."""
    edges, classes = edges_of(*shape[:2]), min(num_classes, patch_search.MOST_CLASSES)
    return patch_search.forwards(shape, edges, classes, images) + len(edges) * judging * classes


def rows(task: Task, judges: Judges, classes: np.ndarray, seed: int) -> Iterator[TriggerRow]:
    """All edges, the scanned ones first.

    Args:
        task: the network, and the images to search on.
        judges: the images to judge by.
        classes: int `[K]`; of many, the most promising ones and random others are searched.
        seed: draws the random ones.

    Yields:
        A row as soon as it is found.
    """
    found: dict[int, Patches] = {}
    edges, chosen = edges_of(*task.shape[:2]), np.zeros(0, int)
    scanned = patch_search.scanned_edges(edges)
    for edge in (*scanned, *(edge for edge in edges if edge not in scanned)):
        if edge in scanned:
            corners, scores = patch_search.screened(task, edge)
            chosen = chosen if len(chosen) else classes[patch_search.leading_classes(scores[:, classes], seed)]
            found[edge] = patch_search.search(task, edge, chosen, corners, scores)
        else:
            near = sorted(scanned, key=lambda other, edge=edge: abs(other - edge))
            close = [found[one] for one in near if abs(one - edge) == abs(near[0] - edge)]
            found[edge] = patch_search.derived(task, edge, chosen, close)
        stamped = patch_search.answers(task, found[edge], judges.images)
        row = judges.row(NAME, float(edge), chosen, stamped, found[edge]._asdict())
        yield replace(row, label=Patches(**row.parameters).label(0))
