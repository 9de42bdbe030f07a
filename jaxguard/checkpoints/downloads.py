"""The folder that files behind URLs are downloaded to, of which only so much is kept.

What was used longest ago is removed first, once there is more than `limit`. The last checkpoints of this process stay
whatever their size: a scan opens some before it reads them. So do those that other processes used within the hour.
"""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import shutil
import stat
import threading
import time
import uuid
from collections.abc import Iterator

from jaxguard.errors import CheckpointError

LIMIT = 2**34
"""Bytes that are kept by default: 16 GiB."""

VARIABLE = "JAXGUARD_CACHE_BYTES"
"""Of the environment, for another limit."""

NEWEST = 256
"""Checkpoints of this process that are never removed: more than a scan has opened and not read yet."""

_IDLE_SECONDS = 3600.0  # of what other processes have downloaded, or begun to
_PARTS = 16  # how often somebody looks what there is: each time so much of the limit has come

_lock = threading.Lock()
_mine: dict[str, float] = {}
_fresh = [math.inf]  # bytes that came since somebody looked, which nobody has yet


def folder() -> pathlib.Path:
    """Where downloads lie, `$XDG_CACHE_HOME/jaxguard/remote`."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "jaxguard" / "remote"


def limit() -> int:
    """Bytes to be kept.

    Raises:
        CheckpointError: the environment says something else than a number.
    """
    told = os.environ.get(VARIABLE)
    if told is None:
        return LIMIT
    if not told.isascii() or not told.isdecimal():
        raise CheckpointError(f"{VARIABLE}: expected a number of bytes, such as {LIMIT}, found {told!r}; correct it")
    return int(told)


def use(name: str) -> pathlib.Path:
    """Where one download lies or will lie; it counts as used now.

    Args:
        name: of what it holds in one state; another state has another name.

    Returns:
        A folder, which may not exist yet.
    """
    entry, now = folder() / name, time.time()
    with _lock:
        _mine.pop(name, None)
        _mine[name] = now
    with contextlib.suppress(OSError):
        os.utime(entry, (now, now))
    return entry


def added(count: int) -> None:
    """Tell how many bytes were downloaded; where there are too many now, the oldest are removed.

    Args:
        count: of one checkpoint.

    Raises:
        CheckpointError: see `limit`.
    """
    most = limit()
    with _lock:
        _fresh[0] += count
        is_time = _fresh[0] * _PARTS >= most
        if is_time:
            _fresh[0] = 0
    if is_time:
        _trim(most)


def size(entry: pathlib.Path) -> int:
    """Bytes of the files in a download, 0 where there is none; links count nothing."""
    return sum(state.st_size for state in _states(entry) if stat.S_ISREG(state.st_mode))


def _states(entry: pathlib.Path) -> list[os.stat_result]:
    return [path.lstat() for path in (entry, *entry.rglob("*")) if os.path.lexists(path)]


def _trim(most: int) -> None:
    found = sorted(_entries(), key=lambda one: one[1])
    total = sum(held for _, _, held in found)
    with _lock:
        mine = dict(_mine)
    newest = set(list(mine)[-NEWEST:])
    for entry, used, held in found:
        if total <= most:
            return
        # Where the time is another than ours, somebody else has used it since.
        is_mine = entry.name in mine and used <= mine[entry.name] + 1
        if entry.name in newest or not (is_mine or time.time() - used > _IDLE_SECONDS):
            continue
        _remove(entry)
        total -= held


def _entries() -> Iterator[tuple[pathlib.Path, float, int]]:
    """All downloads, those that were never finished too, with the time of their last use and their bytes."""
    with contextlib.suppress(OSError):
        for entry in list(folder().iterdir()):
            with contextlib.suppress(OSError):
                yield entry, max((state.st_mtime for state in _states(entry)), default=0.0), size(entry)


def _remove(entry: pathlib.Path) -> None:
    """At once for all others: nobody finds half of it."""
    with contextlib.suppress(OSError):
        gone = entry.with_name(f".{uuid.uuid4().hex}.removed")
        entry.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
