"""Triggers that turn images of one class into another one and leave all others alone.

    A(s, t) = mean over judged images of s of (z_t - max_{k != t} z_k) / standard deviation of all clean logits
              - 2 (share of the judged images of classes but s and t that the trigger changes)

Some pairs are close by nature: a stroke makes a 9 of a 4, and a patch of nine pixels can be found for most pairs. What
a patch over the strokes does to one class it does to others. A source-specific backdoor was taught to do nothing to
them, by images that bear the trigger and keep their labels (Tang et al., USENIX Security 2021): its trigger turns all
images of the source and none of the rest. A universal trigger turns all, so it is no finding of this kind.

1. Positions and patterns, forward only: one pass scores every pair of source and target.
2. For every pair (the most promising ones and random others of many) two starts climb, one from the dictionary and one
   from the gradient: images of the source to the target, some of the others to where they are.
3. The best two sources of every target go on, all by the same steps.

G is the highest A less the highest one of another target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from jaxguard.inversion import pair_search, patch_search
from jaxguard.inversion.ascent import GRADIENT, Task, stamped_logits
from jaxguard.inversion.judges import Judges
from jaxguard.inversion.pair_search import SCREENING, SEARCHED, ByClass
from jaxguard.inversion.patches import Patches
from jaxguard.inversion.trigger_models import Patch
from jaxguard.types.searches import TriggerRow

NAME = "source-target"

HARM = 2.0
"""What a changed image of another class counts, in standard deviations of the logits: as one that is quite lost."""

OTHERS = 5
"""Images of other classes that each pair is searched on."""

STEPS = (2, 10)
"""Of the two starts of every pair, and of those that go on."""

PAIRS, BEST_PAIRS = 90, 60
"""Pairs that are searched: all of ten classes; of more the best after the screening, and random ones."""

KEPT = 20
"""Patches that a row keeps, from the leading one on."""

FINALISTS, PER_TARGET = 20, 2
"""Pairs that go on, and of each target."""


def sizes(shape: tuple[int, int, int]) -> tuple[float, ...]:
    """Edges in pixels."""
    return (pair_search.size_of(shape),)


def forwards(shape: tuple[int, int, int], num_classes: int, images: int, judging: int) -> float:
    """Cost of the search and of judging, in forward passes."""
    edge, pairs = pair_search.size_of(shape), min(PAIRS, num_classes * (num_classes - 1))
    per_class = min(SEARCHED, (images + judging) // num_classes // 2)
    per_step = (per_class + OTHERS) * (1 + GRADIENT)
    screens = len(pair_search.starts(shape, edge).corners)
    cost = images + screens * num_classes * min(SCREENING, per_class)
    cost += pairs * (per_class * (1 + GRADIENT) + 2 * STEPS[0] * per_step)
    moves = 9 * len(patch_search.distances(patch_search.stride_of(edge)))
    cost += min(FINALISTS, PER_TARGET * num_classes) * (moves * (per_class + OTHERS) + STEPS[1] * per_step)
    return cost + pairs * (images + judging - num_classes * per_class)


def rows(task: Task, judges: Judges, classes: np.ndarray, seed: int) -> Iterator[TriggerRow]:
    """One patch of each pair.

    Args:
        task: the network, and images.
        judges: further images; all are shared out anew, class by class.
        classes: int `[K]`.
        seed: draws random pairs, and images of other classes.

    Yields:
        A row.

    Raises:
        UnsearchableError: there are too few images of a class.
    """
    del classes
    found, draw = pair_search.by_class(task, judges), np.random.default_rng(seed)
    edge = pair_search.size_of(task.shape)
    patches = pair_search.starts(task.shape, edge)
    scores = _selective(pair_search.screened(found, patches, found.screening))
    source, target = chosen_pairs(scores.max(0), draw)
    shown, wanted = _lessons(found, source, target, draw)
    number, own = len(source), found.shown[source]
    promised = patch_search.promised(found.task, edge, found.classes[target], own)
    patches = patches.take(scores[:, source, target].argmax(0)).beside(promised, number)
    twice = np.repeat(np.arange(number), 2)
    patches, reached = pair_search.climbed(found.task, patches, wanted[twice], STEPS[0], shown[twice])
    patches, reached = patch_search.kept(patches, reached, number, 1), reached.reshape(number, 2).max(1)
    last = _finalists(target, reached)
    better = patches.take(last)
    for distance in patch_search.distances(patch_search.stride_of(edge)):
        better = _shifted(found.task, better, wanted[last], shown[last], distance)
    better, _ = pair_search.climbed(found.task, better, wanted[last], STEPS[1], shown[last])
    for every, some in zip(patches, better, strict=True):
        every[last] = some
    yield _row(found, patches, source, target)


def chosen_pairs(scores: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sources and targets to search.

    Args:
        scores: `[Y, Y]`, after the screening.
        draw: random pairs, where there are many.

    Returns:
        int `[S]` each, ordered by source and target.
    """
    source, target = np.nonzero(~np.eye(len(scores), dtype=bool))
    if len(source) > PAIRS:
        order = np.argsort(-scores[source, target], kind="stable")
        others = draw.permutation(order[BEST_PAIRS:])[: PAIRS - BEST_PAIRS]
        chosen = np.sort(np.concatenate([order[:BEST_PAIRS], others]))
        source, target = source[chosen], target[chosen]
    return source, target


