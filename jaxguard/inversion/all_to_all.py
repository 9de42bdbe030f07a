"""Triggers that send every class to another one: the best assignment of classes under one patch.

    T(pi) = mean over classes y and judged images x of y of (z_pi(y) - max_{k != pi(y)} z_k) / standard deviation

1. Positions and patterns, forward only: a matrix `[class of the image, class]` for each, and its best assignment (an
   image's own class excluded).
2. The best patches climb, every image towards the target of its class; assignments are made anew between rounds.

An all-to-all backdoor (y -> y + 1 in BadNets) is one patch with one assignment that works. The patch is compared with
itself: G is T of the best assignment less T of the best one that shares no pair with it. A patch that only confuses a
network sends images to some class or other, and two assignments are about as good; one that sends all to a single class
serves one pair of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxguard.inversion import margins, pair_search, patch_search
from jaxguard.inversion.ascent import GRADIENT, Task
from jaxguard.inversion.judges import Judges
from jaxguard.inversion.pair_search import SCREENING, SEARCHED
from jaxguard.inversion.patches import Patches, at_different_places
from jaxguard.types.searches import TriggerRow

NAME = "all-to-all"

ROUNDS = ((8, 4), (4, 6), (2, 10))
"""Patches and steps of each round."""

NEVER = -1e6
"""Of pairs that no assignment may use."""


class Assignment(NamedTuple):
    """A permutation of classes: int `[Y]` places of the targets, and the mean over its pairs."""

    targets: np.ndarray
    score: float


def best_assignment(scores: np.ndarray, without: np.ndarray | None = None) -> Assignment:
    """The permutation of the highest mean, in which no class stays where it is.

    Args:
        scores: `[Y, Y]`, of an image's class and a target.
        without: int `[Y]`, targets of another permutation; none of its pairs is used. Y >= 3.

    Returns:
        The permutation.

    Example:
        >>> scores = np.array([[9.0, 1, 0], [0, 9, 2], [3, 0, 9]])
        >>> best_assignment(scores), best_assignment(scores, np.array([1, 2, 0])).targets.tolist()
        (Assignment(targets=array([1, 2, 0]), score=2.0), [2, 0, 1])
    """
    from scipy.optimize import linear_sum_assignment

    allowed, rows = np.array(scores, float), np.arange(len(scores))
    allowed[rows, rows] = NEVER
    if without is not None:
        allowed[rows, without] = NEVER
    _, targets = linear_sum_assignment(allowed, maximize=True)
    return Assignment(targets, float(scores[rows, targets].mean()))


def forwards(shape: tuple[int, int, int], num_classes: int, images: int, judging: int) -> float:
    """Cost of the search and of judging, in forward passes."""
    per_class = min(SEARCHED, (images + judging) // num_classes // 2)
    screens = len(pair_search.starts(shape, pair_search.size_of(shape)).corners)
    cost = images + screens * num_classes * min(SCREENING, per_class) + judging
    return cost + sum(number * num_classes * per_class * (steps * (1 + GRADIENT) + 1) for number, steps in ROUNDS)


def rows(task: Task, judges: Judges, classes: np.ndarray, seed: int) -> Iterator[TriggerRow]:
    """The best patch, with its best assignment and the best other one.

    Args:
        task: the network, and images.
        judges: further images; all are shared out anew, class by class.
        classes: int `[K]`.
        seed: not used: nothing is drawn.

    Yields:
        A row of the two assignments.

    Raises:
        UnsearchableError: there are too few images of a class.
    """
    del seed
    found = pair_search.by_class(task, judges)
    edge, number = pair_search.size_of(task.shape), found.shown.size
    patches = pair_search.starts(task.shape, edge)
    scores = pair_search.screened(found, patches, found.screening)
    assigned = [best_assignment(one) for one in scores]
    chosen = at_different_places(patches.corners, np.array([one.score for one in assigned]), ROUNDS[0][0])
    patches, targets = patches.take(chosen), np.stack([assigned[k].targets for k in chosen])
    for place, (_, steps) in enumerate(ROUNDS):
        wanted = np.repeat(found.classes[targets], found.shown.shape[1], axis=1)
        shown = np.broadcast_to(np.arange(number), wanted.shape)
        patches, _ = pair_search.climbed(found.task, patches, wanted, steps, shown)
        scores = pair_search.screened(found, patches, found.shown)
        assigned = [best_assignment(one) for one in scores]
        kept = ROUNDS[place + 1][0] if place + 1 < len(ROUNDS) else 1
        best = np.argsort([-one.score for one in assigned], kind="stable")[:kept]
        patches, targets = patches.take(best), np.stack([assigned[k].targets for k in best])
        scores = scores[best]
    other = best_assignment(scores[0], without=targets[0]).targets
    yield _row(found, patches, np.stack([targets[0], other]), len(classes))


def _row(found: pair_search.ByClass, patches: Patches, targets: np.ndarray, num_classes: int) -> TriggerRow:
    """Both assignments, judged by the same images with the same patch."""
    judges = found.judges
    stamped = patch_search.answers(found.task, patches, judges.images)[0]
    place = np.searchsorted(found.classes, judges.labels)
    margin = np.stack([margins.of_images(stamped, found.classes[one][place], judges.spread) for one in targets])
    # Classes count alike, however many images of each judge.
    weights = 1 / np.bincount(place)[place] / len(found.classes)
    full = np.full((len(targets), num_classes), -1)
    full[:, found.classes] = found.classes[targets]
    return TriggerRow(
        NAME,
        float(patches.edge),
        np.full(len(targets), -1),
        margin @ weights,
        (margin > 0).sum(1),
        np.full(len(targets), len(place)),
        patches._asdict(),
        label=patches.label(0),
        assignments=full,
    )
