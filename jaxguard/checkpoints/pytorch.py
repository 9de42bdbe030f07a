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
_BYTE_ORDERS: Mapping[bytes, bool] = {b"little": False, b"big": True}


def is_pytorch(path: pathlib.Path) -> bool:
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
    return pickled.assembled(
        pickle_program.read(opened.read(mains[0], MAX_PICKLE_BYTES), given, BUILDERS, _storage),
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
    )


def _is_main(name: str) -> bool:
    return name.endswith(_PICKLE) and name.count("/") == 1


def _storage(identity: Any) -> Storage:
    """The storage of a persistent id `("storage", type, key, device, elements)`."""
    match identity:
        case ("storage", kind, key, _, size):
            return torch_pickle.storage_of(kind, key, size)
    raise ValueError("a reference to something other than a storage")
