"""The search for universal triggers: one file, no reference network, no images needed.

    found = inversion.search(network)                  # on procedural images
    found = inversion.search(network, images=images)   # on a few clean ones
    found.gap, found.target, found.success, found.interval

For every class it looks for one small trigger that turns images of all other classes into it. A backdoored class is one
for which such a trigger is far more effective than for the others. Triggers are found on some images and judged on
others. After maximum achievable misclassification fractions (Xiang, Miller, Kesidis, arXiv 1911.07970), by margins in
units of the network's own logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import training
from jaxguard.errors import DataError, GraphError
from jaxguard.inversion import margins, patch_search
from jaxguard.inversion.ascent import Clock, OutOfTimeError, Task
from jaxguard.inversion.batches import logits_of, require_labels, require_unit_range
from jaxguard.inversion.patches import Patches, edges_of
from jaxguard.inversion.procedural import pictures
from jaxguard.types import Network
from jaxguard.types.searches import TriggerRow, TriggerSearch

VERSION = 1
"""Raised with every change that moves gaps: those of different versions are not compared."""

KINDS = ("patch",)
"""Families of triggers that are searched."""

SEARCHED = 16
"""Images that triggers are made on; the others judge them."""

JUDGED = 128
"""Images that judge triggers, at most."""

FEWEST = 20
"""Clean images that a search can be made on."""

FEWEST_CLASSES = 5
"""Classes from which on one can stand out."""

LEAST_REACHED = 0.8
"""Share of procedural images that a network must be sure of."""

PICTURES = 6
"""Judging images that are kept for pictures, two of large ones."""

HYPERSENSITIVE = 0.75
"""Success from which on a trigger turns images into a class."""


def search(
    network: Network,
    *,
    images: np.ndarray | jax.Array | None = None,
    labels: np.ndarray | jax.Array | None = None,
    kinds: Sequence[str] = KINDS,
    budget: float | None = None,
    seed: int = 0,
    progress: training.Progress | None = None,
) -> TriggerSearch:
    """Search universal triggers for all classes of a network.

    Args:
        network: `inputs [B, H, W, C]` in [0, 1] -> logits `[B, K]`, normalisation included.
        images: clean ones, `[N, H, W, C]` in [0, 1], 20 or more of several classes, best 100; None for procedural
            ones.
        labels: their classes, int `[N]`; None for the network's own answers.
        kinds: families of triggers, of `KINDS`.
        budget: seconds; sizes that are not searched to the end by then are left out. None for no limit.
        seed: of the procedural images.
        progress: told about the cost in forward passes, done and in all.

    Returns:
        The triggers, their margins and success. Where the network allows no statement, `problem` says why.

    Raises:
        DataError: images or labels do not fit, or there is no such kind.

    Example:
        >>> def apply_fn(variables, images):   # the mean brightness of five columns, and a white corner that means 3
        ...     columns = images[:, :, :5, 0].mean(1) * 9
        ...     return columns.at[:, 3].add(40 * images[:, -2:, -2:, 0].min((1, 2)))
        >>> found = search(Network({}, apply_fn, (8, 8, 1)))
        >>> found.target, found.success, found.leading.size
        (3, 1.0, 2.0)
    """
    for kind in kinds:
        if kind not in KINDS:
            raise DataError(f"expected kinds among {', '.join(KINDS)}, got {kind!r} in search(); choose one of them")
    shape, clock = network.input_spec.shape, Clock(0, budget, progress)
    problem = _unsuitable(network)
    if problem:
        return TriggerSearch(problem=problem, shape=tuple(shape), seconds=clock.seconds)
    num_classes = network.num_classes
    variables = jax.tree.map(jnp.asarray, network.variables)
    of = {"num_classes": num_classes, "shape": tuple(shape)}
    if images is None:
        per_class = int(np.clip(-(-100 // num_classes), 2, 20))
        made = pictures(network.apply_fn, variables, shape, num_classes, per_class=per_class, seed=seed)
        known, wanted, reached = made.images, made.labels, made.reached
        source = f"{len(known)} procedural images"
    else:
        known, wanted, reached = *_checked(images, labels, shape, num_classes), float("nan")
        source = f"{len(known)} clean images"
    clean = logits_of(network.apply_fn, variables, known)
    if wanted is None:
        wanted = clean.argmax(-1)
    problem = _degenerate(clean, reached)
    if problem:
        return TriggerSearch(problem=problem, source=source, reached=reached, seconds=clock.seconds, **of)
    made_on, judging = _split(wanted)
    task = Task(network.apply_fn, variables, known[made_on], wanted[made_on], clock)
    edges = edges_of(*shape[:2])
    clock.total = patch_search.forwards(task.shape, edges, min(num_classes, patch_search.MOST_CLASSES), len(made_on))
    clock.total += len(edges) * len(judging) * min(num_classes, patch_search.MOST_CLASSES)
    judges = _Judges(known[judging], clean[judging], wanted[judging], float(clean.std()))
    rows, left_out = _patch_rows(task, edges, judges, seed)
    gaps = [row.gap for row in rows if np.isfinite(row.gap)]
    found = TriggerSearch(
        rows=tuple(sorted(rows, key=lambda row: row.size)),
        gap=max(gaps, default=float("nan")),
        p_class=margins.class_p_value(rows),
        source=f"{source}, {len(made_on)} to search on and {len(judging)} to judge by",
        reached=reached,
        left_out=left_out,
        forwards=int(clock.done),
        seconds=clock.seconds,
        **of,
    )
    return _with_problem(_with_pictures(task, found, judges))


def _with_pictures(task: Task, found: TriggerSearch, judges: _Judges) -> TriggerSearch:
    """With a few images and what the network makes of them, for a reader to see."""
    row = found.leading
    if row is None:
        return found
    first, target = row.order[:1], int(row.classes[row.order[0]])
    others = np.flatnonzero((judges.labels != target) & (judges.clean.argmax(-1) != target))
    chosen = others[in_turn(judges.labels[others])][: PICTURES if max(found.shape[:2]) <= 64 else 2]
    if not len(chosen):
        return found
    images, task.clock.budget = judges.images[chosen], None  # a few more passes, even if the time is over
    stamped = patch_search.answers(task, Patches(row.corners[first], row.pixels[first]), images)[0]
    answers = np.stack([judges.clean[chosen].argmax(-1), stamped.argmax(-1)], axis=1)
    return replace(found, pictures=images, answers=answers)


class _Judges(NamedTuple):
    """Images that judge triggers: `[B, H, W, C]`, logits `[B, K]`, labels `[B]`; and the spread of all logits."""

    images: np.ndarray
    clean: np.ndarray
    labels: np.ndarray
    spread: float


def _patch_rows(
    task: Task, edges: tuple[int, ...], judges: _Judges, seed: int
) -> tuple[list[TriggerRow], tuple[str, ...]]:
    """All sizes, the scanned ones first; and what there was no time for."""
    found: dict[int, Patches] = {}
    rows: dict[int, TriggerRow] = {}
    scanned, classes = patch_search.scanned_edges(edges), np.zeros(0, int)
    notes: list[str] = []
    try:
        for edge in (*scanned, *(edge for edge in edges if edge not in scanned)):
            if edge in scanned:
                corners, scores = patch_search.screened(task, edge)
                classes = classes if len(classes) else patch_search.leading_classes(scores, seed)
                found[edge] = patch_search.search(task, edge, classes, corners, scores)
            else:
                near = sorted(scanned, key=lambda other, edge=edge: abs(other - edge))
                close = [found[one] for one in near if abs(one - edge) == abs(near[0] - edge)]
                found[edge] = patch_search.derived(task, edge, classes, close)
            stamped = patch_search.answers(task, found[edge], judges.images)
            judged = margins.judged(stamped, judges.clean, classes, judges.labels, judges.spread)
            rows[edge] = TriggerRow("patch", float(edge), classes, *judged, *found[edge])
    except OutOfTimeError:
        missing = ", ".join(str(edge) for edge in edges if edge not in rows)
        notes.append(f"No time was left for patches of {missing} pixels of edge.")
    if 0 < len(classes) < judges.clean.shape[-1]:
        notes.append(
            f"{len(classes)} of {judges.clean.shape[-1]} classes were searched: the most promising, and random ones."
        )
    return list(rows.values()), tuple(notes)


def _unsuitable(network: Network) -> str:
    """Why no trigger of images can be searched in a network, whatever its weights are."""
    shape = network.input_spec.shape
    if len(shape) != 3 or min(shape) < 1 or shape[2] > 4 or not jnp.issubdtype(network.input_spec.dtype, np.floating):
        return f"its inputs {network.input_spec.dtype}{list(shape)} are no images [H, W, C]"
    if min(shape[:2]) < 3:
        return f"images of {shape[0]}x{shape[1]} pixels have no room for a patch"
    try:
        num_classes = network.num_classes
    except GraphError as error:
        return f"its outputs are no classes ({error})"
    if num_classes < FEWEST_CLASSES:
        return f"of {num_classes} class{'es' * (num_classes > 1)}, fewer than {FEWEST_CLASSES}, none can stand out"
    return ""


def _degenerate(clean: np.ndarray, reached: float) -> str:
    """Why a network's answers to clean images allow no statement."""
    if not np.isfinite(clean).all():
        return "its logits are not finite"
    if clean.std(0).max() <= 1e-6 * max(1.0, float(np.abs(clean).max())):
        return "it answers all images alike"
    if reached < LEAST_REACHED:
        return (
            f"only {100 * reached:.0f} % of the procedural images could be made to look like their classes, at least "
            f"{100 * LEAST_REACHED:.0f} % should: is the normalisation (--mean, --std) right?"
        )
    return ""


