"""Blended patterns: a faint picture over the whole image, `(1 - s) x + s p`.

Starts are the patterns that do best as they are (noise of several grains, procedural pictures, plain colours; forward
only, one pass scores all classes) and a grey that takes the gradient's way. Attacks of this kind: Chen et al., 2017.
"""

from __future__ import annotations

import jax
import numpy as np

from jaxguard.inversion import procedural
from jaxguard.inversion.ascent import Task
from jaxguard.inversion.trigger_models import Patch
from jaxguard.inversion.whole_images import Family, screened

STRENGTHS = (0.05, 0.1, 0.2)

BEST = 2
"""Patterns that each class starts from, besides grey."""

DRAWN = 8
"""Procedural pictures, and noises of each grain."""

GRAINS = (1, 2, 4)
"""Edges of the squares of noise, in pixels."""


def patterns(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Patterns to start from.

    Args:
        shape: `(H, W, C)`.
        seed: draws them.

    Returns:
        float32 `[D, H, W, C]` in [0, 1].

    Example:
        >>> patterns((8, 8, 1), 0).shape
        (34, 8, 8, 1)
    """
    draw = np.random.default_rng([seed, *shape])
    height, width, channels = shape
    noises = []
    for grain in GRAINS:
        small = draw.uniform(size=(DRAWN, -(-height // grain), -(-width // grain), channels))
        noises.append(small.repeat(grain, axis=1).repeat(grain, axis=2)[:, :height, :width])
    plain = np.stack([np.zeros(shape), np.ones(shape)])
    pictures = np.asarray(procedural.draw(jax.random.key(seed), DRAWN, shape))
    return np.concatenate([plain, *noises, pictures]).astype(np.float32)


def _given(size: float, shape: tuple[int, int, int]) -> np.ndarray:
    return np.full((*shape[:2], 1), size, np.float32)


def _starts(task: Task, classes: np.ndarray, seed: int) -> np.ndarray:
    known = patterns(task.shape, seed)
    scores = screened(task, Patch(), _given(STRENGTHS[-1], task.shape), known, classes)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :BEST]
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
