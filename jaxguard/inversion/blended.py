"""Blended patterns: a faint picture over the whole image, `(1 - s) x + s p`.

Starts are the patterns that do best as they are (noise of several grains, procedural pictures, plain colours; forward
only, one pass scores all classes) and a grey that takes the gradient's way. Attacks of this kind: Chen et al., 2017.
"""

from __future__ import annotations

import numpy as np

from jaxguard.inversion.ascent import Task
from jaxguard.inversion.start_pictures import pictures, screened
from jaxguard.inversion.trigger_models import Patch
from jaxguard.inversion.whole_images import Family

STRENGTHS = (0.05, 0.1, 0.2)

BEST = 2
"""Patterns that each class starts from, besides grey."""


def _given(size: float, shape: tuple[int, int, int]) -> np.ndarray:
    return np.full((*shape[:2], 1), size, np.float32)


def _starts(task: Task, classes: np.ndarray, seed: int) -> np.ndarray:
    known = pictures(task.shape, seed)
    scores = screened(task, known, STRENGTHS[-1])[:, classes]
    best = np.argsort(-scores.T, axis=1, kind="stable")[:, :BEST]
    grey = np.full((len(classes), 1, *task.shape), 0.5, np.float32)
    return np.concatenate([grey, known[best]], axis=1).reshape(-1, *task.shape)


def _parts(given: np.ndarray, free: np.ndarray, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    del shape
    return {"mask": given, "pattern": free}


FAMILY = Family(
    "blended",
    Patch(),
    STRENGTHS,
    BEST + 1,
    _given,
    _starts,
    _parts,
    "a pattern over the whole image of strength {}",
)
