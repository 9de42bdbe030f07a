"""From what a pickle describes to a checkpoint: the model's leaves, checked, and metadata on what was left out."""

import itertools
import mmap
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxguard.checkpoints import header, limits, numpy_pickle, pickle_containers, state_dict
from jaxguard.checkpoints.checkpoint import Checkpoint
from jaxguard.checkpoints.pickle_objects import Record, Unreadable
from jaxguard.checkpoints.pickle_program import Program
from jaxguard.checkpoints.torch_pickle import StorageFn, Tensor
from jaxguard.errors import CheckpointError

BUILDERS = {**numpy_pickle.BUILDERS, **pickle_containers.BUILDERS}
"""What a pickle of arrays may refer to and be understood."""

_MAX_NOTES, _MAX_NOTE_LENGTH, _MAX_LOOKS, _MAX_NAMES = 256, 1000, 10_000, 50
_REMEDY = "the file is damaged or hostile, get it again from its author"


def mapped(path: pathlib.Path, given: str, limit: int) -> mmap.mmap:
    """At most the first `limit` bytes of a file as a memory map, which reads like a file.

    Raises:
        CheckpointError: the file is empty.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size == 0:
            raise CheckpointError(f"{given}: expected a pickle, found an empty file; download or save it again")
        return mmap.mmap(file.fileno(), min(size, limit), access=mmap.ACCESS_READ)


def assembled(
    program: Program,
    path: pathlib.Path,
    given: str,
    *,
    format: str,
    separator: str,
    storage_fn: StorageFn | None = None,
    sizes: Mapping[str, int] | None = None,
    big_endian: bool = False,
) -> Checkpoint:
    """Makes a checkpoint of the model that a pickle describes.

    Args:
        program: what was read.
        path: the file, for its size and hash.
        given: the path as the user wrote it.
        format: row of the FORMATS table.
        separator: joins nested keys to leaf names.
        storage_fn: where tensors find the bytes of their storage.
        sizes: `{key: bytes}` of the storages that there are.
        big_endian: whether storages are.

    Returns:
        The checkpoint. Its metadata say under which key the model was (`state_dict`), what else holds arrays and
        was left out (`left_out`), which classes were not imported (`foreign_classes`), and, as text, the numbers
        and words beside the model.

    Raises:
        CheckpointError: no model, an array that cannot be read, or a tensor that its storage does not cover.
    """
    selection = state_dict.select(program.result, given, separator)
    if selection is None:
        came = f"none, but references to {_listing(program.foreign)}" if program.foreign else "none"
        raise CheckpointError(
            f"{given}: expected a pickle that holds arrays or tensors, found {came}; "
            "nothing of it was run: save the model's state_dict, or its weights as safetensors"
        )
    leaves = selection.leaves
    for name, leaf in leaves.items():
        _check_readable(name, leaf, sizes or {}, given)
    specs = {name: leaf.spec for name, leaf in leaves.items() if not isinstance(leaf, Unreadable) and leaf.spec}
    limits.check_announced(sum(spec.nbytes for spec in specs.values()), path.stat().st_size, given)

    def read_fn(names: Sequence[str]) -> dict[str, np.ndarray]:
        stores: dict[str, np.ndarray] = {}

        def once(key: str) -> np.ndarray:
            assert storage_fn is not None
            if key not in stores:
                stores[key] = storage_fn(key)
            return stores[key]

        return {name: _read(name, leaves[name], once, big_endian=big_endian, given=given) for name in names}

    return Checkpoint(given, format, specs, _metadata(program, selection), path, read_fn)


def _check_readable(name: str, leaf: Any, sizes: Mapping[str, int], given: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{given}: expected leaf names that are text, found {name[:80]!r}; {_REMEDY}") from error
    problem = leaf.kind if isinstance(leaf, Unreadable) else None if leaf.spec else leaf.problem
    if problem is not None:
        raise CheckpointError(
            f"{given}: leaf {header.shown(name)}: expected a dense array of numbers, found {problem}; "
            "convert it (dequantize, to_dense, float) and save the state_dict again"
        )
    if isinstance(leaf, Tensor) and (found := sizes.get(leaf.storage.key, -1)) < leaf.storage.nbytes:
        came = "no such storage" if found < 0 else f"{found} bytes"
        raise CheckpointError(
            f"{given}: leaf {header.shown(name)}: expected a storage {header.shown(leaf.storage.key)} of "
            f"{leaf.storage.nbytes} bytes, found {came}; the download was cut short or {_REMEDY}"
        )


def _read(name: str, leaf: Any, storage_fn: StorageFn, *, big_endian: bool, given: str) -> np.ndarray:
    if isinstance(leaf, Tensor):
        return leaf.read(storage_fn, big_endian=big_endian)
    try:
        return leaf.read()
    except ValueError as error:
        raise CheckpointError(
            f"{given}: leaf {header.shown(name)}: expected bytes, found {header.shown(str(error))}; {_REMEDY}"
        ) from error


def _metadata(program: Program, selection: state_dict.Selection) -> dict[str, str]:
    notes = dict(itertools.islice(_notes(selection), _MAX_NOTES))
    if selection.path:
        notes["state_dict"] = ".".join(map(_printable, selection.path))
    if selection.others:
        notes["left_out"] = _listing(selection.others)
    if program.foreign:
        notes["foreign_classes"] = _listing(program.foreign)
    return notes


def _notes(selection: state_dict.Selection) -> Iterator[tuple[str, str]]:
    """Numbers and words beside the model, and those one level below, as in `args` and `hyper_parameters`."""
    looks_left = _MAX_LOOKS
    for level in selection.levels:
        for key, value in level.items():
            inner = state_dict.entries(value) if isinstance(value, dict | Record) and looks_left > 0 else {}
            looks_left -= len(inner)
            for name, word in [(key, value), *((f"{key}.{below}", word) for below, word in inner.items())]:
                if isinstance(word, str | int | float):
                    yield _printable(name), _printable(str(word))


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(map(_printable, names[:_MAX_NAMES])) + more


def _printable(text: str) -> str:
    return text[:_MAX_NOTE_LENGTH].encode("utf-8", "backslashreplace").decode()
