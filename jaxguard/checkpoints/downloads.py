"""The download cache, of limited size.

Above `limit`, the least recently used downloads are removed first. The last checkpoints of this process are kept at any
size, because a scan opens some before it reads them; so are those that other processes used within the hour.
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
"""Default size in bytes: 16 GiB."""

VARIABLE = "JAXGUARD_CACHE_BYTES"
"""Environment variable for another limit."""

NEWEST = 256
"""Checkpoints of this process that are never removed: more than a scan opens before reading them."""

_IDLE_SECONDS = 3600.0  # after which a download of another process, complete or not, may be removed
_PARTS = 16  # the size is checked each time 1 / _PARTS of the limit has been downloaded

_lock = threading.Lock()
_mine: dict[str, float] = {}
_fresh = [math.inf]  # bytes downloaded since the last check; infinite before the first


def folder() -> pathlib.Path:
    """The cache folder, `$XDG_CACHE_HOME/jaxguard/remote`."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "jaxguard" / "remote"


def limit() -> int:
    """Largest size in bytes.

    Raises:
        CheckpointError: the environment variable is not a number.
    """
    value = os.environ.get(VARIABLE)
    if value is None:
        return LIMIT
    if not value.isascii() or not value.isdecimal():
        raise CheckpointError(f"{VARIABLE}: expected a number of bytes, such as {LIMIT}, got {value!r}; correct it")
    return int(value)


def use(name: str) -> pathlib.Path:
    """The folder of one download, which may not exist yet; marks it as used now.

    Args:
        name: identifies a source and its state; another state has another name.
    """
    entry, now = folder() / name, time.time()
    with _lock:
        _mine.pop(name, None)
        _mine[name] = now
    with contextlib.suppress(OSError):
        os.utime(entry, (now, now))
    return entry


def added(count: int) -> None:
    """Counts downloaded bytes; above the limit, removes the oldest downloads.

    Args:
        count: bytes of one checkpoint.

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
    """Bytes of the files in a download, 0 without one; links do not count."""
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
        # A later time than ours: another process has used it since.
        is_mine = entry.name in mine and used <= mine[entry.name] + 1
        if entry.name in newest or not (is_mine or time.time() - used > _IDLE_SECONDS):
            continue
        _remove(entry)
        total -= held


def _entries() -> Iterator[tuple[pathlib.Path, float, int]]:
    """All downloads, incomplete ones too, with the time of their last use and their bytes."""
    with contextlib.suppress(OSError):
        for entry in list(folder().iterdir()):
            with contextlib.suppress(OSError):
                yield entry, max((state.st_mtime for state in _states(entry)), default=0.0), size(entry)


def _remove(entry: pathlib.Path) -> None:
    """Renames before deleting, so that no other process finds part of it."""
    with contextlib.suppress(OSError):
        gone = entry.with_name(f".{uuid.uuid4().hex}.removed")
        entry.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
