"""Orbax directories: single checkpoints and `CheckpointManager` runs, OCDBT or one folder per array.

An Orbax checkpoint is a JSON index (`_METADATA`: the key of every leaf) over Zarr arrays, which TensorStore reads: no
target tree, no device, no process barrier, one leaf at a time if need be. Before it sees a file, everything it would
trust is checked here: the database, the metadata of each array, and the number of bytes and chunks that they announce.
Writing goes through Orbax, which owns the format.
"""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxguard.checkpoints import header, limits, ocdbt, orbax_index, refusals, tensorstore_arrays, trees, zarr_metadata
from jaxguard.checkpoints.checkpoint import Checkpoint
from jaxguard.errors import CheckpointError
from jaxguard.logs import quiet_absl

_STEP_METADATA = "_CHECKPOINT_METADATA"
_UNFINISHED = "orbax-checkpoint-tmp"
_STEP_NAME = re.compile(r"(?:[A-Za-z][A-Za-z_-]*[_-])?(\d+)")


def recognises(path: pathlib.Path) -> bool:
    """Whether a directory holds an Orbax index: itself, in an item folder, or in the steps of a run."""
    return path.is_dir() and bool(_items(path) or _steps(path))


def holds_one(path: pathlib.Path) -> bool:
    """Whether a directory is one checkpoint: it has an index or is a step with one item; False for runs and stores.

    Raises:
        OSError: it cannot be listed.
    """
    if (path / orbax_index.INDEX).is_file():
        return True
    return (path / _STEP_METADATA).is_file() and len(_items(path)) == 1


def is_unfinished(name: str) -> bool:
    """Whether a directory of this name was left by an interrupted save."""
    return _UNFINISHED in name


def step_directory(run: pathlib.Path, step: int) -> pathlib.Path | None:
    """The folder of one step of a run, such as `7` or `step_007`; None if it does not exist."""
    return _steps(run).get(step) if run.is_dir() else None


def open_checkpoint(path: pathlib.Path, given: str) -> Checkpoint:
    """Reads the index of an Orbax directory and opens its arrays, without reading them.

    Args:
        path: a checkpoint, one step of a `CheckpointManager` run, or the run itself (then its latest step); its files
            are mapped while they are read, and must not be shortened in place meanwhile.
        given: the path as the user wrote it.

    Returns:
        A checkpoint on the host's memory; string leaves and Orbax's custom metadata are its `metadata`.

    Raises:
        CheckpointError: more than one item to choose from.
        DamagedError: a damaged index or array.
        HostileError: a trick, such as more announced bytes than a directory of this size can hold.
        UnsupportedError: a codec that is not read, or no array.
    """
    step, directory = _item(path, given)
    size, stored = _measured(directory, given)
    index = orbax_index.read(directory, given)
    database = _database(directory, given)
    if database is not None:
        stored = {key.decode("utf-8", "replace") for key in database.entries}
    _require_named(stored, index.known, given)
    arrays, left_out = tensorstore_arrays.opened(
        directory, index, _value_fn(directory, database), given, is_ocdbt=database is not None
    )
    limits.check_announced(sum(array.nbytes for array in arrays.values()), size, given)
    limits.check_chunks(sum(array.num_chunks for array in arrays.values()), size, given)
    leaves = {name: array.spec for name, array in arrays.items()}
    metadata = {**_custom_metadata(directory, step), **index.texts}

    def read_fn(names: Sequence[str]) -> dict[str, np.ndarray]:
        return tensorstore_arrays.read(arrays, names, given)

    left_out |= index.left_out
    return Checkpoint(given, "orbax", leaves, metadata, directory, read_fn, left_out=left_out)


