"""Triggers that change whole images: one descent per class and size, all classes in one batch.

The smallest size begins with a few starts per class, of which the best goes on; each larger one begins with the best of
the size below. Every class gets the same starts and steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxguard.inversion.ascent import GRADIENT, Candidates, Task, climb, stamped_logits
from jaxguard.inversion.judges import Judges
from jaxguard.inversion.patch_search import MOST_CLASSES, leading_classes
from jaxguard.inversion.start_pictures import promising
from jaxguard.inversion.trigger_models import TriggerModel
from jaxguard.types.searches import TriggerRow

CHOOSING, TRYING, FINISHING, GROWING = 2, 5, 10, 8
"""Steps that choose among many classes, of each start, of the best one, and of a size that begins with another."""

FEW = 100
"""Up to so many classes the most promising ones are chosen by a few steps of each; above, by forward passes that score
all classes at once, since steps take time and memory for each."""


@dataclass(frozen=True)
class Family:
    """One kind of such triggers.

    Attributes:
        name: of the kind.
        model: what a trigger is; `given` is made from the size.
        sizes: ascending.
        number: of starts.
        given_fn: size, shape `(H, W, C)` -> `given` of one candidate.
        starts_fn: task, classes `[S]`, seed -> `free` of the starts `[S number, ...]`, class by class.
        parts_fn: `given` and `free` `[N, ...]`, shape -> parts of `jaxguard.types.Trigger`, `[N, ...]`.
        label: of a trigger, with `{}` for its size.
    """

    name: str
    model: TriggerModel
    sizes: tuple[float, ...]
    number: int
    given_fn: Callable[[float, tuple[int, int, int]], np.ndarray]
    starts_fn: Callable[[Task, np.ndarray, int], Any]
    parts_fn: Callable[[Any, Any, tuple[int, int, int]], dict[str, np.ndarray]]
    label: str

    def sizes_of(self, shape: tuple[int, int, int]) -> tuple[float, ...]:
        """The same for all shapes."""
        del shape
        return self.sizes

    def forwards(self, shape: tuple[int, int, int], num_classes: int, images: int, judging: int) -> float:
        """Cost of the search and of judging, in forward passes; a few more where many starts are screened."""
        del shape
        classes, step = min(num_classes, MOST_CLASSES), images * (1 + GRADIENT)
        cost = classes * step * (self.number * TRYING * (self.number > 1) + FINISHING)
        cost += classes * ((len(self.sizes) - 1) * step * GROWING + len(self.sizes) * judging)
        return cost + (classes < num_classes <= FEW) * num_classes * step * CHOOSING

    def rows(self, task: Task, judges: Judges, classes: np.ndarray, seed: int) -> Iterator[TriggerRow]:
        """All sizes, the smallest first.

        Args:
            task: the network, and the images to search on.
            judges: the images to judge by.
            classes: int `[K]`; of many, the most promising ones and random others are searched.
            seed: draws random starts and classes.

        Yields:
            A row as soon as it is found.
        """
        if MOST_CLASSES < len(classes) <= FEW:
            first = self.starts_fn(task, classes, seed)[:: self.number]
            classes = classes[
                leading_classes(self._climbed(task, self.sizes[0], first, classes, CHOOSING)[1][None], seed)
            ]
        classes = promising(task, classes, seed)
        free: Any = None
        for size in self.sizes:
            if free is None:
                free = self.starts_fn(task, classes, seed)
                if self.number > 1:
                    free, found = self._climbed(task, size, free, np.repeat(classes, self.number), TRYING)
                    best = found.reshape(len(classes), self.number).argmax(1)
                    free = np.asarray(free)[best + np.arange(len(classes)) * self.number]
            steps = FINISHING if size == self.sizes[0] else GROWING
            free, _ = self._climbed(task, size, free, classes, steps)
            yield self._judged(task, judges, size, self._candidates(task, size, free), classes)

    def _candidates(self, task: Task, size: float, free: Any) -> Candidates:
        given = self.given_fn(size, task.shape)
        return Candidates(np.broadcast_to(given, (len(free), *given.shape)), free)

    def _climbed(self, task: Task, size: float, free: Any, targets: np.ndarray, steps: int) -> tuple[Any, np.ndarray]:
        found = climb(task, self.model, self._candidates(task, size, free), targets, steps)
        return found.free, found.score

    def _judged(
        self, task: Task, judges: Judges, size: float, candidates: Candidates, classes: np.ndarray
    ) -> TriggerRow:
        stamped = stamped_logits(task, self.model, candidates.take, len(classes), judges.images)
        parts = self.parts_fn(*candidates, task.shape)
        row = judges.row(self.name, size, classes, stamped, parts, kept=1)
        return replace(row, label=self.label.format(f"{size:g}"))
