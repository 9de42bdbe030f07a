"""What was left out of a checkpoint, and which weights were taken, in words for a report."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence

from jaxguard.checkpoints import refusals, training_state
from jaxguard.checkpoints.checkpoint import LeafSpec
from jaxguard.checkpoints.training_state import Path, Stored
from jaxguard.errors import InternalError

Groups = Sequence[tuple[Path, list[Path], str]]
"""`(common prefix, paths, reason)` of what was left out."""

_NAMED_ONE_BY_ONE, _SHOWN, _MAX_NAME = 16, 5, 80


def listed(groups: Groups, root: Path, stored: Stored, separator: str) -> Iterator[tuple[str, str]]:
    """Names, below the model's root relative to that, and reasons; of a large group one line."""
    depth = len(root)

    def name_of(path: Path) -> str:
        return separator.join(path[depth:] if path[:depth] == root else path)

    for prefix, paths, why in groups:
        if len(paths) <= _NAMED_ONE_BY_ONE:
            yield from ((name_of(path), why) for path in paths)
            continue
        specs = [spec for path in paths if isinstance(spec := stored[path], LeafSpec)]
        size = sum(spec.nbytes for spec in specs)
        yield name_of((*(prefix or _shared(paths)), "*")), f"{why}: {len(paths)} entries, {size:,} bytes"


def of_weights(averages: Sequence[str], chosen: str, root: Path, kept: int) -> Iterator[str]:
    """Which weights were taken, where a file holds averages.

    Args:
        averages: their names.
        chosen: the name of one of them, or `raw`.
        root: keys down to the model.
        kept: raw leaves that the average lacks.
    """
    if averages and chosen == training_state.RAW:
        names = ", ".join(map(printable, averages))
        yield (
            f"The file also holds averages of the weights ({names}); the raw weights were taken. weights=NAME, or "
            "--weights NAME, takes another."
        )
    elif averages:
        lacking = f"; {kept} leaves that it lacks are the raw ones" if kept else ""
        yield f"The averaged weights {printable(chosen)} were taken{lacking}; the file also holds the raw weights."
    elif root and training_state.is_average(root[-1]):
        yield f"The weights are an average ({printable(root[-1])}); the file holds no others."


def summary(left_out: Mapping[str, str]) -> Iterator[str]:
    """How much was left out, and why; what may be a part of the model is named."""
    if any(name.rpartition(".")[2] == "n_averaged" for name in left_out):
        yield "The weights are an average of several steps (n_averaged); the file holds no others."
    not_read = {name: why for name, why in left_out.items() if why.endswith(refusals.NOT_SUPPORTED)}
    if not_read:
        more = f"; and {len(not_read) - _SHOWN} more" if len(not_read) > _SHOWN else ""
        yield f"Not read, as that is not supported, though it may be a part of the model: {named(not_read)}{more}."
    others = [why.split(":")[0] for name, why in left_out.items() if "average" not in why and name not in not_read]
    if others:
        counts = (f"{others.count(why)} of {why}" if others.count(why) > 1 else why for why in dict.fromkeys(others))
        yield f"Left out, as no weights of the model: {', '.join(counts)}."


def named(left_out: Mapping[str, str]) -> str:
    """The first entries with what they are."""
    first = itertools.islice(left_out.items(), _SHOWN)
    return "; ".join(f"{printable(name)!r}: {why.removesuffix(refusals.NOT_SUPPORTED)}" for name, why in first)


def printable(name: str) -> str:
    """The start of a name, whatever a file put there."""
    return name[:_MAX_NAME].encode("utf-8", "backslashreplace").decode()


def _shared(paths: Sequence[Path]) -> Path:
    """The keys that all paths begin with."""
    first, last = min(paths), max(paths)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return tuple(key for key, _ in same)


def require_whole(
    given: str,
    stored: Collection[Path],
    chosen: Mapping[Path, str],
    groups: Groups,
    kept: Collection[str],
) -> None:
    """Check that no entry is lost or counted twice.

    Args:
        given: the path as the user wrote it.
        stored: keys of all entries of the file.
        chosen: names of those that are the model's.
        groups: the others.
        kept: names that became leaves, names of the same memory, or are left out by their own name.

    Raises:
        InternalError: it names the first entry.

    Example:
        >>> require_whole("a.npz", [("w",), ("step",)], {("w",): "w"}, [((), [("step",)], "a counter")], ["w"])
    """
    seen: set[Path] = set()
    for path in (*chosen, *(path for _, paths, _ in groups for path in paths)):
        if path in seen:
            raise _broken(given, path, "two")
        seen.add(path)
    if lost := next((path for path in stored if path not in seen), None):
        raise _broken(given, lost, "none")
    if lost := next((path for path, name in chosen.items() if name not in kept), None):
        raise _broken(given, lost, "none")


def _broken(given: str, path: Path, found: str) -> InternalError:
    return InternalError(
        f"{given}: expected one account of every entry, got {found} for {'/'.join(path)[:80]!r}; this is a bug of "
        "jaxguard, please report it with the names of the file's entries"
    )
