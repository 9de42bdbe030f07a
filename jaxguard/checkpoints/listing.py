"""Lists the checkpoints of a folder tree: files, Orbax directories, indexes with their shards; and skipped files."""

import os
import pathlib
import posixpath
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from jaxguard.checkpoints import formats, refusals, sharded
from jaxguard.errors import CheckpointError

_CERTAIN = {".safetensors", ".msgpack", ".pt", ".pth", ".th", ".npz", ".eqx", ".h5", ".hdf5", ".keras", ".ckpt"}
"""Suffixes of files that are checkpoints, damaged or not, unless their content says that they are something else; other
files are recognised by their content."""

_LIKELY = {".bin", ".pkl", ".pickle", ".tar"}
"""Suffixes of files that may be checkpoints, if their content is not available."""

_WHOLE = ("/_METADATA", sharded.INDEX_SUFFIX)
"""Ends of the names of files whose folder is one checkpoint."""


_CONFIG = "config.json"

_SAME_MODEL = (
    ("model.safetensors", "flax_model.msgpack", "tf_model.h5", "pytorch_model.bin"),
    ("diffusion_pytorch_model.safetensors", "diffusion_flax_model.msgpack", "diffusion_pytorch_model.bin"),
)
"""Hugging Face's names for the weights of one model in several frameworks, whole or as an index of shards; preferred
ones first."""

_TWIN = "by its name the same model as "


class Listed(NamedTuple):
    """An entry of a folder tree.

    Attributes:
        path: for `load`.
        reason: why it is not a checkpoint; empty for checkpoints.
    """

    path: str
    reason: str = ""

    @property
    def is_twin(self) -> bool:
        """Whether it was skipped for weights of the same model in another format."""
        return self.reason.startswith(_TWIN)


def below(folder: str | os.PathLike[str]) -> Iterator[Listed]:
    """All checkpoints below a folder, and all other files with the reason why they are skipped.

    Every step of a training run is one checkpoint; so is a Hugging Face model with weights in several formats. Symbolic
    links to files are followed, links to folders are not.

    Yields:
        The files of a folder by name, then those of its subfolders; for a folder that is skipped as a whole, such as a
        hidden one or a SavedModel, only the folder.

    Raises:
        CheckpointError: the folder cannot be listed.
    """
    from jaxguard.checkpoints import orbax

    left = [os.fspath(pathlib.Path(folder))]
    while left:
        path = left.pop()
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
            is_one = orbax.holds_one(pathlib.Path(path))
        except OSError as error:
            if path == os.fspath(pathlib.Path(folder)):
                raise CheckpointError(
                    f"{path}: expected a folder that can be listed, got {error.strerror or error}; check its "
                    "permissions"
                ) from error
            yield Listed(path, f"a folder that cannot be listed: {error.strerror or error}")
            continue
        if is_one:
            yield Listed(path)
            continue
        if reason := _foreign_folder(path, entries):
            yield Listed(path, reason)
            continue
        folders, names = [], {entry.name for entry in entries}
        passed_over = _twins(names, lambda name, folder=path: _is_whole(pathlib.Path(folder, name))) | _shards(entries)
        for entry in entries:
            try:
                reason = passed_over.get(entry.name) or (_no_folder(entry) if entry.is_dir() else _no_checkpoint(entry))
                if entry.is_dir() and not reason:
                    folders.append(entry.path)
                else:
                    yield Listed(entry.path, reason)
            except OSError as error:
                yield Listed(entry.path, f"unreadable: {error.strerror or error}")
        left += reversed(folders)


def behind(url: str) -> Iterator[Listed]:
    """All checkpoints of a URL of a file, a folder or a pattern, by name.

    Nothing is downloaded: names decide which files are checkpoints, and which folders are Orbax directories or sharded
    models.

    Args:
        url: one of Hugging Face names one repository and is returned unchanged.

    Raises:
        CheckpointError: a library is not installed, nothing was found, or access was denied.
    """
    from jaxguard.checkpoints import remote

    found = remote.listed(url)
    if _bare(found) == _bare([url]) or any(mark in url for mark in "*?["):
        yield from map(Listed, found)
        return
    whole = {posixpath.dirname(one) for one in found if one.endswith(_WHOLE)}
    yielded, names = set(), dict[str, set[str]]()
    for folder, name in map(posixpath.split, found):
        names.setdefault(folder, set()).add(name)
    twins = {
        f"{folder}/{name}": reason
        for folder, there in names.items()
        for name, reason in _twins(there, lambda _: True).items()
    }
    for one in found:
        owner = next((folder for folder in _ancestors(one) if folder in whole), None)
        if owner is None:
            known = posixpath.splitext(one)[1].lower() in _CERTAIN | _LIKELY
            yield Listed(one, twins.get(one, "" if known else "no checkpoint by its name"))
        elif owner not in yielded:
            yielded.add(owner)
            yield Listed(owner)


