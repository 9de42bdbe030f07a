"""From what a pickle describes to a checkpoint: the model's leaves, checked, and metadata on what was left out."""

import itertools
import mmap
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxguard.checkpoints import header, limits, numpy_pickle, pickle_containers, refusals, state_dict
from jaxguard.checkpoints.checkpoint import Checkpoint
from jaxguard.checkpoints.pickle_objects import Record, Unreadable
from jaxguard.checkpoints.pickle_program import Program
from jaxguard.checkpoints.torch_pickle import StorageFn, Tensor
from jaxguard.checkpoints.training_state import MODEL_KEYS

BUILDERS = {**numpy_pickle.BUILDERS, **pickle_containers.BUILDERS}
"""What a pickle of arrays may refer to and be understood."""

_MAX_NOTES, _MAX_NOTE_LENGTH, _MAX_LOOKS, _MAX_NAMES = 256, 1000, 10_000, 50


def mapped(path: pathlib.Path, given: str, limit: int) -> mmap.mmap:
    """At most the first `limit` bytes of a file as a memory map, which reads like a file.

    Raises:
        DamagedError: the file is empty.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size == 0:
            raise refusals.damaged(given, "a pickle", "an empty file")
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
    beside: Mapping[str, str] | None = None,
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
        beside: parts of the file that are not read, `{name: what it is}`.

    Returns:
        The checkpoint, with everything that holds arrays; which of them are the model's is not decided here. Its
        metadata say which classes were not imported (`foreign_classes`), and, as text, the numbers and words beside the
        model.

    Raises:
        UnsupportedError: no array.
        DamagedError: a tensor that its storage does not cover.
        HostileError: see `state_dict.flattened`.
    """
    arrays = state_dict.flattened(program.result, given)
    if not arrays:
        what = "one without any" + (f", but references to {_listing(program.foreign)}" if program.foreign else "")
        remedy = "nothing of it was run: save the model's state_dict, or its weights as safetensors"
        raise refusals.unsupported(given, "a pickle that holds arrays or tensors", what, remedy)
    leaves: dict[str, state_dict.Leaf] = {}
    paths: dict[str, tuple[str, ...]] = {}
    for keys, leaf in arrays.items():
        name = "\0".join(keys)  # what keys join to may be the same for two of them
        leaves[name], paths[name] = leaf, keys
    left_out, specs, places = {}, {}, {}
    for name, leaf in leaves.items():
        shown = separator.join(paths[name])
        problem = _problem(shown, leaf, sizes, given)
        if problem:
            left_out[name] = problem
        elif not isinstance(leaf, Unreadable) and leaf.spec is not None:
            specs[name] = leaf.spec
            if isinstance(leaf, Tensor) and leaf.spec.nbytes:
                places[name] = (leaf.storage.key, leaf.storage.first, leaf.first, leaf.strides, leaf.spec)
    limits.check_announced(sum(spec.nbytes for spec in specs.values()), path.stat().st_size, given)

    def read_fn(names: Sequence[str]) -> dict[str, np.ndarray]:
        stores: dict[str, np.ndarray] = {}

        def once(key: str) -> np.ndarray:
            assert storage_fn is not None
            if key not in stores:
                stores[key] = storage_fn(key)
            return stores[key]

        return {name: _read(name, leaves[name], once, big_endian=big_endian, given=given) for name in names}

    return Checkpoint(
        given,
        format,
        specs,
        _metadata(program),
        path,
        read_fn,
        left_out=left_out,
        beside=beside or {},
        paths=paths,
        separator=separator,
        places=places,
    )


def behind(count: int, start: bytes, given: str) -> dict[str, str]:
    """What is behind the last thing that is read of a file, in words for `Checkpoint.beside`.

    Args:
        count: bytes.
        start: the first of them.
        given: the path as the user wrote it.

    Raises:
        UnsupportedError: they begin as another pickle does.
    """
    if start[:1] in (b"\x80", b"(", b"c", b"]", b"}"):
        remedy = "save what they hold as one"
        raise refusals.unsupported(given, "one pickle", f"{count:,} bytes of others behind it", remedy)
    return {"(behind the pickle)": f"{count:,} bytes that nothing refers to"} if count else {}


def _problem(name: str, leaf: Any, sizes: Mapping[str, int] | None, given: str) -> str:
    """Why an array cannot be a leaf; empty where it can."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise refusals.damaged(given, "leaf names that are text", repr(name[:80])) from error
    problem = leaf.kind if isinstance(leaf, Unreadable) else None if leaf.spec else leaf.problem
    if problem is not None:
        return f"{problem}{refusals.NOT_SUPPORTED}"
    if isinstance(leaf, Tensor) and (found := (sizes or {}).get(leaf.storage.key, -1)) < leaf.storage.nbytes:
        what = "no such storage" if found < 0 else f"{found} bytes"
        expected = f"a storage {header.shown(leaf.storage.key)} of {leaf.storage.nbytes} bytes"
        raise refusals.damaged(f"{given}: leaf {header.shown(name)}", expected, what)
    return ""


def _read(name: str, leaf: Any, storage_fn: StorageFn, *, big_endian: bool, given: str) -> np.ndarray:
    if isinstance(leaf, Tensor):
        return leaf.read(storage_fn, big_endian=big_endian)
    try:
        return leaf.read()
    except ValueError as error:
        where = f"{given}: leaf {header.shown(name)}"
        raise refusals.damaged(where, "bytes", header.shown(str(error))) from error


def _metadata(program: Program) -> dict[str, str]:
    notes = dict(itertools.islice(_notes(program.result), _MAX_NOTES))
    if program.foreign:
        notes["foreign_classes"] = _listing(program.foreign)
    return notes


def _notes(root: Any) -> Iterator[tuple[str, str]]:
    """Numbers and words beside the model, and those one level below, as in `args` and `hyper_parameters`."""
    looks_left = _MAX_LOOKS
    if not isinstance(root, dict | list | tuple):
        return
    levels = [state_dict.entries(root)]
    levels += [state_dict.entries(levels[0][key]) for key in MODEL_KEYS if isinstance(levels[0].get(key), dict)]
    for level in levels:
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
