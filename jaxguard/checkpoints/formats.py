"""The table of checkpoint formats, and the two verbs that go through it.

A new format is one file with `is_...`, `open_checkpoint`, `write_checkpoint`, and one row here.
"""

import dataclasses
import os
import pathlib
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxguard.checkpoints import (
    archive,
    atomic,
    equinox,
    foreign,
    keras,
    msgpack,
    npz,
    orbax,
    plain_pickle,
    pytorch,
    pytorch_legacy,
    refusals,
    remote,
    repository,
    safetensors,
    selection,
    sharded,
    trees,
)
from jaxguard.checkpoints.checkpoint import Checkpoint
from jaxguard.errors import CheckpointError


@dataclass(frozen=True)
class Format:
    """One way to store leaves.

    Attributes:
        sniff_fn: `path -> bool`, from the content alone; the path is a regular file or a directory.
        open_fn: `(path, path as given) -> Checkpoint`; raises CheckpointError.
        write_fn: `(fresh path, leaves, metadata) -> None`; None where jaxguard only reads the format.
        suffix: what `save` recognises it by; empty for a directory.
    """

    sniff_fn: Callable[[pathlib.Path], bool]
    open_fn: Callable[[pathlib.Path, str], Checkpoint]
    write_fn: Callable[[pathlib.Path, Mapping[str, np.ndarray], Mapping[str, str]], None] | None
    suffix: str


FORMATS: Mapping[str, Format] = {
    # before safetensors, whose ninth byte can open a bracket in the line of JSON
    "equinox": Format(equinox.is_equinox, equinox.open_checkpoint, None, ".eqx"),
    "safetensors": Format(
        safetensors.is_safetensors, safetensors.open_checkpoint, safetensors.write_checkpoint, ".safetensors"
    ),
    "sharded": Format(sharded.is_sharded, sharded.open_checkpoint, None, ".json"),
    "orbax": Format(orbax.is_orbax, orbax.open_checkpoint, orbax.write_checkpoint, ""),
    "msgpack": Format(msgpack.is_msgpack, msgpack.open_checkpoint, msgpack.write_checkpoint, ".msgpack"),
    "keras": Format(keras.is_keras, keras.open_checkpoint, None, ".h5"),
    "pytorch": Format(pytorch.is_pytorch, pytorch.open_checkpoint, None, ".pt"),
    "pytorch-legacy": Format(pytorch_legacy.is_pytorch_legacy, pytorch_legacy.open_checkpoint, None, ".pth"),
    "npz": Format(npz.is_npz, npz.open_checkpoint, None, ".npz"),
    "pickle": Format(plain_pickle.is_pickle, plain_pickle.open_checkpoint, None, ".pkl"),
}

_STEP_SUFFIX = re.compile(r"(.+)@(\d{1,18})", re.DOTALL)


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
    location = remote.fetched(given) if remote.is_url(given) else _located(given)
    try:
        kind = location.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise CheckpointError(f"{given}: expected a file or a directory, got a device or pipe; pass a checkpoint")
        if stat.S_ISREG(kind) and location.stat().st_size == 0:
            raise refusals.damaged(given, "a checkpoint", "an empty file")
        if row := _recognised(location):
            return selection.applied(row.open_fn(location, given), weights)
        if stat.S_ISDIR(kind) and (repository.holds_weights(location) or foreign.named(location) is None):
            return selection.applied(_open_repository(location, given), weights)
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
    write_fn = _writer(target, format)
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
            write_fn(fresh, arrays, texts)
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
    return next((row for row in FORMATS.values() if row.sniff_fn(location)), None)


def _open_repository(folder: pathlib.Path, given: str) -> Checkpoint:
    """The one checkpoint in a folder, with what the folder's configuration says."""
    file = repository.weights_file(folder, given, lambda path: _recognised(path) is not None)
    row = _recognised(file)
    if row is None:
        raise _unknown(file, f"{given}: {file.name}")
    checkpoint = row.open_fn(file, given)
    return dataclasses.replace(checkpoint, metadata={**repository.configuration(folder, given), **checkpoint.metadata})


def _writer(target: pathlib.Path, format: str | None) -> Callable[..., None]:
    suffixes = {row.suffix: name for name, row in FORMATS.items() if row.write_fn}
    name = suffixes.get(target.suffix) if format is None else format
    row = FORMATS.get(name) if name else None
    if row is None or row.write_fn is None:
        known = ", ".join(f"{name} ({suffix or 'no suffix'})" for suffix, name in suffixes.items())
        what = f"the suffix {target.suffix!r}" if format is None else f"format {format!r}"
        raise CheckpointError(f"{target}: expected a format that can be written ({known}), got {what}; pass format=")
    return row.write_fn


def _located(given: str) -> pathlib.Path:
    """The path itself, or the step folder that `run@step` means."""
    location = pathlib.Path(given)
    try:
        if location.exists():
            return location
        match = _STEP_SUFFIX.fullmatch(given)
        if match and pathlib.Path(match[1]).is_dir():
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
