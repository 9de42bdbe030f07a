"""From what the user named to checkpoints: files, folders, patterns, manifests, URLs."""

from __future__ import annotations

import glob
import itertools
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from jaxguard import checkpoints
from jaxguard.checkpoints import Listed
from jaxguard.errors import CheckpointError, FleetError

MANIFESTS = (".txt", ".manifest", ".list")
"""Suffixes of text files with one path or URL per line; `#` starts a comment."""


class Discovery(NamedTuple):
    """What a scan is about.

    Attributes:
        uris: paths and URLs of checkpoints, each once, in the order they were named and found.
        skipped: `(path, why)` of files nobody will look into.
    """

    uris: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


def discover(
    targets: Sequence[str], *, shard: tuple[int, int] = (0, 1), results: str | os.PathLike[str] | None = None
) -> Discovery:
    """Find the checkpoints that a command line means.

    Args:
        targets: files, folders (searched), patterns such as `models/**/*.safetensors`, manifests, URLs.
        shard: `(i, n)`: keep the i-th of n parts. Which part a checkpoint belongs to depends on its name alone, so that
            any number of processes divide a store without talking to each other.
        results: folder that the scan itself writes to; what lies in it is neither a checkpoint nor passed over.

    Returns:
        Checkpoints and what was skipped. Files of other parts are neither.

    Raises:
        CheckpointError: a pattern matches nothing, or a folder or manifest cannot be read.
        FleetError: a shard that does not exist.
    """
    index, count = shard
    if not 0 <= index < count:
        raise FleetError(f"expected a shard i/n with 0 <= i < n, got {index}/{count}; the first of four is 0/4")
    uris, skipped = dict[str, None](), dict[str, str]()
    own = None if results is None else os.path.join(os.path.abspath(results), "")
    for listed in _expanded(targets):
        if own is not None and os.path.abspath(listed.path).startswith(own):
            continue
        if zlib.crc32(os.fsencode(listed.path)) % count != index:
            continue
        if listed.reason:
            skipped[listed.path] = listed.reason
        else:
            uris[listed.path] = None
    return Discovery(tuple(uris), tuple((path, why) for path, why in skipped.items() if path not in uris))


def parse_shard(text: str) -> tuple[int, int]:
    """Parse `0/4`.

    Raises:
        FleetError: that is no shard.

    Example:
        >>> parse_shard("3/16")
        (3, 16)
    """
    index, slash, count = text.partition("/")
    if not slash or not index.isdecimal() or not count.isdecimal() or not int(index) < int(count):
        raise FleetError(f"expected a shard i/n with 0 <= i < n, got {text!r}; the first of four is 0/4")
    return int(index), int(count)


def _expanded(targets: Iterable[str]) -> Iterator[Listed]:
    for target in targets:
        is_text = pathlib.PurePath(target).suffix.lower() in MANIFESTS and os.path.isfile(target)
        if is_text and not checkpoints.is_checkpoint(target):
            yield from itertools.chain.from_iterable(map(_of_line, checkpoints.manifest(target)))
            continue
        found = _found(target)
        if not found:
            what = "checkpoints below the folder" if os.path.isdir(target) else "files that match"
            raise CheckpointError(f"{target}: expected {what}, found no files; check the path")
        yield from found


def _of_line(line: str) -> list[Listed]:
    """What a line of a manifest means; a bad one is a checkpoint that cannot be opened, and the others go on.

    A URL is one checkpoint unless it is a pattern or ends in a slash: nobody wants to wait for the look-up of each of a
    hundred thousand.
    """
    if checkpoints.is_url(line) and not glob.has_magic(line) and not line.endswith("/"):
        return [Listed(line)]
    try:
        return _found(line) or [Listed(line)]
    except CheckpointError:
        return [Listed(line)]


def _found(target: str) -> list[Listed]:
    """What a path or URL means; nothing where it is a folder or a pattern without files."""
    if checkpoints.is_url(target):
        return list(checkpoints.behind(target))
    if os.path.isdir(target):
        return [one._replace(path=_bare(one.path)) for one in checkpoints.below(target)]
    if glob.has_magic(target) and not os.path.lexists(target):
        matches = sorted(glob.glob(target, recursive=True))
        found = (checkpoints.below(one) if os.path.isdir(one) else [Listed(_bare(one))] for one in matches)
        return list(itertools.chain.from_iterable(found))
    # a file, a training run's step, `run@7`, or nothing: whoever opens it will tell
    return [Listed(_bare(target))]


def _bare(path: str) -> str:
    """Without `./`, so that a file has one name."""
    return str(pathlib.Path(path))
