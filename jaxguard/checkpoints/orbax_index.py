"""The index of an Orbax directory: which arrays it holds, and where they are stored."""

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxguard.checkpoints import header, trees
from jaxguard.errors import CheckpointError

INDEX = "_METADATA"
_STRINGS = "_strings.json"
_ARRAY_TYPES = ("jax.Array", "np.ndarray", "scalar")
_REMEDY = "the checkpoint is damaged or hostile, save it again or get it again from its author"


@dataclass(frozen=True)
class Index:
    """The contents of a directory.

    Attributes:
        keys: `{leaf name: key}` of every array: its folder in the directory or in the database.
        texts: `{leaf name: text}` of string leaves.
        is_zarr3: whether arrays are stored in version 3 of Zarr rather than 2.
        are_all_chunks_stored: whether a missing chunk is damage; otherwise it holds zeros.
    """

    keys: Mapping[str, str]
    texts: Mapping[str, str]
    is_zarr3: bool
    are_all_chunks_stored: bool


def read(directory: pathlib.Path, given: str) -> Index:
    """Reads the index; the arrays it names are not opened.

    Args:
        directory: holds the index.
        given: the path as the user wrote it.

    Raises:
        CheckpointError: a damaged index, no array, or names that leave the directory.
    """
    index = header.read(directory / INDEX)
    strings = header.read(directory / _STRINGS) if (directory / _STRINGS).is_file() else {}
    keys, texts = _checked_keys(index.get("tree_metadata"), strings, given)
    return Index(keys, texts, index.get("use_zarr3") is True, index.get("store_array_data_equal_to_fill_value") is True)


def _checked_keys(tree: Any, strings: Mapping[str, Any], given: str) -> tuple[dict[str, str], dict[str, str]]:
    """Keys of every array leaf under its jaxguard name, and the string leaves."""
    if not isinstance(tree, dict):
        raise CheckpointError(f"{given}: expected tree_metadata in {INDEX}, found {header.shown(tree)}; {_REMEDY}")
    keys: dict[str, str] = {}
    texts: dict[str, str] = {}
    for entry in tree.values():
        try:
            path = tuple(str(step["key"]) for step in entry["key_metadata"])
            value = entry["value_metadata"]
            kind, is_empty = value["value_type"], value["skip_deserialize"]
        except (TypeError, KeyError) as error:
            raise CheckpointError(
                f"{given}: expected key_metadata and value_metadata of every leaf in {INDEX}, "
                f"found {header.shown(entry)}; {_REMEDY}"
            ) from error
        name, key = trees.SEPARATOR.join(path), ".".join(path)
        if is_empty:
            continue
        if kind == "string":
            texts[name] = str(strings.get(key, ""))
            continue
        if kind not in _ARRAY_TYPES:
            raise CheckpointError(
                f"{given}: leaf {header.shown(name)}: expected a value type of {', '.join(_ARRAY_TYPES)}, "
                f"found {header.shown(kind)}; save the checkpoint without that leaf"
            )
        if name in keys or {"", ".", ".."} & set(key.split("/")) or "\0" in name:
            raise CheckpointError(
                f"{given}: leaf {header.shown(name)}: expected a name of its own inside the directory, "
                f"found one that leaves it or occurs twice; {_REMEDY}"
            )
        keys[name] = key
    if not keys:
        raise CheckpointError(f"{given}: expected at least one leaf, found none; save the checkpoint again")
    return keys, texts
