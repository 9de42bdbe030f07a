"""Where triggers of the whole image start: noise of several grains, procedural pictures, black and white."""

from __future__ import annotations

import numpy as np

from jaxguard.inversion import drawings
from jaxguard.inversion.ascent import Candidates, Task, log_probability, stamped_logits
from jaxguard.inversion.patch_search import MOST_CLASSES, leading_classes
from jaxguard.inversion.trigger_models import Patch

PROMISING = 0.2
"""Strength at which pictures show the classes that whole images may lead to."""

DRAWN = 8
"""Procedural pictures, and noises of each grain."""

GRAINS = (1, 2, 4)
"""Edges of the squares of noise, in pixels."""


def pictures(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Pictures to start from.

    Args:
        shape: `(H, W, C)`.
        seed: draws them.

    Returns:
        float32 `[D, H, W, C]` in [0, 1].

    Example:
        >>> pictures((8, 8, 1), 0).shape
        (34, 8, 8, 1)
    """
    draw = np.random.default_rng([seed, *shape])
    height, width, channels = shape
    noises = []
    for grain in GRAINS:
        small = draw.uniform(size=(DRAWN, -(-height // grain), -(-width // grain), channels))
        noises.append(small.repeat(grain, axis=1).repeat(grain, axis=2)[:, :height, :width])
    plain = np.stack([np.zeros(shape), np.ones(shape)])
    drawn = drawings.draw(seed, DRAWN, shape)
    return np.concatenate([plain, *noises, drawn]).astype(np.float32)


def screened(task: Task, known: np.ndarray, strength: float) -> np.ndarray:
    """How well pictures do as they are, forward only: one pass scores all classes.

    Args:
        task: the network and its images.
        known: `[D, H, W, C]`.
        strength: that they are blended with, in [0, 1].

    Returns:
        Mean log probabilities `[D, K]`.
    """
    masks = np.full((len(known), *task.shape[:2], 1), strength, np.float32)
    logits = stamped_logits(task, Patch(), Candidates(masks, known).take, len(known), task.images)
    return log_probability(logits, task.labels)


def promising(task: Task, classes: np.ndarray, seed: int) -> np.ndarray:
    """All classes, or of many those that pictures lead to, and random ones to compare them with.

    Args:
        task: the network and its images.
        classes: int `[K]`, all of them.
        seed: draws pictures and classes.

    Returns:
        int `[S]`, ascending.
    """
    if len(classes) <= MOST_CLASSES:
        return classes
    return classes[leading_classes(screened(task, pictures(task.shape, seed), PROMISING), seed)]
