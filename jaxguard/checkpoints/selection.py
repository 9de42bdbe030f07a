"""The model among what a training script saved: which entries are its leaves, and why the others are left out.

One rule for all formats. At each level, from the outside in, training state does not count (`training_state`), and
then the first of `MODEL_KEYS`, in that order, that holds arrays is entered; else the only group, where that has dotted
names; else this level is the model's, with everything in it. `params`, `weights` and `module`, which are names of a
model's parts as well, are entered only where no other group is beside them and they look like PyTorch's. Averages of
the weights (EMA, SWA) are groups under a name of theirs that mirror the raw weights; they replace those where they are
asked for.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxguard.checkpoints import left_out as in_words
from jaxguard.checkpoints import refusals, training_state
from jaxguard.checkpoints.checkpoint import Checkpoint, LeafSpec, ReadFn
from jaxguard.checkpoints.training_state import Path, Stored
from jaxguard.errors import CheckpointError

_MAX_ENCLOSING = 8
_OPTIMIZER = "opt_state"
_MAX_MOMENTS = 64
_MAX_COUNTERS = 8
_BESIDE = "beside the model"
_MIRRORED = 0.5  # least share of an average's arrays that have the name of a raw weight


class Selection(NamedTuple):
    """What was chosen.

    Attributes:
        names: leaf name by path, in file order.
        left_out: `(common prefix, paths, reason)` of everything else.
        root: keys down to the model; none where the file holds nothing else.
        averages: names of the averages of its weights.
        weights: the name of the average that was chosen, or `raw`.
        kept: of the raw weights where the average has none, such as running statistics.
    """

    names: dict[Path, str]
    left_out: list[tuple[Path, list[Path], str]]
    root: Path
    averages: tuple[str, ...]
    weights: str
    kept: int = 0


def applied(opened: Checkpoint, weights: str | None) -> Checkpoint:
    """The checkpoint with the leaves of the model alone; the others are named in `left_out`.

    Args:
        opened: with everything that its file holds.
        weights: `raw`, `ema`, or the name of the group to take; raw by default.

    Raises:
        CheckpointError: nothing but training state, nothing of the name `weights`, or two leaves of one name.
        UnsupportedError: no leaf of a kind that can be read.
    """
    given, separator = opened.path, opened.separator
    stored: dict[Path, LeafSpec | str] = {}
    origins: dict[Path, str] = {}
    for entries in (opened.leaves, opened.left_out):
        for name, entry in entries.items():
            path = opened.paths.get(name) or tuple(name.split(separator))
            stored[path], origins[path] = entry, name
    found = select(stored, separator=separator, weights=weights, given=given)
    names: dict[str, str] = {}
    left_out = dict(opened.beside) | dict(in_words.listed(found.left_out, found.root, stored, separator))
    for path, name in found.names.items():
        problem = stored[path]
        if isinstance(problem, str):
            left_out[name] = problem
        elif name in names:
            expected = f"one leaf of the name {in_words.printable(name)!r}"
            remedy = "save the model's weights alone"
            raise refusals.unsupported(given, expected, "two whose keys join to it", remedy)
        else:
            names[name] = origins[path]
    aliases = training_state.aliases(
        {name: opened.places[origin] for name, origin in names.items() if origin in opened.places}
    )
    for others in aliases.values():
        for other in others:
            del names[other]
    kept = {*names, *left_out, *(other for others in aliases.values() for other in others)}
    in_words.require_whole(given, stored, found.names, found.left_out, kept)
    if not names:
        remedy = "convert them (dequantize, to_dense, float) and save the weights again"
        raise refusals.unsupported(
            given, "dense arrays of numbers", f"other kinds alone ({in_words.named(left_out)})", remedy
        )
    metadata = {**_counters(opened, found, origins), **opened.metadata}
    if found.root:
        metadata["state_dict"] = ".".join(map(in_words.printable, found.root))
    about = in_words.of_weights(found.averages, found.weights, found.root, found.kept)
    read_fn: ReadFn = opened.read_fn
    if all(name == origin for name, origin in names.items()) and len(names) == len(opened.leaves):
        leaves, first_bytes = opened.leaves, opened.first_bytes
    else:
        leaves = {name: opened.leaves[origin] for name, origin in names.items()}
        first_bytes = {}  # the leaves do not fill the file

        def by_name(wanted: Sequence[str], /) -> dict[str, np.ndarray]:
            read = opened.read_fn([names[name] for name in wanted])
            return {name: read[names[name]] for name in wanted}

        read_fn = by_name

    return dataclasses.replace(
        opened,
        leaves=leaves,
        read_fn=read_fn,
        first_bytes=first_bytes,
        metadata=metadata,
        left_out=left_out,
        beside={},
        aliases=aliases,
        notes=(*opened.notes, *about, *in_words.summary(left_out)),
        paths={},
        places={},
    )


def select(stored: Stored, *, separator: str, weights: str | None, given: str) -> Selection:
    """Chooses the model's leaves by their paths; see the module.

    Args:
        stored: everything in the file.
        separator: joins the keys below the model to names.
        weights: see `applied`.
        given: the path as the user wrote it.

    Raises:
        CheckpointError: nothing but training state, or nothing of the name `weights`.
    """
    sorting = _Sorting(dict(stored), [])
    root = _named(stored, weights, separator)
    averages: dict[Path, list[Path]] = {}
    if root:
        others = [path for path in stored if path[: len(root)] != root]
        sorting.leave((), others, "not the weights that were asked for")
    else:
        _set_training_aside(sorting)
        root, averages = _descended(sorting)
    for path, spec in list(sorting.left.items()):
        if why := training_state.counter(path[-1], spec, is_outermost=len(path) == len(root) + 1):
            sorting.leave(path, [path], why)
    averages |= _dotted_aside(sorting, root, averages)
    averaged = {path for paths in averages.values() for path in paths}
    names = {path: separator.join(path[len(root) :]) or "0" for path in sorting.left if path not in averaged}
    mirrored: dict[str, tuple[Path, dict[Path, str]]] = {}
    for prefix in averages:
        paths = [path for path in averages[prefix] if path in sorting.left]
        pairs = training_state.mirrored(paths, prefix, names)
        if names and len(pairs) >= max(_MIRRORED * sum(_size(stored[path]) > 1 for path in paths), 1):
            mirrored[prefix[-1]] = prefix, pairs
        elif names and root[: len(prefix) - 1] == prefix[:-1] and len(root) >= len(prefix):
            sorting.leave(prefix, paths, _BESIDE)
        else:
            names |= {path: separator.join(path[len(root) :]) for path in paths}
    chosen = training_state.chosen(weights, mirrored, root, given)
    kept = 0
    if chosen in mirrored:
        replaced = {name: path for path, name in mirrored[chosen][1].items()}
        kept = sum(name not in replaced for name in names.values())
        before, names = names, {replaced.get(name, path): name for path, name in names.items()}
        raw = [path for path in before if path not in names]
        sorting.leave(root, raw, f"raw weights; the average {chosen!r} was chosen")
    for name, (prefix, _) in mirrored.items():
        paths = [path for path in averages[prefix] if path in sorting.left and path not in names]
        is_chosen = name == chosen
        why = "no weight, beside an average" if is_chosen else f"an average of the weights; weights={name!r} chooses it"
        sorting.leave(prefix, paths, why)
    if not names:
        places = [
            in_words.printable(".".join(prefix) or ".".join(paths[0])) for prefix, paths, _ in sorting.left_out[:5]
        ]
        found = f"training state alone ({', '.join(places) or 'keys without a name'})"
        raise refusals.unsupported(given, "the weights of a model", found, "pass the file that holds the model")
    if chosen == training_state.RAW:
        names = {path: names[path] for path in stored if path in names}
    return Selection(names, sorting.left_out, root, tuple(mirrored), chosen, kept)


class _Sorting(NamedTuple):
    """Entries that may be the model's, and those that were left out: prefix, paths, reason."""

    left: dict[Path, LeafSpec | str]
    left_out: list[tuple[Path, list[Path], str]]

    def leave(self, prefix: Path, paths: Sequence[Path], why: str) -> None:
        if paths:
            self.left_out.append((prefix, list(paths), why))
        for path in paths:
            self.left.pop(path, None)


