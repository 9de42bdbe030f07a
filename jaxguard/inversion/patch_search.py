"""Universal small patches: a scan over positions and patterns, then equal descents for all classes.

1. Positions on a grid with few patterns and images, forward only: one pass scores every class.
2. All patterns of the dictionary where a class scored best; and for each class the position and signs that the gradient
   of the plain images promises most of.
3. Four starts a class, halved twice; each class gets the same steps. Shifts by less than the grid in between.

Patches of other sizes begin with those of the next scanned size, cropped or continued.
"""

from __future__ import annotations

import numpy as np

from jaxguard.inversion import start_patterns
from jaxguard.inversion.ascent import GRADIENT, Candidates, Task, climb, log_probability, stamped_logits
from jaxguard.inversion.batches import in_turn
from jaxguard.inversion.patches import Patches, at_different_places, cut_out, grid
from jaxguard.inversion.trigger_models import Patch

SCREENS = 1000
"""Positions times patterns that are screened, about; from 8 patterns up to all of them."""

SCREENING = 4
"""Images that positions and patterns are scored on."""

SHIFTING = 8
"""Images that shifts are scored on."""

POSITIONS = 2
"""Positions of each class where all patterns are tried."""

STARTS = 4
"""Starts of each class: three from the dictionary and one from the gradient."""

STEPS = (3, 5, 10)
"""Of each start of four, of two, and of the last."""

DERIVED_STEPS = 8
"""Of a patch that begins with one of another size."""

MOST_CLASSES, BEST_CLASSES, RANDOM_CLASSES = 30, 20, 10
"""Above so many classes only the best ones after the screening go on, and random others to compare them with."""


def scanned_edges(edges: tuple[int, ...]) -> tuple[int, ...]:
    """Every second one, for which positions are scanned; the others begin with their results."""
    return edges[1::2] or edges


def stride_of(edge: int) -> int:
    """Pixels between the positions of a scan."""
    return max(1, min(edge, edge - 1 if edge > 3 else edge))


def forwards(shape: tuple[int, int, int], edges: tuple[int, ...], classes: int, images: int) -> float:
    """What the search will cost, in forward passes."""
    cost, per_step = 0.0, images * (1 + GRADIENT)
    for edge in edges:
        if edge in scanned_edges(edges):
            cost += screens(shape, edge, classes)
            cost += classes * per_step * (1 + STARTS * STEPS[0] + 2 * STEPS[1] + STEPS[2])
            cost += classes * 2 * 9 * SHIFTING * len(distances(stride_of(edge)))
        else:
            cost += classes * (8 * images + per_step * DERIVED_STEPS)
    return cost


def screens(shape: tuple[int, int, int], edge: int, classes: int) -> float:
    """What the starts of one edge will cost, in forward passes."""
    places = len(grid(*shape[:2], edge, stride_of(edge)))
    return places * min(_screening_patterns(places), 40) * SCREENING + classes * POSITIONS * 40 * SCREENING


