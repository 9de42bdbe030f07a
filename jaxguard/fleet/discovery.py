"""From what the user named to models: files, folders, patterns, manifests, URLs, live networks."""

from __future__ import annotations

import dataclasses
import glob
import itertools
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from jaxguard import checkpoints, suspects
from jaxguard.checkpoints import Listed
from jaxguard.errors import CheckpointError, FleetError
from jaxguard.suspects import ModelOptions, Suspect, manifest
from jaxguard.types import Network

MANIFESTS = (".txt", ".manifest", ".list")
"""Suffixes of text files with one path or URL per line; `#` starts a comment."""


Target = str | os.PathLike[str] | Network | Suspect
"""A path, URL, folder, pattern or manifest; or a network in memory."""


class Model(NamedTuple):
    """One model of a scan.

    Attributes:
        name: path, URL, or the name of a live network.
        options: how its checkpoint is opened.
        suspect: where it is in memory already.
    """

    name: str
    options: ModelOptions
    suspect: Suspect | None = None

    def load(self) -> Suspect:
        """The suspect, opened where it is not in memory; see `jaxguard.suspects.load`."""
        return self.suspect or self.options.load(self.name)


class Discovery(NamedTuple):
    """What a scan is about.

    Attributes:
        models: each path and URL once, in the order they were named and found.
        skipped: `(path, why)` of files that are not opened.
    """

    models: tuple[Model, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models."""
        return tuple(model.name for model in self.models)


def discover(
    targets: Target | Mapping[str, Network | Suspect] | Iterable[Target],
    *,
    options: ModelOptions | None = None,
    shard: tuple[int, int] = (0, 1),
    results: str | os.PathLike[str] | None = None,
) -> Discovery:
    """Find the models that a user means.

    Args:
        targets: files, folders (searched), patterns such as `models/**/*.safetensors`, manifests of paths (.txt) or of
            models with options of their own (.toml), URLs, networks in memory, by name if in a mapping; one or several.
        options: how checkpoints are opened, those of a `.toml` manifest excepted.
        shard: `(i, n)`: keep the i-th of n parts. Which part a checkpoint belongs to depends on its name alone, so that
            any number of processes divide a store without talking to each other.
        results: folder that the scan itself writes to; what lies in it is neither a checkpoint nor passed over.

    Returns:
        Models and what was skipped. Files of other parts are neither.

    Raises:
        CheckpointError: a pattern matches nothing, or a folder or manifest cannot be read.
        ArchitectureError: a manifest names an architecture or function that does not exist.
        FleetError: a shard that does not exist.
    """
    index, count = shard
    if not 0 <= index < count:
        raise FleetError(f"expected a shard i/n with 0 <= i < n, got {index}/{count}; the first of four is 0/4")
    default = options or ModelOptions()
    models, skipped = dict[str, Model](), dict[str, str]()
    own = None if results is None else os.path.join(os.path.abspath(results), "")
    for found in _expanded(_as_list(targets), default):
        if isinstance(found, Model):
            models[found.name] = found
            continue
        path = found.path
        is_own = own is not None and os.path.abspath(path).startswith(own)
        if is_own or zlib.crc32(os.fsencode(path)) % count != index:
            continue
        if found.reason:
            skipped[path] = found.reason
        else:
            models.setdefault(path, Model(path, default))
    return Discovery(tuple(models.values()), tuple((path, why) for path, why in skipped.items() if path not in models))


def _as_list(targets: Target | Mapping[str, Network | Suspect] | Iterable[Target]) -> Iterator[Target]:
    if isinstance(targets, (str, os.PathLike, Network, Suspect)):
        yield targets
    elif isinstance(targets, Mapping):
        for name, one in targets.items():
            yield dataclasses.replace(_suspect(one, str(name)), name=str(name))
    else:
        yield from targets


def _suspect(one: Network | Suspect, name: str) -> Suspect:
    return one if isinstance(one, Suspect) else suspects.load(one, name=name)


def _expanded(targets: Iterable[Target], default: ModelOptions) -> Iterator[Listed | Model]:
    for number, one in enumerate(targets):
        if isinstance(one, (Network, Suspect)):
            suspect = _suspect(one, f"network {number}")
            yield Model(suspect.name, default, suspect)
            continue
        target = os.fspath(one)
        if pathlib.PurePath(target).suffix.lower() == manifest.SUFFIX:
            for path, options in manifest.read(target):
                yield Model(path, options)
            continue
        is_text = pathlib.PurePath(target).suffix.lower() in MANIFESTS and os.path.isfile(target)
        if is_text and not checkpoints.is_checkpoint(target):
            yield from itertools.chain.from_iterable(map(_of_line, checkpoints.manifest(target)))
            continue
        found = _found(target)
        if not found:
            what = "checkpoints below the folder" if os.path.isdir(target) else "files that match"
            raise CheckpointError(f"{target}: expected {what}, got no files; check the path")
        yield from found


def _of_line(line: str) -> list[Listed]:
    """What a line of a manifest means; a bad one is a checkpoint that cannot be opened, and the others go on.

    A URL is one checkpoint unless it is a pattern or ends in a slash: looking each of a hundred thousand up would take
    hours.
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
    # A file, a training run's step, `run@7`, or nothing: opening it will show.
    return [Listed(_bare(target))]


def _bare(path: str) -> str:
    """Without `./`, so that a file has one name."""
    return str(pathlib.Path(path))
