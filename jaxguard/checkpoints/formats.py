"""The table of checkpoint formats, and the two verbs that go through it.

A new format is one file with `recognises`, `open_checkpoint`, `write_checkpoint`, and one row here.
"""

import dataclasses
import os
import pathlib
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from jaxguard.checkpoints import refusals, selection
from jaxguard.checkpoints.checkpoint import Checkpoint
from jaxguard.errors import CheckpointError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Format:
    """One way to store leaves; its module is imported when a file is first tried with it.

    Attributes:
        module: of this package, with `recognises(path)`, `open_checkpoint(path, path as given)`, and
            `write_checkpoint(fresh path, leaves, metadata)` where it is written.
        suffix: what `save` recognises it by; empty for a directory.
        is_written: whether `save` writes it; jaxguard only reads the others.
    """

    module: str
    suffix: str
    is_written: bool = False

    def recognises(self, path: pathlib.Path) -> bool:
        """Whether a regular file or a directory is one, from its content alone."""
        return self._reader.recognises(path)

    def open(self, path: pathlib.Path, given: str) -> Checkpoint:
        """Opens `path`, which the user wrote as `given`; raises CheckpointError."""
        return self._reader.open_checkpoint(path, given)

    def write(self, path: pathlib.Path, leaves: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
        """Writes leaves to a path where nothing is."""
        self._reader.write_checkpoint(path, leaves, metadata)

    @property
    def _reader(self) -> Any:
        return import_module(f"jaxguard.checkpoints.{self.module}")


FORMATS: Mapping[str, Format] = {
    # before safetensors, whose ninth byte can open a bracket in the line of JSON
    "equinox": Format("equinox", ".eqx"),
    "safetensors": Format("safetensors", ".safetensors", is_written=True),
    "sharded": Format("sharded", ".json"),
    "orbax": Format("orbax", "", is_written=True),
    "msgpack": Format("msgpack", ".msgpack", is_written=True),
    "keras": Format("keras", ".h5"),
    "pytorch": Format("pytorch", ".pt"),
    "pytorch-legacy": Format("pytorch_legacy", ".pth"),
    "npz": Format("npz", ".npz"),
    "pickle": Format("plain_pickle", ".pkl"),
}

_STEP_SUFFIX = re.compile(r"(.+)@(\d{1,18})", re.DOTALL)


def is_url(given: str) -> bool:
    """Whether a path is a URL, such as `hf://owner/name` or `gs://bucket/model`.

    >>> is_url("gs://bucket/model"), is_url("C:/model")
    (True, False)
    """
    return _SCHEME.match(given) is not None


def load(path: str | os.PathLike[str], *, weights: str | None = None) -> Checkpoint:
    """Opens a checkpoint of any format in FORMATS, recognised by its content; reads no leaf and runs no code.

    Args:
        path: a file, an Orbax directory, a `CheckpointManager` run (its latest step), `run@step`, a folder with one
            checkpoint in it such as those of Hugging Face, or a URL (`hf://owner/name`, `gs://bucket/model`).
        weights: `raw`, `ema`, or the name of a group of arrays, where a file holds several; raw by default.

    Returns:
        The checked checkpoint of the model alone, see `jaxguard.checkpoints.selection`; its `read` and `read_all` bring
        leaves to the host.

    Raises:
        CheckpointError: missing, unreadable, or not one checkpoint.
        UnsupportedError: of a format, or with a feature, that is not read.
        DamagedError: empty, cut short, or otherwise not what its format promises.
        HostileError: a trick on readers, such as a bomb.
    """
    given = os.fspath(path)
    location = _fetched(given) if is_url(given) else _located(given)
    try:
        kind = location.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise CheckpointError(f"{given}: expected a file or a directory, got a device or pipe; pass a checkpoint")
        if stat.S_ISREG(kind) and location.stat().st_size == 0:
            raise refusals.damaged(given, "a checkpoint", "an empty file")
        if row := _recognised(location):
            return selection.applied(row.open(location, given), weights)
        if stat.S_ISDIR(kind) and (inside := _open_repository(location, given)) is not None:
            return selection.applied(inside, weights)
        raise _unknown(location, given)
    except OSError as error:
        raise CheckpointError(
            f"{given}: expected a readable checkpoint, got {error.strerror or error}; check its permissions"
        ) from error


def save(
    path: str | os.PathLike[str],
    leaves: Mapping[str, Any],
    *,
    format: str | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a checkpoint under its name only once it is whole and on the disk.

    Args:
        path: file or directory to come; its folder exists.
        leaves: `{leaf name: array}`, names nested with `/`, such as `flatten` returns.
        format: row of FORMATS; by default from the suffix, and `orbax` for a path without one.
        metadata: text to store beside the leaves.
        overwrite: whether an existing checkpoint may be replaced.

    Raises:
        CheckpointError: no leaves, a leaf the format cannot hold, an unknown format, a path that is taken, or
            the disk refuses; an existing checkpoint is then as it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/tiny.safetensors", {"params/bias": np.ones(2, np.float32)})
    ...     load(f"{folder}/tiny.safetensors").leaves["params/bias"].shape
    (2,)
    """
    target = pathlib.Path(path)
    from jaxguard.checkpoints import atomic, trees

    row = _written(target, format)
    if not leaves:
        raise CheckpointError(f"{target}: expected at least one leaf to save, got none; pass the model's variables")
    for name in leaves:
        if not isinstance(name, str):
            raise CheckpointError(f"{target}: expected leaf names that are text, got {name!r}; pass str({name!r})")
    arrays = {name: trees.host_array(name, leaf) for name, leaf in leaves.items()}
    texts = dict(metadata or {})
    for name, value in texts.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise CheckpointError(f"{target}: expected text as metadata, got {name!r}: {value!r}; pass str({name})")
    try:
        with atomic.replacing(target, overwrite=overwrite) as fresh:
            row.write(fresh, arrays, texts)
    except OSError as error:
        raise CheckpointError(
            f"{target}: expected to write there, got {error.strerror or error}; check space and permissions"
        ) from error


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a file or directory looks like one of FORMATS from its first bytes; it may still be damaged.

    Raises:
        OSError: it cannot be read.
    """
    return _recognised(pathlib.Path(path)) is not None


def _recognised(location: pathlib.Path) -> Format | None:
    return next((row for row in FORMATS.values() if row.recognises(location)), None)


def _fetched(given: str) -> pathlib.Path:
    from jaxguard.checkpoints import remote

    return remote.fetched(given)


def _open_repository(folder: pathlib.Path, given: str) -> Checkpoint | None:
    """The one checkpoint in a folder, with what the folder's configuration says; None for a folder of another kind."""
    from jaxguard.checkpoints import foreign, repository

    if not repository.holds_weights(folder) and foreign.named(folder) is not None:
        return None
    file = repository.weights_file(folder, given, lambda path: _recognised(path) is not None)
    row = _recognised(file)
    if row is None:
        raise _unknown(file, f"{given}: {file.name}")
    checkpoint = row.open(file, given)
    return dataclasses.replace(checkpoint, metadata={**repository.configuration(folder, given), **checkpoint.metadata})


def _written(target: pathlib.Path, format: str | None) -> Format:
    suffixes = {row.suffix: name for name, row in FORMATS.items() if row.is_written}
    name = suffixes.get(target.suffix) if format is None else format
    row = FORMATS.get(name) if name else None
    if row is None or not row.is_written:
        known = ", ".join(f"{name} ({suffix or 'no suffix'})" for suffix, name in suffixes.items())
        what = f"the suffix {target.suffix!r}" if format is None else f"format {format!r}"
        raise CheckpointError(f"{target}: expected a format that can be written ({known}), got {what}; pass format=")
    return row


def _located(given: str) -> pathlib.Path:
    """The path itself, or the step folder that `run@step` means."""
    location = pathlib.Path(given)
    try:
        if location.exists():
            return location
        match = _STEP_SUFFIX.fullmatch(given)
        if match and pathlib.Path(match[1]).is_dir():
            from jaxguard.checkpoints import msgpack, orbax

            run, number = pathlib.Path(match[1]), int(match[2])
            step = orbax.step_directory(run, number) or msgpack.step_file(run, number)
            if step is not None:
                return step
            raise CheckpointError(f"{given}: expected step {match[2]} in {match[1]}, got none; list the folder")
    except OSError as error:
        raise CheckpointError(f"{given}: expected a path, got {error.strerror}; check its spelling") from error
    raise CheckpointError(f"{given}: expected a checkpoint, got no such file or directory; check the path")


def _unknown(location: pathlib.Path, given: str) -> CheckpointError:
    """The error about a file or folder that none of FORMATS recognises."""
    from jaxguard.checkpoints import archive, foreign

    expected, known = f"a checkpoint ({' or '.join(FORMATS)})", foreign.named(location)
    if known is not None and known.is_placeholder:
        return CheckpointError(f"{given}: expected {expected}, got {known.what}; {known.remedy}")
    if known is not None:
        return refusals.unsupported(given, expected, known.what, known.remedy)
    with location.open("rb") as file:
        start = file.read(8)
    if start.startswith(archive.MAGIC):
        return refusals.damaged(given, "a zip archive with its directory behind it", "none")
    return refusals.unsupported(given, expected, f"an unknown format that starts with {start!r}")