def _set_training_aside(sorting: _Sorting) -> None:
    """What is an optimizer's or a random number generator's wherever it is."""
    states: dict[Path, list[Path]] = {}
    for path in sorting.left:
        if _OPTIMIZER in path:
            states.setdefault(path[: path.index(_OPTIMIZER) + 1], []).append(path)
    for prefix, paths in states.items():
        sorting.leave(prefix, paths, "optimizer state")
    for prefix in dict.fromkeys(itertools.islice(training_state.moments(sorting.left), _MAX_MOMENTS)):
        sorting.leave(prefix, [path for path in sorting.left if path[: len(prefix)] == prefix], "optimizer state")
    random = [path for path, spec in sorting.left.items() if training_state.is_random(path, spec)]
    sorting.leave((), random, "random number state")


def _dotted_aside(sorting: _Sorting, root: Path, averages: Mapping[Path, Sequence[Path]]) -> dict[Path, list[Path]]:
    """Losses and metrics among dotted names are left out; averages among them are returned."""
    averaged = {path for paths in averages.values() for path in paths}
    raw = [path for path in sorting.left if path not in averaged]
    groups: dict[str, list[Path]] = {}
    for path in raw:
        name = path[len(root)] if len(path) > len(root) else ""
        if "." in name:
            groups.setdefault(name.split(".", 1)[0], []).append(path)
    found: dict[Path, list[Path]] = {}
    for segment, paths in groups.items():
        if len(paths) < len(raw) and training_state.loss_or_metric(segment):
            sorting.leave((*root, segment), paths, "a loss or metric")
        elif len(paths) < len(raw) and training_state.is_average(segment):
            found[(*root, segment)] = paths
    return found