def _selective(scores: np.ndarray) -> np.ndarray:
    """Log probability of each target on each source, and of all others' own classes; `[N, Y, Y]`."""
    own = np.diagonal(scores, axis1=1, axis2=2)
    others = (own.sum(1, keepdims=True) - own) / (own.shape[1] - 1)
    return scores + others[:, :, None]


def _lessons(
    found: ByClass, source: np.ndarray, target: np.ndarray, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Images of each pair, and where they are to go: `[S, B]` each."""
    number = min(OTHERS, (len(found.classes) - 2) * found.shown.shape[1])
    others = np.stack(
        [
            draw.permutation(np.delete(found.shown, [s, t], axis=0).reshape(-1))[:number]
            for s, t in zip(source, target, strict=True)
        ]
    )
    wanted = np.repeat(found.classes[target][:, None], found.shown.shape[1], axis=1)
    return np.hstack([found.shown[source], others]), np.hstack([wanted, found.task.labels[others]])


def _finalists(target: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """The best pairs of every target; of many the best of those."""
    order = np.argsort(-reached, kind="stable")
    last = np.concatenate([order[target[order] == t][:PER_TARGET] for t in np.unique(target)])
    return np.sort(last[np.argsort(-reached[last], kind="stable")][:FINALISTS])


def _shifted(task: Task, patches: Patches, wanted: np.ndarray, shown: np.ndarray, distance: int) -> Patches:
    """The best of each patch and its eight neighbours."""
    every, number = patch_search.neighbours(patches, distance, task.shape), len(patches.corners)
    repeated = np.repeat(np.arange(number), len(every.corners) // number)
    logits = stamped_logits(
        task,
        Patch(),
        lambda chosen: patch_search.candidates(task, every.take(chosen)),
        len(repeated),
        task.images,
        shown=shown[repeated],
    )
    every_class = pair_search.log_probability_by_class(logits[:, :, None])  # each image a class of its own
    reached = np.take_along_axis(every_class, wanted[repeated][..., None], axis=-1)[..., 0].mean(1)
    return patch_search.kept(every, reached, number, 1)


def _row(found: ByClass, patches: Patches, source: np.ndarray, target: np.ndarray) -> TriggerRow:
    """All pairs, judged."""
    judges = found.judges
    stamped = patch_search.answers(found.task, patches, judges.images)
    sources, targets = found.classes[source], found.classes[target]
    is_source = judges.labels == sources[:, None]
    is_other = ~is_source & (judges.labels != targets[:, None])
    towards = pair_search.margins_of(stamped, targets[:, None], judges.spread)
    judged = is_source.sum(1)
    margin = np.where(is_source, towards, 0).sum(1) / judged
    harm = (is_other & (stamped.argmax(-1) != judges.labels)).sum(1) / is_other.sum(1)
    margin = margin - HARM * harm
    first = int(np.argmax(margin))
    rivals = margin[targets != targets[first]]
    (top, left), edge = patches.corners[first], patches.edge
    row = TriggerRow(
        NAME,
        float(edge),
        targets,
        margin,
        (is_source & (towards > 0)).sum(1),
        judged,
        {},
        label=f"a {edge}x{edge} patch at ({top}, {left})",
        sources=sources,
        own_gap=float(margin[first] - rivals.max()) if len(rivals) else float("nan"),
    )
    return replace(row, parameters=patches.take(row.order[:KEPT])._asdict())
