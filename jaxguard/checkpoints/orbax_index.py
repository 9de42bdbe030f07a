"""The index of an Orbax directory: which arrays it holds, and where they are stored."""

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxguard.checkpoints import header, refusals, trees

INDEX = "_METADATA"
_STRINGS = "_strings.json"
_ARRAY_TYPES = ("jax.Array", "np.ndarray", "scalar")


@dataclass(frozen=True)
class Index:
    """The contents of a directory.

    Attributes:
        keys: `{leaf name: key}` of every array: its folder in the directory or in the database.
        texts: `{leaf name: text}` of string leaves.
        left_out: `{leaf name: what it is}` of leaves of other kinds.
        known: keys of all entries, those without an array included.
        is_zarr3: whether arrays are stored in version 3 of Zarr rather than 2.
        are_all_chunks_stored: whether a missing chunk is damage; otherwise it holds zeros.
    """

    keys: Mapping[str, str]
    texts: Mapping[str, str]
    left_out: Mapping[str, str]
    known: frozenset[str]
    is_zarr3: bool
    are_all_chunks_stored: bool


def read(directory: pathlib.Path, given: str) -> Index:
    """Reads the index; the arrays it names are not opened.

    Args:
        directory: holds the index.
        given: the path as the user wrote it.

    Raises:
        DamagedError: a damaged index.
        HostileError: names that leave the directory.
        UnsupportedError: no array.
    """
    index = header.read(directory / INDEX)
    strings = header.read(directory / _STRINGS) if (directory / _STRINGS).is_file() else {}
    keys, texts, left_out, known = _checked_keys(index.get("tree_metadata"), strings, given)
    are_all_stored = index.get("store_array_data_equal_to_fill_value") is True
    return Index(keys, texts, left_out, known, index.get("use_zarr3") is True, are_all_stored)


def _checked_keys(
    tree: Any, strings: Mapping[str, Any], given: str
) -> tuple[dict[str, str], dict[str, str], dict[str, str], frozenset[str]]:
    """Keys of every array leaf under its jaxguard name, the string leaves, leaves of other kinds, and all keys."""
    if not isinstance(tree, dict):
        raise refusals.damaged(given, f"tree_metadata in {INDEX}", header.shown(tree))
    keys: dict[str, str] = {}
    texts: dict[str, str] = {}
    left_out: dict[str, str] = {}
    known: set[str] = set()
    for entry in tree.values():
        try:
            path = tuple(str(step["key"]) for step in entry["key_metadata"])
            value = entry["value_metadata"]
            kind, is_empty = value["value_type"], value["skip_deserialize"]
        except (TypeError, KeyError) as error:
            expected = f"key_metadata and value_metadata of every leaf in {INDEX}"
            raise refusals.damaged(given, expected, header.shown(entry)) from error
        name, key = trees.SEPARATOR.join(path), ".".join(path)
        known.add(key)
        if is_empty:
            continue
        if kind == "string":
            texts[name] = str(strings.get(key, ""))
            continue
        if kind not in _ARRAY_TYPES:
            left_out[name] = f"a value of type {header.shown(kind)}{refusals.NOT_SUPPORTED}"
            continue
        if name in keys or {"", ".", ".."} & set(key.split("/")) or "\0" in name:
            where = f"{given}: leaf {header.shown(name)}"
            expected = "a name of its own inside the directory"
            raise refusals.hostile(where, expected, "one that leaves it or occurs twice")
        keys[name] = key
    if not keys and not left_out:
        raise refusals.unsupported(given, "at least one array", "a tree without any", "save the model's variables")
    return keys, texts, left_out, frozenset(known)