def write_checkpoint(path: pathlib.Path, leaves: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes what `orbax.checkpoint.StandardCheckpointer` would write; metadata as its custom metadata.

    Args:
        path: directory to create.
        leaves: `{leaf name: array}`; nested at `/`.
        metadata: text beside the leaves.

    Raises:
        CheckpointError: a leaf has no elements, which Orbax cannot store.
    """
    for name, leaf in leaves.items():
        if leaf.size == 0:
            raise CheckpointError(
                f"{path}: leaf {name!r}: expected at least one element, got shape {leaf.shape}, "
                "which Orbax cannot store; leave it out, or save as safetensors"
            )
    tree = trees.unflatten(leaves)
    with quiet_absl():
        from orbax import checkpoint as ocp

        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(
                path.absolute(),
                args=ocp.args.StandardSave(tree),
                custom_metadata=dict(sorted(metadata.items())),
            )


def _item(path: pathlib.Path, given: str) -> tuple[pathlib.Path, pathlib.Path]:
    """The step, the latest one of a run, and the directory of the one tree in it."""
    items = _items(path)
    if not items:
        steps = _steps(path)
        path = steps[max(steps)]
        items = _items(path)
    if len(items) > 1:
        names = ", ".join(sorted(item.name for item in items))
        raise CheckpointError(
            f"{given}: expected one tree of arrays, got the items {names}; pass the one you mean, "
            f"such as {path / min(items).name}"
        )
    return path, items[0]


def _items(path: pathlib.Path) -> list[pathlib.Path]:
    """Directories with an index: the path itself, or else its children (`default`, `state`, ...)."""
    if (path / orbax_index.INDEX).is_file():
        return [path]
    return [
        child for child in path.iterdir() if not is_unfinished(child.name) and (child / orbax_index.INDEX).is_file()
    ]


def _steps(run: pathlib.Path) -> dict[int, pathlib.Path]:
    named = {child: _STEP_NAME.fullmatch(child.name) for child in run.iterdir() if child.is_dir()}
    return {int(match[1]): child for child, match in named.items() if match and _items(child)}


def _measured(directory: pathlib.Path, given: str) -> tuple[int, set[str]]:
    """Bytes on disk and metadata of arrays; refuses what reading could hang on: devices, pipes, broken links."""
    size, metadata, pending = 0, set[str](), [os.fspath(directory)]
    while pending:
        with os.scandir(pending.pop()) as children:
            for child in children:
                if child.is_file():
                    size += child.stat().st_size
                    if child.name in zarr_metadata.FILE_NAMES:
                        metadata.add(pathlib.PurePath(os.path.relpath(child.path, directory)).as_posix())
                elif not child.is_dir():
                    name = os.path.relpath(child.path, directory)
                    if child.is_symlink():
                        raise refusals.damaged(given, "files and folders only", f"{name}, a broken link")
                    raise refusals.hostile(given, "files and folders only", f"{name}, a special file")
                elif not child.is_symlink():
                    pending.append(child.path)
    return size, metadata


def _require_named(stored: set[str], known: frozenset[str], given: str) -> None:
    """Refuses arrays that the index does not name: a reader of the index would never see them."""
    strangers = [key for key in stored if "/" in key and not any(folder in known for folder in _folders(key))]
    if strangers:
        found = f"{len(strangers)} parts of others, such as {header.shown(min(strangers))}"
        raise refusals.damaged(given, f"the arrays that {orbax_index.INDEX} names", found)


def _folders(key: str) -> list[str]:
    """All that a key can be below."""
    parts = key.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _database(directory: pathlib.Path, given: str) -> ocdbt.Database | None:
    """The database of the arrays, checked; None where each has a folder."""
    if not (directory / ocdbt.MANIFEST).is_file():
        return None
    try:
        return ocdbt.opened(directory)
    except ValueError as error:
        raise refusals.because(error, given, "a database of arrays", header.shown(str(error))) from error


def _value_fn(directory: pathlib.Path, database: ocdbt.Database | None) -> tensorstore_arrays.ValueFn:
    """Reads metadata by key."""
    if database is None:
        return lambda key: _start(directory / key)
    return lambda key: bytes(database.value(key)[: zarr_metadata.MAX_BYTES + 1])


def _start(path: pathlib.Path) -> bytes:
    with path.open("rb") as file:
        return file.read(zarr_metadata.MAX_BYTES + 1)


def _custom_metadata(directory: pathlib.Path, step: pathlib.Path) -> dict[str, str]:
    for folder in (directory, step):
        if (folder / _STEP_METADATA).is_file():
            found = header.read(folder / _STEP_METADATA).get("custom_metadata")
            if isinstance(found, dict):
                return {name: value if isinstance(value, str) else str(value) for name, value in found.items()}
    return {}