def _descended(sorting: _Sorting) -> tuple[Path, dict[Path, list[Path]]]:
    """The keys down to the model, and groups beside it or above whose names are those of averages."""
    root: Path = ()
    averages: dict[Path, list[Path]] = {}
    for _ in range(_MAX_ENCLOSING):
        depth = len(root)
        groups: dict[str, dict[Path, LeafSpec | str]] = {}
        for path, spec in sorting.left.items():
            if path[:depth] == root and len(path) > depth:
                groups.setdefault(path[depth], {})[path[depth + 1 :]] = spec
        if not groups:
            break
        reasons = {key: training_state.reason(key, below) for key, below in groups.items()}
        for key, why in reasons.items():
            if why:
                sorting.leave((*root, key), [(*root, key, *rest) for rest in groups[key]], why)
        model = {key: below for key, below in groups.items() if not reasons[key]}
        held = {key: below for key, below in model.items() if training_state.is_average(key) and () not in below}
        raw = {key: below for key, below in model.items() if key not in held}
        if any(() not in below or _size(below[()]) > 1 for below in raw.values()):
            averages |= {(*root, key): [(*root, key, *rest) for rest in below] for key, below in held.items()}
            model = raw
        chosen = training_state.entered(model)
        if chosen is None:
            break
        for key in model.keys() - {chosen}:
            sorting.leave((*root, key), [(*root, key, *rest) for rest in model[key]], _BESIDE)
        root = (*root, chosen)
    return root, averages


def _named(stored: Stored, weights: str | None, separator: str) -> Path:
    """The group of the name `weights`, which is neither raw nor a whole file."""
    if weights in (None, training_state.RAW, training_state.EMA):
        return ()
    for depth in range(1, 4):
        for path in stored:
            if len(path) > depth and weights in (separator.join(path[:depth]), ".".join(path[:depth])):
                prefix = path[:depth]
                return () if training_state.is_average(prefix[-1]) else prefix
    return ()


def _size(spec: LeafSpec | str) -> int:
    return 1 if isinstance(spec, str) else int(np.prod(spec.shape, dtype=object))


def _counters(opened: Checkpoint, found: Selection, origins: Mapping[Path, str]) -> dict[str, str]:
    """The values of counters such as `step`, which are no weights but tell what the file is."""
    values: dict[str, str] = {}
    paths = [path for _, paths, why in found.left_out if why == training_state.COUNTER for path in paths]
    for path in paths[:_MAX_COUNTERS]:
        with contextlib.suppress(CheckpointError):
            values[path[-1]] = str(opened.read(origins[path]).reshape(-1)[0])
    return values
