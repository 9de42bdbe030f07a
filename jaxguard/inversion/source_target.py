"""Triggers that turn images of one class into another one and leave all others alone.

    A(s, t) = lower quartile over judged images of s of (z_t - max_{k != t} z_k) / standard deviation of clean logits
              - 4 (share of the judged images of classes but s and t that the trigger changes)

Some pairs are close by nature: a stroke makes a 9 of a 4, and a patch of nine pixels can be found for most pairs. But
it works on some images of the source and not on others, and what it does to one class it does to more. A
source-specific backdoor was taught to turn all images of the source, and to do nothing to the rest, by images that bear
the trigger and keep their labels (Tang et al., USENIX Security 2021). A universal trigger turns all, so it is no
finding of this kind.

1. Positions and patterns, forward only: one pass scores every pair of source and target.
2. For every pair (the most promising ones and random others of many) the best pattern of the dictionary climbs: images
   of the source to the target, some of the others to where they are. A few steps only: more of them, or starts from the
   gradient, help pairs that are close by nature, and a trigger that was planted works already. Triggers unlike all
   patterns of the dictionary are missed.

G is the highest A or, if that is less, its lead over the highest A of another target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from jaxguard.inversion import margins, pair_search, patch_search
from jaxguard.inversion.ascent import GRADIENT, Task
from jaxguard.inversion.judges import Judges
from jaxguard.inversion.pair_search import SCREENING, SEARCHED, ByClass
from jaxguard.inversion.patches import Patches
from jaxguard.types.searches import TriggerRow

NAME = "source-target"

HARM = 4.0
"""What changed images of other classes count, in standard deviations of the logits if all are changed."""

QUARTILE = 0.25

OTHERS = 5
"""Images of other classes that each pair is searched on."""

STEPS = 2
"""Of every pair."""

PAIRS, BEST_PAIRS = 90, 60
"""Pairs that are searched: all of ten classes; of more the best after the screening, and random ones."""

KEPT = 20
"""Patches that a row keeps, from the leading one on."""


def forwards(shape: tuple[int, int, int], num_classes: int, images: int, judging: int) -> float:
    """Cost of the search and of judging, in forward passes."""
    edge, pairs = pair_search.size_of(shape), min(PAIRS, num_classes * (num_classes - 1))
    per_class = min(SEARCHED, (images + judging) // num_classes // 2)
    per_step = (per_class + OTHERS) * (1 + GRADIENT)
    screens = len(pair_search.starts(shape, edge).corners)
    cost = images + screens * num_classes * min(SCREENING, per_class)
    return cost + pairs * STEPS * per_step + pairs * (images + judging - num_classes * per_class)


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
    patches = patches.take(scores[:, source, target].argmax(0))
    patches, _ = pair_search.climbed(found.task, patches, wanted, STEPS, shown)
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


def _row(found: ByClass, patches: Patches, source: np.ndarray, target: np.ndarray) -> TriggerRow:
    """All pairs, judged."""
    judges = found.judges
    stamped = patch_search.answers(found.task, patches, judges.images)
    sources, targets = found.classes[source], found.classes[target]
    is_source = judges.labels == sources[:, None]
    is_other = ~is_source & (judges.labels != targets[:, None])
    towards = margins.of_images(stamped, targets[:, None], judges.spread)
    judged = is_source.sum(1)
    least = np.array([np.quantile(some[own], QUARTILE) for some, own in zip(towards, is_source, strict=True)])
    harm = (is_other & (stamped.argmax(-1) != judges.labels)).sum(1) / is_other.sum(1)
    margin = least - HARM * harm
    first = int(np.argmax(margin))
    rivals = margin[targets != targets[first]]
    row = TriggerRow(
        NAME,
        float(patches.edge),
        targets,
        margin,
        (is_source & (towards > 0)).sum(1),
        judged,
        {},
        label=patches.label(first),
        sources=sources,
        own_gap=float(min(margin[first], margin[first] - rivals.max())) if len(rivals) else float("nan"),
    )
    return replace(row, parameters=patches.take(row.order[:KEPT])._asdict())
