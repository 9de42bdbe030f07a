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

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import meshes, training
from jaxguard.errors import DataError, GraphError
from jaxguard.inversion import known_images, margins, procedural, transferability
from jaxguard.inversion.ascent import Clock, OutOfTimeError, Task, UnsearchableError
from jaxguard.inversion.batches import in_turn, logits_of
from jaxguard.inversion.judges import Judges
from jaxguard.inversion.kinds import DEFAULT, KINDS, Kind
from jaxguard.types import Network
from jaxguard.types.searches import TRANSFERABILITY, KindResult, TriggerRow, TriggerSearch

SEARCHED = 16
"""Images that triggers are made on; the others judge them."""

JUDGED = 128
"""Images that judge triggers, at most."""

FEWEST_CLASSES = 5
"""Classes from which on one can stand out; of fewer, see `jaxguard.inversion.transferability`."""

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
    kinds: Sequence[str] = DEFAULT,
    synthesised: bool = False,
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
        kinds: of triggers, of `jaxguard.inversion.kinds.KINDS`; each is searched as if it were alone. Of two to four
            classes only the transferability of patches is measured, see `jaxguard.inversion.transferability`.
        synthesised: without clean images, make some that match the network's BatchNorm statistics, see
            `jaxguard.inversion.synthesise`, instead of procedural ones.
        budget: seconds; sizes that are not searched to the end by then are left out. None for no limit.
        seed: of the procedural images.
        progress: told about the cost in forward passes, done and in all.

    Returns:
        The triggers, their margins and success; after Ctrl-C those of the sizes that were done. Where the network
        allows no statement, `problem` says why.

    Raises:
        DataError: images or labels do not fit, or there is no such kind.
        JaxguardError: no images could be synthesised, as its logits are not finite.

    Example:
        >>> def apply_fn(variables, images):   # the mean brightness of five columns, and a white corner that means 3
        ...     columns = images[:, :, :5, 0].mean(1) * 9
        ...     return columns.at[:, 3].add(40 * images[:, -2:, -2:, 0].min((1, 2)))
        >>> found = search(Network({}, apply_fn, (8, 8, 1)), kinds=["patch"])
        >>> found.target, found.success, found.leading.size
        (3, 1.0, 2.0)
    """
    if not kinds or not set(kinds) <= set(KINDS) or len(set(kinds)) < len(kinds):
        raise DataError(f"expected kinds among {', '.join(KINDS)}, got {list(kinds)} in search(); name each once")
    shape, clock = network.input_spec.shape, Clock(0, budget, progress)
    problem = _unsuitable(network)
    if problem:
        return TriggerSearch(problem=problem, shape=tuple(shape), seconds=clock.seconds)
    num_classes = network.num_classes
    network = replace(network, variables=meshes.everywhere(network.variables))
    variables = network.variables
    of = {"num_classes": num_classes, "shape": tuple(shape)}
    if images is None:
        # Of few classes each image gets a trigger of its own: they need many.
        few = min(64, procedural.MOST // num_classes)
        per_class = few if num_classes < FEWEST_CLASSES else int(np.clip(-(-100 // num_classes), 2, 20))
        known, wanted, reached, source = known_images.made(network, per_class, synthesised=synthesised, seed=seed)
    else:
        known, wanted, reached, source = known_images.given(network, images, labels)
    clean = logits_of(network.apply_fn, variables, known)
    problem = _degenerate(clean, reached, "synthesised" if synthesised else "procedural")
    if problem:
        return TriggerSearch(problem=problem, source=source, reached=reached, seconds=clock.seconds, **of)
    made_on, judging = _split(wanted)
    task = Task(network.apply_fn, variables, known[made_on], wanted[made_on], clock)
    judges = Judges(known[judging], clean[judging], wanted[judging], float(clean.std()))
    if num_classes < FEWEST_CLASSES:
        clock.total = transferability.forwards(task.shape, num_classes, len(judging))
        parts = [_measured(task, judges, partial(_transferable, task, judges))]
    else:
        costs = [KINDS[kind].cost_fn(task.shape, num_classes, len(made_on), len(judging)) for kind in kinds]
        clock.total = sum(costs)
        parts = [_measured(task, judges, partial(_of_kind, KINDS[kind], task, judges, seed)) for kind in kinds]
    results = tuple(result for result, _, _ in parts)
    return TriggerSearch(
        rows=tuple(row for _, rows, _ in parts for row in rows),
        results=results,
        problem=results[0].problem if all(one.problem for one in results) else "",
        source=f"{source}, {len(made_on)} to search on and {len(judging)} to judge by",
        reached=reached,
        left_out=tuple(note for _, _, notes in parts for note in notes),
        unsearched=tuple(kind for kind in KINDS if kind not in kinds),
        interrupted=f"after {clock.done:,.0f} of {clock.total:,.0f} forward passes" if clock.is_stopped else "",
        forwards=int(clock.done),
        seconds=clock.seconds,
        **of,
    )


_Part = tuple[KindResult, list[TriggerRow], list[str]]
"""Result, rows by size, and what was left out."""


def _measured(task: Task, judges: Judges, find: Callable[[], _Part]) -> _Part:
    """A part of the search with its pictures and what it cost."""
    start, cpu, done = task.clock.seconds, time.process_time(), task.clock.done
    result, rows, notes = find()
    result = _with_pictures(task, result, rows, judges)
    spent = {"seconds": task.clock.seconds - start, "cpu_seconds": time.process_time() - cpu}
    return replace(result, forwards=int(task.clock.done - done), **spent), rows, notes


def _transferable(task: Task, judges: Judges) -> _Part:
    """Of few classes."""
    notes = [
        f"Of {judges.clean.shape[-1]} classes none can stand out: each is judged by itself, by how often a patch made "
        "for one image turns another; no other triggers were searched."
    ]
    try:
        task.clock.spend(0)
        return *transferability.search(task, judges), notes
    except (OutOfTimeError, KeyboardInterrupt) as error:
        task.clock.is_stopped |= isinstance(error, KeyboardInterrupt)
    over = "it was interrupted" if task.clock.is_stopped else "the time it was given is over"
    return KindResult(TRANSFERABILITY, transferability.VERSION, problem=over), [], notes


def _of_kind(kind: Kind, task: Task, judges: Judges, seed: int) -> _Part:
    """Of many classes, by one kind of triggers, until the time is over or the user stops it."""
    rows: list[TriggerRow] = []
    notes: list[str] = []
    lacking = ""
    sizes, num_classes = kind.sizes_fn(task.shape), judges.clean.shape[-1]
    try:
        task.clock.spend(0)
        for row in kind.search_fn(task, judges, np.arange(num_classes), seed):
            rows.append(row)  # those before the time is over count
    except (OutOfTimeError, KeyboardInterrupt) as error:
        task.clock.is_stopped |= isinstance(error, KeyboardInterrupt)
        missing = [size for size in sizes if size not in [row.size for row in rows]]
        why = "The search was interrupted before" if task.clock.is_stopped else "No time was left for"
        notes.append(f"{why} {kind.named(missing)}.")
    except UnsearchableError as error:
        lacking = str(error)
    rows.sort(key=lambda row: row.size)
    if rows and not (searched := rows[0].searched(num_classes)).startswith("all"):
        notes.append(f"{searched} were searched for {kind.named(sizes)}: the most promising, and random ones.")
    gaps = [row.gap for row in rows if np.isfinite(row.gap)]
    result = KindResult(
        kind.name,
        kind.version,
        gap=max(gaps, default=float("nan")),
        p_class=margins.class_p_value(rows),
        problem=lacking or _problem(kind, rows),
        label=kind.named([row.size for row in rows]),
    )
    return result, rows, notes


def _with_pictures(task: Task, result: KindResult, rows: list[TriggerRow], judges: Judges) -> KindResult:
    """With a few images and what the network makes of them, for a reader to see."""
    row = TriggerSearch(rows=tuple(rows), results=(result,)).leading
    if row is None:
        return result
    first = row.order[0]
    target = int(row.classes[first])
    counted = (judges.labels != target) & (judges.clean.argmax(-1) != target)
    if row.sources is not None:
        counted &= judges.labels == row.sources[first]
    others = np.flatnonzero(counted)
    chosen = others[in_turn(judges.labels[others])][: PICTURES if max(task.shape[:2]) <= 64 else 2]
    if not len(chosen):
        return result
    images = judges.images[chosen]
    stamped = logits_of(task.apply_fn, task.variables, row.trigger(0, *task.shape[:2]).stamp(images))
    answers = np.stack([judges.clean[chosen].argmax(-1), stamped.argmax(-1)], axis=1)
    return replace(result, pictures=images, answers=answers)


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
    if num_classes < 2:
        return "it has one class: no trigger can change its answers"
    return ""


def _degenerate(clean: np.ndarray, reached: float, made: str) -> str:
    """Why a network's answers to clean images allow no statement."""
    if not np.isfinite(clean).all():
        return "its logits are not finite"
    if clean.std(0).max() <= 1e-6 * max(1.0, float(np.abs(clean).max())):
        return "it answers all images alike"
    if reached < LEAST_REACHED:
        return (
            f"only {100 * reached:.0f} % of the {made} images could be made to look like their classes, at least "
            f"{100 * LEAST_REACHED:.0f} % should: is the normalisation (--mean, --std) right?"
        )
    return ""


def _problem(kind: Kind, rows: list[TriggerRow]) -> str:
    """What the search itself shows to allow no statement."""
    if not rows:
        return "no size was searched to the end in the time it was given"
    if not kind.is_local:
        return ""
    # At the smallest size that turns images into any class: larger ones may do so for several in a sound network.
    smallest = next((row for row in rows if row.success.max() >= HYPERSENSITIVE), None)
    if smallest is not None and (second := np.sort(smallest.success)[-2]) >= HYPERSENSITIVE:
        return (
            f"{kind.named([smallest.size])}, the smallest that do so, turn images into several classes: "
            f"{100 * second:.0f} % into the second one"
        )
    return ""


def _split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images to search on and to judge by, both from all classes in turn."""
    turns = in_turn(labels)
    most = SEARCHED if len(labels) >= 5 * SEARCHED else max(1, len(labels) // 5)
    return np.sort(turns[:most]), np.sort(turns[most : most + JUDGED])
