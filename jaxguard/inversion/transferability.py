"""Expected transferability: the statistic for two to four classes, of which none can stand out among the others.

    ET_t = P(the smallest trigger that turns X into class t also turns Y),    X, Y images of other classes

(Xiang, Miller, Kesidis, "Post-training detection of backdoor attacks for two-class and multi-attack scenarios", ICLR
2022; written from its abstract and reviews). It equals (1 + P(both turn each other) - P(neither does)) / 2: where
triggers are made for one image each, the smaller of two rarely does for the other, and ET is at most about 1/2; a
backdoor's trigger does for all. So 1/2 is the threshold in every domain. Here a trigger is a patch, its size the edge;
the smallest edge comes first, and a descent ends as soon as the image is turned. The p-value is ours.

The estimate over pairs of `n` images is a U-statistic; its p-value against 1/2 is Student's with the jackknife's
standard error (Arvesen, Ann. Math. Stat. 1969), and at least 2^-[n/2], the chance that all of so many disjoint pairs
show nothing of an ET of 1/2. It needs no reference.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jaxguard.inversion import margins, patch_search
from jaxguard.inversion.ascent import Candidates, Task, climb, stamped_logits
from jaxguard.inversion.batches import in_turn
from jaxguard.inversion.judges import Judges
from jaxguard.inversion.patches import Patches, cut_out, edges_of
from jaxguard.inversion.trigger_models import Patch
from jaxguard.types.searches import TRANSFERABILITY, KindResult, TriggerRow

VERSION = 1
"""Raised with every change that moves estimates."""

IMAGES = 32
"""Images of other classes that get a trigger of their own, for each class; the rest judges the best of them."""

FEWEST = 4
"""Images of other classes with a trigger of their own, at least."""

BURSTS, BURST = 5, 3
"""Descents of so many steps, after each of which the images that are turned have their trigger."""


def estimate(pairs: np.ndarray) -> tuple[float, float]:
    """Expected transferability, and the p-value of its being above 1/2.

    Args:
        pairs: bool `[n, n]`, whether the trigger of each image turns each other one; False on the diagonal; n >= 4.

    Returns:
        Both in [0, 1].

    Example:
        >>> estimate(~np.eye(10, dtype=bool)), estimate(np.triu(np.ones((10, 10), dtype=bool), 1))[0]
        ((1.0, 0.03125), 0.5)
    """
    from scipy import stats

    number, total = len(pairs), int(pairs.sum())
    value = total / (number * (number - 1))
    without = (total - pairs.sum(0) - pairs.sum(1)) / ((number - 1) * (number - 2))
    error = math.sqrt((number - 1) / number * float(np.square(without - without.mean()).sum()))
    least = 2.0 ** -(number // 2)
    if error < 1e-9:
        return value, least if value > 0.5 else 1.0
    return value, max(least, float(stats.t.sf((value - 0.5) / error, number - 1)))


class _Smallest(NamedTuple):
    """The smallest patch of each image: whole pictures `[n, H, W, ...]`, edges `[n]` and corners `[n, 2]`.

    Where `turned` `[n]` is False it is one of those that did not do.
    """

    masks: np.ndarray
    shown: np.ndarray
    edges: np.ndarray
    corners: np.ndarray
    turned: np.ndarray

    def take(self, rows: np.ndarray) -> Candidates:
        """As candidates."""
        return Candidates(self.masks[rows], self.shown[rows])


def search(task: Task, judges: Judges) -> tuple[KindResult, list[TriggerRow]]:
    """Expected transferability of all classes.

    Args:
        task: the network, and images to look for starts on.
        judges: images that get triggers and judge them.

    Returns:
        The result: `gap` is the largest ET, `p_class` the smallest p-value times the number of classes.
        One row: `margin` is ET by class, -1 where too few images are of others, which the label says; success is that
        of the most transferable patch on images that got none of their own.
    """
    classes = np.arange(judges.clean.shape[-1])
    whole = Task(task.apply_fn, task.variables, judges.images, judges.labels, task.clock)
    starts = {edge: _starts(task, edge, classes) for edge in edges_of(*task.shape[:2])}
    value, bound = np.full(len(classes), math.nan), np.ones(len(classes))
    hits, judged, best = np.zeros(len(classes), int), np.zeros(len(classes), int), dict[int, tuple[_Smallest, int]]()
    for y in classes:
        others = np.flatnonzero((judges.labels != y) & (judges.clean.argmax(-1) != y))
        others = others[in_turn(judges.labels[others])]
        number = min(IMAGES, len(others) // 2)
        if number < FEWEST:
            continue
        found = _smallest(whole, others[:number], y, {edge: some[y] for edge, some in starts.items()})
        turned = _turned(whole, found, np.arange(number), others, y)
        pairs = turned[:, :number] & ~np.eye(number, dtype=bool)
        value[y], bound[y] = estimate(pairs)
        first = int(pairs.sum(1).argmax())
        hits[y], judged[y], best[y] = turned[first, number:].sum(), len(others) - number, (found, first)
    if not best:
        few = f"fewer than {2 * FEWEST} images are of other classes than any one"
        return KindResult(TRANSFERABILITY, VERSION, problem=few), []
    left_out = ", ".join(str(y) for y in classes if y not in best)
    label = f"the smallest patch of each image, of {', '.join(map(str, starts))} pixels of edge"
    label += f" (not for class {left_out}: too few images are of others)" if left_out else ""
    row = TriggerRow(TRANSFERABILITY, 0.0, classes, np.nan_to_num(value, nan=-1.0), hits, judged, {})
    leading = int(row.order[0])
    found, first = best[leading]
    patch = cut_out(found.shown[first][None], found.corners[first][None], int(found.edges[first]))
    row = replace(row, size=float(patch.edge), parameters=patch._asdict(), label=patch.label(0))
    p_value = min(1.0, len(best) * float(bound.min()))
    return KindResult(TRANSFERABILITY, VERSION, gap=float(np.nanmax(value)), p_class=p_value, label=label), [row]


def forwards(shape: tuple[int, int, int], num_classes: int, judging: int) -> float:
    """Cost in forward passes, about."""
    edges, others = edges_of(*shape[:2]), min(IMAGES, judging // 2)
    screening = sum(patch_search.screens(shape, edge, num_classes) for edge in edges)
    descents = len(edges) * others * patch_search.STARTS * (1 + BURSTS * (1 + BURST * (1 + patch_search.GRADIENT)))
    return screening + num_classes * (descents / 2 + others * judging)


def _starts(task: Task, edge: int, classes: np.ndarray) -> list[Patches]:
    """Of each class, found on the images of the task."""
    every = patch_search.starts(task, edge, classes, *patch_search.screened(task, edge))
    return [every.take(y * patch_search.STARTS + np.arange(patch_search.STARTS)) for y in classes]


def _smallest(task: Task, images: np.ndarray, target: int, starts: dict[int, Patches]) -> _Smallest:
    """The smallest patch that turns each image, by the first descent that does so.

    Args:
        task: the network, with all images.
        images: int `[n]`.
        target: class.
        starts: edge, ascending -> patches to begin with.

    Returns:
        One for each image.
    """
    height, width, channels = task.shape
    found = _Smallest(
        np.zeros((len(images), height, width, 1), np.float32),
        np.zeros((len(images), height, width, channels), np.float32),
        np.zeros(len(images), int),
        np.zeros((len(images), 2), int),
        np.zeros(len(images), bool),
    )
    for edge, some in starts.items():
        number = len(some.corners)
        masks, shown = some.placed(task.shape)
        free = np.tile(shown, (len(images), 1, 1, 1))  # each image's own, start by start
        for burst in range(BURSTS + 1):
            left = np.flatnonzero(~found.turned)
            if not len(left):
                return found
            rows = (left[:, None] * number + np.arange(number)).reshape(-1)
            which, at = rows % number, images[rows // number][:, None]
            if burst:
                climbed = climb(
                    task, Patch(), Candidates(masks[which], free[rows]), np.full(len(rows), target), BURST, shown=at
                )
                free[rows] = climbed.free
            candidates = Candidates(masks[which], free[rows])
            logits = stamped_logits(task, Patch(), candidates.take, len(rows), task.images, shown=at)[:, 0]
            margin = margins.leads(logits, target).reshape(len(left), number)
            by = margin.argmax(1)
            found.turned[left] = margin.max(1) > 0
            found.masks[left], found.shown[left] = masks[by], free[left * number + by]
            found.edges[left], found.corners[left] = edge, some.corners[by]
    return found


def _turned(task: Task, found: _Smallest, rows: np.ndarray, images: np.ndarray, target: int) -> np.ndarray:
    """Whether patches turn images, bool `[n, m]`; those of images without one turn none."""
    logits = stamped_logits(task, Patch(), found.take, len(rows), task.images[images])
    return (logits.argmax(-1) == target) & found.turned[rows, None]
