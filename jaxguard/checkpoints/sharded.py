"""A checkpoint in several files: an index such as `model.safetensors.index.json` maps leaves to shards.

Index and shards must name the same leaves. Shards are in the index's folder, so that an index cannot lead elsewhere.
Each is safetensors, Flax msgpack or a PyTorch archive.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from jaxguard.checkpoints import header, limits, refusals
from jaxguard.checkpoints.checkpoint import Checkpoint
from jaxguard.errors import CheckpointError

INDEX_SUFFIX = ".index.json"
MAX_SHARDS = 10_000
_WEIGHT_MAP = "weight_map"
_BESIDE = "shards that are files beside the index"


def recognises(path: pathlib.Path) -> bool:
    """True for a JSON file that maps weights to files."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if file.read(64).lstrip()[:1] != b"{" or path.stat().st_size > header.MAX_HEADER_BYTES:
            return False
        file.seek(0)
        content = file.read(header.MAX_HEADER_BYTES)
    return f'"{_WEIGHT_MAP}"'.encode() in content


def files_named(path: pathlib.Path) -> tuple[str, ...]:
    """The files that an index names, none where it is not one; nothing is checked."""
    try:
        named = header.read(path).get(_WEIGHT_MAP) if recognises(path) else None
    except (CheckpointError, OSError):
        return ()
    return tuple({name: None for name in named.values() if isinstance(name, str)}) if isinstance(named, dict) else ()


def open_checkpoint(path: pathlib.Path, given: str) -> Checkpoint:
    """Checks the index and the header of every shard, and maps the leaves.

    Args:
        path: the index; its shards are in the same folder.
        given: the path as the user wrote it.

    Returns:
        A checkpoint like that of one file, its leaves in the order of the index; its `sha256` covers index and shards.

    Raises:
        DamagedError: a shard is missing or damaged; only the index or only a shard names a leaf.
        HostileError: a shard elsewhere.
        UnsupportedError: a shard in another format.
    """
    with path.open("rb") as file:
        fields = header.parse(file.read(header.MAX_HEADER_BYTES + 1), given)
    weight_map = fields.get(_WEIGHT_MAP)
    if not isinstance(weight_map, dict) or not weight_map or len(weight_map) > limits.MAX_LEAVES:
        raise refusals.damaged(given, f"a {_WEIGHT_MAP} of leaf names and files", header.shown(weight_map))
    files = _checked_files(path.parent, list(weight_map.values()), given)
    shards = {file: _opened(location, f"{given}: {file}") for file, location in files.items()}
    owners: dict[str, str] = {}
    for file, shard in shards.items():
        for name in shard.leaves:
            if name in owners:
                where = f"{given}: leaf {header.shown(name)}"
                raise refusals.hostile(where, "it in one shard", f"it in {owners[name]} and {file}")
            owners[name] = file
    misplaced = [name for name, file in weight_map.items() if owners.get(name) != file]
    extra = [name for name in owners if name not in weight_map]
    if misplaced or extra:
        found = (
            f"{len(misplaced)} that are not in the shard it names ({header.shown(misplaced[:3])}) and {len(extra)} "
            f"that it does not name ({header.shown(extra[:3])})"
        )
        raise refusals.damaged(given, "the leaves of the shards to be those of the index", found)
    leaves = {name: shards[file].leaves[name] for name, file in weight_map.items()}

    def read_fn(names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: shards[owners[name]].read(name) for name in names}

    metadata = {name: text for shard in shards.values() for name, text in shard.metadata.items()}
    described = fields.get("metadata")
    if isinstance(described, dict):
        metadata |= {name: str(value) for name, value in described.items() if isinstance(value, (str, int, float))}
    return Checkpoint(given, "sharded", leaves, metadata, path, read_fn, tuple(files.values()))


def _opened(path: pathlib.Path, given: str) -> Checkpoint:
    from jaxguard.checkpoints import msgpack, pytorch, safetensors  # most files have no shards

    for reader in (safetensors, msgpack, pytorch):
        if reader.recognises(path):
            return reader.open_checkpoint(path, given)
    known = "a shard in safetensors, msgpack or PyTorch's zip"
    raise refusals.unsupported(given, known, "another format", "merge the shards into one file")


def _checked_files(folder: pathlib.Path, files: Sequence[object], given: str) -> dict[str, pathlib.Path]:
    """`{name: path}` of the shards, sorted: files in `folder`, or links into the blobs of a Hugging Face cache."""
    names: set[str] = set()
    for file in files:
        if not isinstance(file, str):
            raise refusals.damaged(given, _BESIDE, header.shown(file))
        if file in ("", ".", "..") or {"/", "\\", "\0"} & set(file) or len(file.encode()) > 255:
            raise refusals.hostile(given, _BESIDE, f"{header.shown(file)}, a path out of its folder")
        names.add(file)
    if len(names) > MAX_SHARDS:
        raise refusals.hostile(given, f"at most {MAX_SHARDS} shards", str(len(names)))
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        found = f"{len(missing)} missing: {', '.join(map(header.shown, missing[:5]))}"
        raise refusals.damaged(given, f"{len(names)} shards beside the index", found)
    allowed = (folder.resolve(), (folder / "../../blobs").resolve())
    for name in sorted(names):
        if (folder / name).resolve().parent not in allowed:
            raise refusals.hostile(given, _BESIDE, f"{header.shown(name)}, a link out of its folder")
    return {name: folder / name for name in sorted(names)}