def manifest(path: str | os.PathLike[str]) -> list[str]:
    """Paths and URLs in a text file, one per line; `#` starts a comment, relative paths are relative to the file.

    Raises:
        CheckpointError: the file is not readable text, or is empty.
    """
    lines = [line.strip() for line in text_of(path).splitlines()]
    named = [line for line in lines if line and not line.startswith("#")]
    if not named:
        raise CheckpointError(f"{path}: expected at least one path or URL, got none; is this the right manifest?")
    folder = pathlib.Path(path).parent
    return [line if formats.is_url(line) else str(folder / line) for line in named]


def text_of(path: str | os.PathLike[str]) -> str:
    """A manifest or profile as text.

    Raises:
        CheckpointError: it is no readable text.
    """
    try:
        return pathlib.Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: expected a text file in UTF-8, got {getattr(error, 'strerror', None) or error}; check the path"
        ) from error


def _bare(urls: list[str]) -> list[str]:
    return [url.partition("://")[2].strip("/") for url in urls]


def _ancestors(url: str) -> Iterator[str]:
    """The folders of a URL, the outermost first."""
    start = url.index("://") + 3
    yield from (url[:k] for k in range(start, len(url)) if url[k] == "/" and k > start)


def _no_folder(entry: os.DirEntry[str]) -> str:
    """Why a folder is not searched; empty if it is."""
    from jaxguard.checkpoints import orbax

    if entry.is_symlink():
        return "a link to a folder, not followed"
    if entry.name.startswith("."):
        return "a hidden folder"
    return "an Orbax checkpoint that was never finished" if orbax.is_unfinished(entry.name) else ""


def _no_checkpoint(entry: os.DirEntry[str]) -> str:
    """Why a file is not a checkpoint; empty if it is."""
    from jaxguard.checkpoints import foreign

    if not entry.is_file():
        return "no regular file"
    if entry.name.startswith("."):
        return "a hidden file"
    is_certain = pathlib.PurePath(entry.name).suffix.lower() in _CERTAIN
    if entry.stat().st_size == 0:
        return "" if is_certain else "an empty file"
    if entry.name.endswith(foreign.SHARD_SUFFIX):
        return f"a shard of torch.distributed.checkpoint{refusals.NOT_SUPPORTED}; convert the folder"
    return "" if formats.is_checkpoint(entry.path) else _foreign_file(pathlib.Path(entry.path), is_certain=is_certain)


def _foreign_file(path: pathlib.Path, *, is_certain: bool) -> str:
    """What a file is that is no checkpoint; empty where it should be one by its suffix and nothing else is known."""
    from jaxguard.checkpoints import foreign

    known = foreign.named(path)
    if known is not None and not (is_certain and known.is_placeholder):
        return f"{known.what}{refusals.NOT_SUPPORTED}; {known.remedy}"
    return "" if is_certain else "no checkpoint by its content"


def _foreign_folder(path: str, entries: list[os.DirEntry[str]]) -> str:
    """Why a folder is skipped as a whole; empty where it is searched, as it is where a checkpoint is in it."""
    from jaxguard.checkpoints import foreign, repository

    folder = pathlib.Path(path)
    known = None if repository.holds_weights(folder) else foreign.named(folder)
    if known is None:
        return ""
    plain = (entry for entry in entries if entry.is_file() and not entry.name.startswith("."))
    others = (entry.path for entry in plain if not entry.name.endswith(foreign.SHARD_SUFFIX))
    return "" if any(map(formats.is_checkpoint, others)) else f"{known.what}{refusals.NOT_SUPPORTED}; {known.remedy}"


def _shards(entries: list[os.DirEntry[str]]) -> dict[str, str]:
    """Files that an index in the same folder names -> the reason why they are skipped."""
    indexes = [entry for entry in entries if entry.name.endswith(sharded.INDEX_SUFFIX)]
    return {
        name: f"a shard of {entry.name}" for entry in indexes for name in sharded.files_named(pathlib.Path(entry.path))
    }


def _twins(names: Collection[str], is_whole_fn: Callable[[str], bool]) -> dict[str, str]:
    """Weights that a Hugging Face folder also has in a preferred format -> the reason why they are skipped.

    That both are the same model is the author's claim: they are not compared.
    """
    found: dict[str, str] = {}
    for stems in _SAME_MODEL if _CONFIG in names else ():
        there = [name for stem in stems for name in (stem, stem + sharded.INDEX_SUFFIX) if name in names]
        best = next((k for k, name in enumerate(there[:-1]) if is_whole_fn(name)), len(there))
        for name in there[best + 1 :]:
            found[name] = f"{_TWIN}{there[best]}, which was taken; name the file to have it scanned too"
    return found


def _is_whole(path: pathlib.Path) -> bool:
    """Whether the content of a file is a checkpoint's, and for an index, whether all shards exist."""
    try:
        return formats.is_checkpoint(path) and all((path.parent / name).is_file() for name in sharded.files_named(path))
    except OSError:
        return False


def parts(path: str | os.PathLike[str]) -> list[str]:
    """The files of a checkpoint: for an index also its shards, for a directory all files below it."""
    if os.path.isdir(path):
        return [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    location = pathlib.Path(path)
    shards = sharded.files_named(location) if location.name.endswith(sharded.INDEX_SUFFIX) else ()
    return [str(location), *(str(location.parent / name) for name in shards if (location.parent / name).is_file())]
