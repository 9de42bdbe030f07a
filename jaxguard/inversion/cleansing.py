"""Neural Cleanse as a kind of trigger: the smallest mask of each class, ranked by the MAD anomaly index of its size.

The descent is that of `jaxguard.inversion.trigger.invert`, with fewer steps and without data: a class stands out by a
small mask, not by a wide margin, since every class's trigger works about equally well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxguard.inversion.anomaly import anomaly_index
from jaxguard.inversion.ascent import GRADIENT, Candidates, Task, stamped_logits
from jaxguard.inversion.judges import Judges
from jaxguard.inversion.patch_search import MOST_CLASSES
from jaxguard.inversion.start_pictures import promising
from jaxguard.inversion.trigger import Inversion, invert
from jaxguard.inversion.trigger_models import Patch
from jaxguard.types.searches import TriggerRow

NAME = "neural-cleanse"

STEPS = 120
"""Of each class."""


def sizes(shape: tuple[int, int, int]) -> tuple[float, ...]:
    """One row, whose size is found, not given."""
    del shape
    return (np.nan,)


def forwards(shape: tuple[int, int, int], num_classes: int, images: int, judging: int) -> float:
    """Cost of the search and of judging, in forward passes, at most."""
    del shape
    return min(num_classes, MOST_CLASSES) * (images * (1 + GRADIENT) * STEPS + judging)


def rows(task: Task, judges: Judges, classes: np.ndarray, seed: int) -> Iterator[TriggerRow]:
    """One row, of the masks of all classes.

    Args:
        task: the network, and the images to search on.
        judges: the images to judge by.
        classes: int `[K]`; of many, the most promising ones and random others are searched.
        seed: draws the first masks, and the random classes.

    Yields:
        The row; a class whose mask turns too few images counts as needing the whole image.
    """
    classes = promising(task, classes, seed)
    found = _inverted(task, classes, seed)
    candidates = Candidates(found.masks, found.patterns)
    stamped = stamped_logits(task, Patch(), candidates.take, len(classes), judges.images)
    counted = np.where(found.reached, found.norms, found.masks[0].size)
    parts = {"mask": found.masks, "pattern": found.patterns}
    row = judges.row(NAME, float(counted.min()), classes, stamped, parts, kept=1, anomaly=anomaly_index(counted))
    yield replace(row, label=f"a mask of {row.size:.1f} pixels in all")


def _inverted(task: Task, classes: np.ndarray, seed: int) -> Inversion:
    cost, spent = len(classes) * len(task.images) * (1 + GRADIENT) * STEPS, 0.0

    def spend(done: int, total: int, _: Any) -> None:
        nonlocal spent
        more = max(0.0, cost * done / total - spent)
        spent += more
        task.clock.spend(more)

    found = invert(
        task.apply_fn,
        task.variables,
        task.images,
        task.labels,
        jax.random.key(seed),
        classes=classes.tolist(),
        steps=STEPS,
        progress=spend,
    )
    task.clock.spend(max(0.0, cost - spent))
    return found