def _screening_patterns(positions: int) -> int:
    """Patterns that positions are screened by: more where there are few positions."""
    return max(start_patterns.SCREENED, SCREENS // positions)


def screened(task: Task, edge: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all positions for all classes, by few patterns.

    Args:
        task: the network and its images.
        edge: of the patches.

    Returns:
        Corners int `[P, 2]`, and scores `[P, K]`: the best pattern's mean log probability.
    """
    height, width, channels = task.shape
    corners = grid(height, width, edge, stride_of(edge))
    few = start_patterns.patterns(edge, channels)[: _screening_patterns(len(corners))]
    at = np.repeat(np.arange(len(corners)), len(few))
    found = _scores(task, Patches(corners[at], np.tile(few, (len(corners), 1, 1, 1))), slice(SCREENING))
    return corners, found.reshape(len(corners), len(few), -1).max(1)


def leading_classes(scores: np.ndarray, seed: int) -> np.ndarray:
    """The classes that are searched: all, or of many those that screening favours and random ones.

    Args:
        scores: `[P, K]` of `screened`.
        seed: draws the random ones.

    Returns:
        int `[S]`, ascending.
    """
    best = np.argsort(-scores.max(0), kind="stable")
    if len(best) <= MOST_CLASSES:
        return np.arange(len(best))
    others = np.random.default_rng(seed).permutation(best[BEST_CLASSES:])[:RANDOM_CLASSES]
    return np.sort(np.concatenate([best[:BEST_CLASSES], others]))


def search(task: Task, edge: int, classes: np.ndarray, corners: np.ndarray, scores: np.ndarray) -> Patches:
    """The best patch of each class, from the dictionary and from the gradient.

    Args:
        task: the network and its images.
        edge: of the patches.
        classes: int `[S]`.
        corners: int `[P, 2]` of `screened`.
        scores: `[P, K]` of `screened`.

    Returns:
        One patch per class.
    """
    number, stride = len(classes), stride_of(edge)
    patches = starts(task, edge, classes, corners, scores)
    patches, found = _climbed(task, patches, np.repeat(classes, STARTS), STEPS[0])
    patches = kept(patches, found, number, 2)
    for distance in distances(stride):
        patches = _shifted(task, patches, np.repeat(classes, 2), distance)
    patches, found = _climbed(task, patches, np.repeat(classes, 2), STEPS[1])
    patches, _ = _climbed(task, kept(patches, found, number, 1), classes, STEPS[2])
    return patches


def starts(task: Task, edge: int, classes: np.ndarray, corners: np.ndarray, scores: np.ndarray) -> Patches:
    """Patches `[S STARTS]` that a search begins with, class by class; arguments as of `search`."""
    number = len(classes)
    every = start_patterns.patterns(edge, task.shape[2])
    favoured = [_apart(corners, scores[:, y], POSITIONS, stride_of(edge)) for y in classes]
    union = np.unique(np.concatenate(favoured))
    pairs = Patches(corners[np.repeat(union, len(every))], np.tile(every, (len(union), 1, 1, 1)))
    of_pairs = _scores(task, pairs, slice(SCREENING, 2 * SCREENING))
    best = [at_different_places(pairs.corners, of_pairs[:, y], STARTS - 1) for y in classes]
    return pairs.take(np.concatenate(best)).beside(promised(task, edge, classes), number)


def derived(task: Task, edge: int, classes: np.ndarray, known: list[Patches]) -> Patches:
    """The best patch of each class that begins with patches of other edges.

    Args:
        task: the network and its images.
        edge: of the patches.
        classes: int `[S]`.
        known: of other edges, in the same order of classes.

    Returns:
        One patch per class.
    """
    choices = [some.resized(edge, way, task.shape) for some in known for way in ((0, 0), (0, 1), (1, 0), (1, 1))]
    joined = Patches(*(np.stack(part, axis=1).reshape(-1, *part[0].shape[1:]) for part in zip(*choices, strict=True)))
    wanted = np.repeat(classes, len(choices))
    found = _scores(task, joined, slice(None))[np.arange(len(wanted)), wanted]
    patches, _ = _climbed(task, kept(joined, found, len(classes), 1), classes, DERIVED_STEPS)
    return patches


def _scores(task: Task, patches: Patches, shown: slice) -> np.ndarray:
    """Mean log probabilities `[N, K]` on some of the images."""
    images, labels = task.images[shown], task.labels[shown]
    if not len(images):
        images, labels = task.images, task.labels
    elif len(np.unique(labels)) == 1:  # of few classes; the one they are of needs images of others
        turns = in_turn(task.labels)[shown]
        images, labels = task.images[turns], task.labels[turns]
    return log_probability(answers(task, patches, images), labels)


def answers(task: Task, patches: Patches, images: np.ndarray) -> np.ndarray:
    """Logits `[N, B, K]` of images with the patches.

    Args:
        task: the network.
        patches: `N` of them.
        images: `[B, H, W, C]`.

    Returns:
        The logits.
    """

    def make(rows: np.ndarray) -> Candidates:
        return candidates(task, patches.take(rows))

    return stamped_logits(task, Patch(), make, len(patches.corners), images)


def candidates(task: Task, patches: Patches) -> Candidates:
    """Patches as candidates of a climb."""
    return Candidates(*patches.placed(task.shape))


def _climbed(task: Task, patches: Patches, targets: np.ndarray, steps: int) -> tuple[Patches, np.ndarray]:
    found = climb(task, Patch(), candidates(task, patches), targets, steps)
    return patches.with_pixels_of(found.free), found.score


def kept(patches: Patches, found: np.ndarray, number: int, few: int) -> Patches:
    """The best few of each of `number` classes, which have equally many, one after the other."""
    order = np.argsort(-found.reshape(number, -1), axis=1, kind="stable")[:, :few]
    return patches.take((order + np.arange(number)[:, None] * (len(found) // number)).reshape(-1))


def _apart(corners: np.ndarray, scores: np.ndarray, number: int, stride: int) -> np.ndarray:
    """The best positions that are farther apart than neighbours on the grid."""
    chosen: list[int] = []
    for k in np.argsort(-scores, kind="stable"):
        if all(np.abs(corners[k] - corners[one]).max() > stride for one in chosen):
            chosen.append(int(k))
        if len(chosen) == number:
            break
    return np.array(chosen)


def promised(task: Task, edge: int, classes: np.ndarray) -> Patches:
    """Where the gradient of the plain images promises most, and the pixels that it asks for."""
    height, width, channels = task.shape
    # A nearly transparent trigger changes nothing, so that the first step's direction is the plain images' gradient.
    masks = np.full((len(classes), height, width, 1), 1e-3, np.float32)
    grey = np.full((len(classes), height, width, channels), 0.5, np.float32)
    gradient = climb(task, Patch(), Candidates(masks, grey), classes, 1).momentum
    mean = task.images.mean(0)
    promise = np.where(gradient > 0, gradient * (1 - mean), -gradient * mean).sum(-1)
    sums = np.pad(promise.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    inside = sums[:, edge:, edge:] - sums[:, :-edge, edge:] - sums[:, edge:, :-edge] + sums[:, :-edge, :-edge]
    best = inside.reshape(len(classes), -1).argmax(1)
    corners = np.stack(np.divmod(best, inside.shape[2]), axis=1)
    return cut_out((gradient > 0).astype(np.float32), corners, edge)


def distances(stride: int) -> list[int]:
    """Halving distances that reach all places between those of the grid."""
    found, left = [], stride // 2
    while left >= 1:
        found.append(left)
        left //= 2
    return found


def neighbours(patches: Patches, distance: int, shape: tuple[int, int, int]) -> Patches:
    """Each patch and its eight neighbours at a distance, one after the other."""
    moves = distance * np.array([(0, 0), *((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b)])
    number = len(patches.corners)
    repeated = patches.take(np.repeat(np.arange(number), len(moves)))
    return repeated.shifted(np.tile(moves, (number, 1)), shape)


def _shifted(task: Task, patches: Patches, targets: np.ndarray, distance: int) -> Patches:
    """The best of each patch and its eight neighbours."""
    every = neighbours(patches, distance, task.shape)
    # At the border several neighbours are one and the same.
    patch = np.repeat(np.arange(len(targets)), len(every.corners) // len(targets))
    _, first, same = np.unique(np.column_stack([patch, every.corners]), axis=0, return_index=True, return_inverse=True)
    found = _scores(task, every.take(first), slice(SHIFTING))[same.reshape(-1), targets[patch]]
    return kept(every, found, len(targets), 1)