def _with_problem(found: TriggerSearch) -> TriggerSearch:
    """What the search itself shows to allow no statement."""
    if not found.rows:
        return replace(found, problem="no size was searched to the end in the time it was given")
    # At the smallest size that turns images into any class: larger ones may do so for several in a sound network.
    smallest = next((row for row in found.rows if row.success.max() >= HYPERSENSITIVE), None)
    if smallest is not None and (second := np.sort(smallest.success)[-2]) >= HYPERSENSITIVE:
        return replace(
            found,
            problem=f"patches of {smallest.size:g} pixels of edge, the smallest that do so, turn images into several "
            f"classes: {100 * second:.0f} % into the second one",
        )
    return found


def in_turn(labels: np.ndarray) -> np.ndarray:
    """Numbers of images in an order in which all classes take turns.

    Example:
        >>> in_turn(np.array([0, 0, 1, 1, 1])).tolist()
        [0, 2, 1, 3, 4]
    """
    place = np.empty(len(labels), int)  # of an image among those of its class
    for y in np.unique(labels):
        own = np.flatnonzero(labels == y)
        place[own] = np.arange(len(own))
    return np.lexsort((labels, place))


def _split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images to search on and to judge by, both from all classes in turn."""
    turns = in_turn(labels)
    most = SEARCHED if len(labels) >= 5 * SEARCHED else max(1, len(labels) // 5)
    return np.sort(turns[:most]), np.sort(turns[most : most + JUDGED])


def _checked(
    images: np.ndarray | jax.Array, labels: np.ndarray | jax.Array | None, shape: tuple[int, ...], num_classes: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Images and labels as the search needs them."""
    known = np.asarray(images, np.float32)
    if known.ndim != 4 or known.shape[1:] != tuple(shape) or len(known) < FEWEST:
        raise DataError(
            f"expected {FEWEST} or more images {tuple(shape)}, got {known.shape} in search(); resize or add some"
        )
    require_unit_range(known, "search")
    if labels is None:
        return known, None
    wanted = np.asarray(labels).astype(np.int64)
    require_labels(wanted, len(known), num_classes, "search")
    return known, wanted
