"""PyTorch's zip container: `NAME/data.pkl` describes the tensors, `NAME/data/KEY` are their storages, not deflated."""

import pathlib
from collections.abc import Mapping
from typing import Any

from jaxguard.checkpoints import archive, header, pickle_program, pickled, refusals, torch_pickle
from jaxguard.checkpoints.checkpoint import Checkpoint
from jaxguard.checkpoints.pickle_program import MAX_PICKLE_BYTES
from jaxguard.checkpoints.torch_pickle import Storage

BUILDERS = {**torch_pickle.BUILDERS, **pickled.BUILDERS}
"""What a PyTorch checkpoint may refer to and be understood."""

_PICKLE = "/data.pkl"
_PARTS = frozenset(
    {
        *("data.pkl", "byteorder", "version", "constants.pkl", "attributes.pkl", ".data/serialization_id"),
        *(".data/version", ".format_version", ".storage_alignment"),
    }
)
"""What `torch.save` and `torch.jit.save` write beside storages and code."""
_BYTE_ORDERS: Mapping[bytes, bool] = {b"little": False, b"big": True}


def recognises(path: pathlib.Path) -> bool:
    """True for a zip archive with a member `NAME/data.pkl`."""
    return any(_is_main(name) for name in archive.member_names(path))


def open_checkpoint(path: pathlib.Path, given: str) -> Checkpoint:
    """Opens what `torch.save` wrote since version 1.6, and what `torch.jit.save` writes, without torch.

    Args:
        path: a regular file; it must not be shortened in place while the arrays are in use.
        given: the path as the user wrote it.

    Returns:
        A checkpoint with the model's names as PyTorch gave them; `read` returns read-only views of the file.

    Raises:
        DamagedError: an archive or a pickle that is not sound, or tensors beyond their storages.
        HostileError: a trick of the archive or the pickle.
        UnsupportedError: no tensor in it.
    """
    opened = archive.open_archive(path, given)
    mains = [name for name in opened.members if _is_main(name)]
    if len(mains) != 1:
        found = f"{len(mains)}, of which readers take either"
        raise refusals.hostile(given, f"one member NAME{_PICKLE}", found)
    folder = mains[0].removesuffix(_PICKLE)
    storages = f"{folder}/data/"
    order = opened.read(f"{folder}/byteorder", 16) if f"{folder}/byteorder" in opened.members else b"little"
    if order not in _BYTE_ORDERS:
        raise refusals.damaged(given, "byteorder little or big", header.shown(order))
    referred: set[str] = set()

    def storage(identity: Any) -> Storage:
        found = _storage(identity)
        referred.add(found.key)
        return found

    program = pickle_program.read(opened.read(mains[0], MAX_PICKLE_BYTES), given, BUILDERS, storage)
    checkpoint = pickled.assembled(
        program,
        path,
        given,
        format="pytorch",
        separator=".",
        storage_fn=lambda key: opened.view(storages + key),
        sizes={
            name.removeprefix(storages): member.size
            for name, member in opened.members.items()
            if name.startswith(storages)
        },
        big_endian=_BYTE_ORDERS[order],
        beside=opened.beside | _beside(opened, folder),
    )
    unused = sorted(
        name for name in opened.members if name.startswith(storages) and name[len(storages) :] not in referred
    )
    if unused:
        found = f"{len(unused)} that none refers to, such as {header.shown(unused[0])}"
        raise refusals.damaged(given, "storages of the tensors in the pickle", found)
    return checkpoint


def _beside(opened: archive.Archive, folder: str) -> dict[str, str]:
    """Members that are not read, in words; those that loaders need and that hold no weights are passed over."""
    constants = f"{folder}/constants/"
    found: dict[str, str] = {}
    held = [member.size for name, member in opened.members.items() if name.startswith(constants)]
    if held:
        what = f"{len(held)} tensors of {sum(held):,} bytes that are constants of TorchScript code"
        found[f"{constants}*"] = f"{what}{refusals.NOT_SUPPORTED}"
    for name in opened.members:
        inner = name.removeprefix(f"{folder}/")
        is_known = inner in _PARTS or inner.startswith(("data/", "constants/", "code/"))
        if not is_known:
            found[name] = "a member that is no part of the weights"
    return found


def _is_main(name: str) -> bool:
    return name.endswith(_PICKLE) and name.count("/") == 1


def _storage(identity: Any) -> Storage:
    """The storage of a persistent id `("storage", type, key, device, elements)`."""
    match identity:
        case ("storage", kind, key, _, size):
            return torch_pickle.storage_of(kind, key, size)
    raise ValueError("a reference to something other than a storage")
