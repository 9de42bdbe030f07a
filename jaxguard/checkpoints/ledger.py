"""Everything that a file stores is accounted for once: as a leaf, as another name of one, or left out by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from jaxguard.checkpoints.training_state import Path
from jaxguard.errors import InternalError


def require_whole(
    given: str,
    stored: Collection[Path],
    chosen: Mapping[Path, str],
    left_out: Iterable[Collection[Path]],
    kept: Collection[str],
) -> None:
    """Check that no entry is lost or counted twice.

    Args:
        given: the path as the user wrote it.
        stored: keys of all entries of the file.
        chosen: names of those that are the model's.
        left_out: keys of the others, by group.
        kept: names that became leaves, names of the same memory, or are left out by their own name.

    Raises:
        InternalError: it names the first entry.

    Example:
        >>> require_whole("a.npz", [("w",), ("step",)], {("w",): "w"}, [[("step",)]], ["w"])
    """
    seen: set[Path] = set()
    for path in (*chosen, *(path for paths in left_out for path in paths)):
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
