"""Orbax directories: single checkpoints and `CheckpointManager` runs, OCDBT or one folder per array.

An Orbax checkpoint is a JSON index (`_METADATA`: the keys of every leaf) over TensorStore arrays. Reading
goes to TensorStore directly: no target tree, no device, no process barrier, one leaf at a time if need be,
and every size is known before a byte of data is decoded. Writing goes through Orbax, which owns the format.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxguard.checkpoints import header, orbax_index, trees
from jaxguard.checkpoints.checkpoint import Checkpoint, LeafSpec
from jaxguard.errors import CheckpointError
from jaxguard.logs import quiet_absl

_STEP_METADATA = "_CHECKPOINT_METADATA"
_UNFINISHED = "orbax-checkpoint-tmp"
_STEP_NAME = re.compile(r"(?:[A-Za-z][A-Za-z_-]*[_-])?(\d+)")
_REMEDY = "the checkpoint is damaged or hostile, save it again or get it again from its author"


def is_orbax(path: pathlib.Path) -> bool:
    """True for a directory that holds an Orbax index: itself, in an item folder, or in the steps of a run."""
    return path.is_dir() and bool(_items(path) or _steps(path))


def step_directory(run: pathlib.Path, step: int) -> pathlib.Path | None:
    """The folder of one step of a run, such as `7` or `step_007`; None where it is not there."""
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
        CheckpointError: more than one item to choose from, a damaged index or array, a leaf that is not an
            array of numbers, or more announced bytes than a directory of this size can hold.
    """
    items = _items(path)
    if not items:
        steps = _steps(path)
        path = steps[max(steps)]
        items = _items(path)
    if len(items) > 1:
        names = ", ".join(sorted(item.name for item in items))
        raise CheckpointError(
            f"{given}: expected one tree of arrays, found the items {names}; pass the one you mean, "
            f"such as {path / min(items).name}"
        )
    directory = items[0]
    size = _regular_size(directory, given)
    arrays, texts = orbax_index.open_arrays(directory, given)
    leaves = {name: LeafSpec(tuple(array.shape), array.dtype.numpy_dtype) for name, array in arrays.items()}
    orbax_index.check_sizes(arrays, size, given)

    def read_fn(names: Sequence[str]) -> dict[str, np.ndarray]:
        largest_first = sorted(
            names, key=lambda name: -leaves[name].nbytes
        )  # so that no core waits for a last large one
        pending = {name: arrays[name].read() for name in largest_first}
        found = {}
        for name in names:
            with orbax_index.damage_reported(given, name):
                found[name] = np.asarray(pending[name].result())
        return found

    return Checkpoint(given, "orbax", leaves, {**_custom_metadata(directory, path), **texts}, directory, read_fn)


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
                f"{path}: leaf {name!r}: expected at least one element, found shape {leaf.shape}, "
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


def _items(path: pathlib.Path) -> list[pathlib.Path]:
    """Directories with an index: the path itself, or else its children (`default`, `state`, ...)."""
    if (path / orbax_index.INDEX).is_file():
        return [path]
    return [
        child for child in path.iterdir() if _UNFINISHED not in child.name and (child / orbax_index.INDEX).is_file()
    ]


def _steps(run: pathlib.Path) -> dict[int, pathlib.Path]:
    named = {child: _STEP_NAME.fullmatch(child.name) for child in run.iterdir() if child.is_dir()}
    return {int(match[1]): child for child, match in named.items() if match and _items(child)}


def _regular_size(directory: pathlib.Path, given: str) -> int:
    """Bytes on disk; refuses what reading could hang on: devices, pipes, broken links."""
    size = 0
    for child in directory.rglob("*"):
        if child.is_file():
            size += child.stat().st_size
        elif child.is_symlink() or not child.is_dir():
            raise CheckpointError(
                f"{given}: expected files and folders only, found {child.relative_to(directory)}, a special "
                f"file or a broken link; {_REMEDY}"
            )
    return size


def _custom_metadata(directory: pathlib.Path, step: pathlib.Path) -> dict[str, str]:
    for folder in (directory, step):
        if (folder / _STEP_METADATA).is_file():
            found = header.read(folder / _STEP_METADATA).get("custom_metadata")
            if isinstance(found, dict):
                return {name: value if isinstance(value, str) else str(value) for name, value in found.items()}
    return {}
