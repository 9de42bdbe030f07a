"""From what the user named to checkpoints: files, folders, patterns, manifests, URLs."""

from __future__ import annotations

import glob
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


def discover(targets: Sequence[str], *, shard: tuple[int, int] = (0, 1)) -> Discovery:
    """Find the checkpoints that a command line means.

    Args:
        targets: files, folders (searched), patterns such as `models/**/*.safetensors`, manifests, URLs.
        shard: `(i, n)`: keep the i-th of n parts. Which part a checkpoint belongs to depends on its name alone, so that
            any number of processes divide a store without talking to each other.

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
    for listed in _expanded(targets):
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


def _expanded(targets: Iterable[str], *, within: str = "") -> Iterator[Listed]:
    for target in targets:
        if checkpoints.is_url(target):
            yield from (Listed(url) for url in checkpoints.listed(target))
        elif os.path.isdir(target):
            yield from _in_folder(target)
        elif os.path.lexists(target):
            if within or pathlib.PurePath(target).suffix.lower() not in MANIFESTS or checkpoints.is_checkpoint(target):
                yield Listed(target)
            else:
                yield from _expanded(checkpoints.manifest(target), within=target)
        elif glob.has_magic(target):
            matches = sorted(glob.glob(target, recursive=True))
            if not matches:
                raise CheckpointError(f"{target}: expected files that match, found none; check the pattern")
            yield from _expanded(matches, within=target)
        else:
            # a training run's step, `run@7`, or nothing: whoever opens it will tell
            yield Listed(target)


def _in_folder(folder: str) -> Iterator[Listed]:
    found = list(checkpoints.below(folder))
    if not found:
        raise CheckpointError(f"{folder}: expected checkpoints below the folder, found no files; check the path")
    yield from found
