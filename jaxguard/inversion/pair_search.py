"""What searches over pairs of classes share: images class by class, and one forward pass over patches for all pairs.

A universal trigger turns images of all classes into one. A backdoor that works on images of one class, or sends every
class to another one, shows only where images are looked at class by class: `[patches, class of the image, class]`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from jaxguard.inversion import patch_search, start_patterns
from jaxguard.inversion.ascent import LEAST, Task, UnsearchableError, climb, floored_log_softmax
from jaxguard.inversion.batches import logits_of
from jaxguard.inversion.judges import Judges
from jaxguard.inversion.patches import Patches, edges_of, grid
from jaxguard.inversion.trigger_models import Patch

SEARCHED = 4
"""Images of each class to search on, at most half of them; the others judge."""

SCREENING = 2
"""Images of each class that positions and patterns are scored on; one of more than `MANY` classes."""

MANY = 30

SCREENS = 600
"""Positions times patterns, about."""


@dataclass(frozen=True, eq=False)
class ByClass:
    """Images class by class: to search on, and to judge by.

    Attributes:
        classes: int `[Y]` with images of both kinds, ascending.
        task: with the images to search on.
        shown: int `[Y, n]`, images of the task that are of each class.
        judges: of the other images.
    """

    classes: np.ndarray
    task: Task
    shown: np.ndarray
    judges: Judges

    @property
    def screening(self) -> np.ndarray:
        """Images of the task that patches are screened on, int `[Y, m]`."""
        return self.shown[:, : SCREENING if len(self.classes) <= MANY else 1]


def size_of(shape: tuple[int, int, int]) -> int:
    """Edge of the patches: the largest one that is scanned; it holds smaller triggers."""
    return patch_search.scanned_edges(edges_of(*shape[:2]))[-1]


def sizes(shape: tuple[int, int, int]) -> tuple[float, ...]:
    """Of the rows: one edge in pixels."""
    return (size_of(shape),)


def by_class(task: Task, judges: Judges) -> ByClass:
    """Shares all images out anew, so that those of every class search and judge.

    Args:
        task: the network, and images to search on.
        judges: further images.

    Returns:
        The images that the network knows for what they are, of classes with two or more.

    Raises:
        UnsearchableError: fewer than three classes have so many.
    """
    plain = logits_of(task.apply_fn, task.variables, task.images)
    images = np.concatenate([task.images, judges.images])
    labels = np.concatenate([task.labels, judges.labels])
    clean = np.concatenate([plain, judges.clean])
    own = [np.flatnonzero((labels == y) & (clean.argmax(-1) == y)) for y in range(clean.shape[-1])]
    classes = np.array([y for y, some in enumerate(own) if len(some) > 1], int)
    if len(classes) < 3:
        raise UnsearchableError(
            f"{len(classes)} of {len(own)} classes have two or more images that the network knows for what they are, "
            "three should"
        )
    # Equally many of each class, so that candidates of all pairs have one shape.
    number = min(SEARCHED, *(len(own[y]) // 2 for y in classes))
    searched = np.concatenate([own[y][:number] for y in classes])
    rest = np.concatenate([own[y][number:] for y in classes])
    return ByClass(
        classes,
        replace(task, images=images[searched], labels=labels[searched]),
        np.arange(len(searched)).reshape(len(classes), number),
        Judges(images[rest], clean[rest], labels[rest], judges.spread),
    )


def starts(shape: tuple[int, int, int], edge: int) -> Patches:
    """Patterns of the dictionary all over an image."""
    corners = grid(*shape[:2], edge, patch_search.stride_of(edge))
    number = max(start_patterns.SCREENED, SCREENS // len(corners))
    few = start_patterns.patterns(edge, shape[2])[:number]
    return Patches(np.repeat(corners, len(few), axis=0), np.tile(few, (len(corners), 1, 1, 1)))


def screened(found: ByClass, patches: Patches, shown: np.ndarray) -> np.ndarray:
    """What patches make of the images of each class, forward only: one pass serves all pairs.

    Args:
        found: the images.
        patches: `N` of them.
        shown: int `[Y, m]`, images of the task.

    Returns:
        Mean log probabilities `[N, Y, Y]`: of the images' class, of the class; each at least -20.
    """
    logits = patch_search.answers(found.task, patches, found.task.images[shown.reshape(-1)])
    return log_probability_by_class(logits.reshape(len(logits), *shown.shape, -1))[..., found.classes]


def log_probability_by_class(logits: np.ndarray) -> np.ndarray:
    """Mean log probabilities over the images of each class.

    Args:
        logits: `[N, Y, m, K]`.

    Returns:
        `[N, Y, K]`, -20 where a logit is not finite.
    """
    found = floored_log_softmax(logits)
    return np.where(np.isfinite(found), found, LEAST).mean(2)


def climbed(
    task: Task, patches: Patches, targets: np.ndarray, steps: int, shown: np.ndarray
) -> tuple[Patches, np.ndarray]:
    """Patches after some steps towards a target of each image, and their mean log probabilities.

    Args:
        task: the network and its images.
        patches: `N` of them.
        targets: int `[N, B]`.
        steps: of each.
        shown: int `[N, B]`, images of the task.

    Returns:
        The patches, and `[N]`.
    """
    found = climb(task, Patch(), patch_search.candidates(task, patches), targets, steps, shown=shown)
    return patches.with_pixels_of(found.free), found.score
