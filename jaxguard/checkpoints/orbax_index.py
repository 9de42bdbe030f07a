"""The index of an Orbax directory, and the TensorStore arrays it names, opened and measured but not read."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from jaxguard.checkpoints import header, limits, trees
from jaxguard.checkpoints.checkpoint import DTYPES, LeafSpec
from jaxguard.errors import CheckpointError

INDEX = "_METADATA"
_STRINGS = "_strings.json"
_OCDBT_MANIFEST = "manifest.ocdbt"
_ARRAY_TYPES = ("jax.Array", "np.ndarray", "scalar")
_CONTEXT = {
    "file_io_mode": {"mode": "memmap"},  # no copy between the page cache and the decompressor
    "data_copy_concurrency": {"limit": 16},  # decompresses on all cores, also while some threads wait for pages
}
_REMEDY = "the checkpoint is damaged or hostile, save it again or get it again from its author"


def open_arrays(directory: pathlib.Path, given: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Opens every array of the index, concurrently; only the arrays' own metadata is read.

    Args:
        directory: holds the index; every file below it is a regular one.
        given: the path as the user wrote it.

    Returns:
        `{leaf name: TensorStore array}`, and the string leaves as `{leaf name: text}`.

    Raises:
        CheckpointError: a damaged index, no array at all, or an array that cannot be opened.
    """
    import tensorstore

    index = header.read(directory / INDEX)
    strings = header.read(directory / _STRINGS) if (directory / _STRINGS).is_file() else {}
    keys, texts = _checked_keys(index.get("tree_metadata"), strings, given)
    driver: dict[str, Any] = {"driver": "zarr3" if index.get("use_zarr3") is True else "zarr"}
    if index.get("store_array_data_equal_to_fill_value") is True:  # then a chunk that is not there is lost, not zero
        driver["fill_missing_data_reads"] = False
    base = f"{directory.absolute()}/"
    is_ocdbt = (directory / _OCDBT_MANIFEST).is_file()
    context = tensorstore.Context(_CONTEXT)
    batch = tensorstore.Batch()  # their metadata lies together in few files, and is read together
    pending = {}
    for name, path in keys.items():
        folder = f"{'.'.join(path)}/"
        if is_ocdbt:
            store = {"driver": "ocdbt", "base": {"driver": "file", "path": base}, "path": folder}
        else:
            store = {"driver": "file", "path": base + folder}
        with damage_reported(given, name):
            spec = {**driver, "kvstore": store}
            pending[name] = tensorstore.open(spec, read=True, open=True, context=context, batch=batch)
    batch.submit()
    arrays = {}
    for name, future in pending.items():
        with damage_reported(given, name):
            arrays[name] = future.result()
    return arrays, texts


def check_sizes(arrays: Mapping[str, Any], size: int, given: str) -> None:
    """Refuses arrays that are no numbers, or that together announce more bytes than a directory of `size` can hold.

    Raises:
        CheckpointError: names the leaf, or the sum.
    """
    announced = 0
    for name, array in arrays.items():
        dtype = array.dtype.numpy_dtype
        if dtype not in DTYPES.values():
            raise CheckpointError(
                f"{given}: leaf {header.shown(name)}: expected numbers, found dtype {dtype}; "
                "save the checkpoint without that leaf"
            )
        # A chunk is decoded whole, however small the array that lies in it.
        shapes = (array.shape, array.chunk_layout.read_chunk.shape or ())
        announced += max(LeafSpec(tuple(shape), dtype).nbytes for shape in shapes)
    limits.check_announced(announced, size, given)


@contextlib.contextmanager
def damage_reported(given: str, name: str) -> Iterator[None]:
    """Turns what TensorStore raises about the leaf `name` into a CheckpointError."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, NotImplementedError, OverflowError) as error:
        reason = str(error).split(" [", maxsplit=1)[0][:200]
        raise CheckpointError(
            f"{given}: leaf {header.shown(name)}: expected a readable array, found {reason!r}; {_REMEDY}"
        ) from error


def _checked_keys(
    tree: Any, strings: Mapping[str, Any], given: str
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Keys of every array leaf under its jaxguard name, and the string leaves."""
    if not isinstance(tree, dict):
        raise CheckpointError(f"{given}: expected tree_metadata in {INDEX}, found {header.shown(tree)}; {_REMEDY}")
    keys: dict[str, tuple[str, ...]] = {}
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
        name = trees.SEPARATOR.join(path)
        if is_empty:
            continue
        if kind == "string":
            texts[name] = str(strings.get(".".join(path), ""))
            continue
        if kind not in _ARRAY_TYPES:
            raise CheckpointError(
                f"{given}: leaf {header.shown(name)}: expected a value type of {', '.join(_ARRAY_TYPES)}, "
                f"found {header.shown(kind)}; save the checkpoint without that leaf"
            )
        if name in keys or {"", ".", ".."} & set(".".join(path).split("/")) or "\0" in name:
            raise CheckpointError(
                f"{given}: leaf {header.shown(name)}: expected a name of its own inside the directory, "
                f"found one that leaves it or occurs twice; {_REMEDY}"
            )
        keys[name] = path
    if not keys:
        raise CheckpointError(f"{given}: expected at least one leaf, found none; save the checkpoint again")
    return keys, texts
