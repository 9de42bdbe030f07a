"""From a path to a row of numbers and a content hash, on any thread; a bad file is a failure, never an exception."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxguard import checkpoints
from jaxguard.checkpoints import Checkpoint
from jaxguard.checkpoints.hashing import Algorithm
from jaxguard.errors import CheckpointError, JaxguardError
from jaxguard.fleet import accounting
from jaxguard.fleet.structure import Structure, structure_of
from jaxguard.types.findings import LeafAccount


class Stamp(NamedTuple):
    """What tells without reading whether a file is the one it was.

    Attributes:
        size: bytes; of several files, all of them.
        modified: time of the last change in nanoseconds; of several files, that of the one changed last.
    """

    size: int
    modified: int


class File(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        uri: as it was found.
        stamp: its state then.
        format: row of `jaxguard.checkpoints.FORMATS`.
        notes: what a reader of a report must know of the choice of its leaves, in full sentences.
        left_out: `(entry, reason)` of what is stored beside the leaves.
        aliases: `(leaf, its other names)`.
    """

    uri: str
    stamp: Stamp
    format: str
    notes: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    aliases: tuple[tuple[str, tuple[str, ...]], ...] = ()


class Opened(NamedTuple):
    """A checkpoint whose header was read; no file is held open.

    Attributes:
        uri: as it was found.
        stamp: its state then.
        location: the local file or folder.
        format: row of `jaxguard.checkpoints.FORMATS`.
        start: first byte of its leaves, where its structure is raw.
        structure: what it can be stacked with.
        weights: which of the weights in it were chosen, see `jaxguard.checkpoints.load`.
        notes: see `File`.
        left_out: see `File`.
        aliases: see `File`.
    """

    uri: str
    stamp: Stamp
    location: pathlib.Path
    format: str
    start: int
    structure: Structure
    weights: str | None = None
    notes: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    aliases: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def file(self) -> File:
        """What is kept of it once it was read."""
        return File(self.uri, self.stamp, self.format, self.notes, self.left_out, self.aliases)


class Failure(NamedTuple):
    """A checkpoint that could not be read or scored.

    Attributes:
        uri: as it was found.
        stamp: its state, zeros where even that is not known.
        error: what was expected, what was found, what to do.
        format: row of FORMATS, where that was recognised.
        content: name of its content, where it was read, see `jaxguard.checkpoints.hashing`.
        kind: of the error, see `jaxguard.errors`.
        leaves: what became of every leaf, where the header was read.
        left_out: see `File`.
        aliases: see `File`.
    """

    uri: str
    stamp: Stamp
    error: str
    format: str = ""
    content: str = ""
    kind: str = JaxguardError.kind
    leaves: tuple[LeafAccount, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    aliases: tuple[tuple[str, tuple[str, ...]], ...] = ()


def stamp_of(path: str | os.PathLike[str]) -> Stamp:
    """The state of a file, of an index and its shards, or of all files below a folder.

    Raises:
        OSError: there is none.
    """
    states = [os.stat(file) for file in checkpoints.parts(path)] or [os.stat(path)]
    return Stamp(sum(state.st_size for state in states), max(state.st_mtime_ns for state in states))


class Known(NamedTuple):
    """A checkpoint of which there are results already, and which has not changed since."""

    uri: str


def open_one(
    uri: str, is_known: Callable[[str, Stamp], bool] = lambda *_: False, *, weights: str | None = None
) -> Opened | Known | Failure:
    """Read a checkpoint's header, and nothing else of it.

    Args:
        uri: path or URL; what lies behind a URL is downloaded first.
        is_known: whether there are results of it in that state.
        weights: which of several, see `jaxguard.checkpoints.load`.

    Returns:
        The opened checkpoint, or why that is not needed or not possible.
    """
    before = Stamp(0, 0)
    try:
        if not checkpoints.is_url(uri) and os.path.isfile(uri):
            before = stamp_of(uri)
            if is_known(uri, before):
                return Known(uri)
        checkpoint = checkpoints.load(uri, weights=weights)
        location = checkpoint.location
        stamp = stamp_of(location)
        if before not in (stamp, Stamp(0, 0)):
            raise _changed(uri)
        if is_known(uri, stamp):
            return Known(uri)
        found, start = structure_of(checkpoint), min(checkpoint.first_bytes.values(), default=0)
        beside = tuple(checkpoint.left_out.items()), tuple(checkpoint.aliases.items())
        return Opened(uri, stamp, location, checkpoint.format, start, found, weights, checkpoint.notes, *beside)
    except Exception as error:  # whatever a file can provoke is reported in its row
        return Failure(uri, before, _told(error, uri), kind=kind_of(error))


def fill(opened: Opened, row: np.ndarray, algorithm: Algorithm = "sha256") -> str | Failure:
    """Read a checkpoint into a row.

    Args:
        opened: of `open_one`.
        row: `[W]` float32 in C order, written to; its tail beyond the last leaf is set to zero.
        algorithm: what its content is named by.

    Returns:
        The name of what was read, see `jaxguard.checkpoints.hashing`, or why it could not be.
    """
    try:
        if opened.structure.is_raw:
            size, content = opened.stamp.size - opened.start, row.view(np.uint8)
            content[size:] = 0
            return checkpoints.read_into(
                opened.location,
                opened.start,
                content[:size],
                size=opened.stamp.size,
                modified=opened.stamp.modified,
                given=opened.uri,
                algorithm=algorithm,
            )
        checkpoint = reopened(opened)
        opened.structure.pack(checkpoint.read_all(), row)
        content = checkpoint.content(algorithm)
        require_unchanged(opened)
        return content
    except Exception as error:
        return failed(opened, error)


def reopened(opened: Opened) -> Checkpoint:
    """The checkpoint itself, to read its leaves.

    Raises:
        CheckpointError: it is another one by now.
    """
    checkpoint = checkpoints.load(opened.location, weights=opened.weights)
    if dict(checkpoint.leaves) != opened.structure.specs():
        raise _changed(opened.uri)
    return checkpoint


def require_unchanged(opened: Opened) -> None:
    """Raises CheckpointError where a checkpoint was written to since it was opened."""
    if stamp_of(opened.location) != opened.stamp:
        raise _changed(opened.uri)


def failed(opened: Opened, error: Exception, content: str = "") -> Failure:
    """The failure of a checkpoint whose header was read."""
    told = _told(error, opened.uri), opened.format, content, kind_of(error)
    leaves = accounting.unscored(opened.structure.specs())
    return Failure(opened.uri, opened.stamp, *told, leaves, opened.left_out, opened.aliases)


def kind_of(error: Exception) -> str:
    """One word for an error; what no reader foresaw means that the file cannot be read."""
    return error.kind if isinstance(error, JaxguardError) else CheckpointError.kind


def _changed(uri: str) -> CheckpointError:
    return CheckpointError(
        f"{uri}: expected the file that was opened, got another, it has changed since; scan it again"
    )


def _told(error: Exception, uri: str) -> str:
    if isinstance(error, JaxguardError):
        return str(error)
    problem = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__} {error}"
    return f"{uri}: expected a checkpoint that can be read, got {problem}; is it complete, and may you read it?"
