"""PyTorch's stream before version 1.6: five pickles, then the storages one after the other.

The pickles are a magic number, the protocol, facts about the machine, the object, and the keys of its storages; each
storage is a count of elements, 64 bits, and its content. Both are little-endian whatever the machine was.
"""

import pathlib
from typing import Any, BinaryIO, cast

import numpy as np

from jaxguard.checkpoints import header, limits, pickle_program, pickled, pytorch, torch_pickle
from jaxguard.checkpoints.checkpoint import Checkpoint
from jaxguard.checkpoints.torch_pickle import Storage
from jaxguard.errors import CheckpointError

_MAGIC = 0x1950A86A20F9469CFC6C
_MAGIC_BYTES = _MAGIC.to_bytes(10, "little")
_PROTOCOL = 1001
_COUNT_BYTES = 8
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257
_TAR_MEMBERS = (b"sys_info\0", b"pickle\0", b"tensors\0", b"storages\0")
_REMEDY = "the download was cut short, or the file is damaged or hostile; get it again from its author"


def is_pytorch_legacy(path: pathlib.Path) -> bool:
    """True for a pickle of PyTorch's magic number, and for the tar archives of PyTorch before 0.1.10."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(_TAR_MAGIC_AT + len(_TAR_MAGIC))
    return (start.startswith(b"\x80") and _MAGIC_BYTES in start[:32]) or _is_old_tar(start)


def open_checkpoint(path: pathlib.Path, given: str) -> Checkpoint:
    """Opens what `torch.save` wrote before version 1.6, without torch.

    Args:
        path: a regular file; it must not be shortened in place while the arrays are in use.
        given: the path as the user wrote it.

    Returns:
        A checkpoint with the model's names as PyTorch gave them; `read` returns read-only views of the file, or copies
        where a storage does not lie on a multiple of its element size.

    Raises:
        CheckpointError: a stream or a pickle that is not sound, no model in it, or tensors beyond their storages.
    """
    with path.open("rb") as file:
        if _is_old_tar(file.read(_TAR_MAGIC_AT + len(_TAR_MAGIC))):
            raise CheckpointError(
                f"{given}: expected a checkpoint of PyTorch 0.1.10 or later, found a tar archive from before; "
                "load it with an old PyTorch and save it again"
            )
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Any:
        found = _persistent(identity)
        if isinstance(found, Storage):
            known = storages.setdefault(found.key, found)
            if known.itemsize != found.itemsize:
                raise ValueError(f"the storage {header.shown(found.key)} with elements of two sizes")
        return found

    with pickled.mapped(path, given) as mapped:
        source = cast(BinaryIO, mapped)
        for expected in (_MAGIC, _PROTOCOL):
            number = pickle_program.read(source, given, {}).result
            if number != expected:
                raise CheckpointError(
                    f"{given}: expected the number {expected}, found {header.shown(number)}; {_REMEDY}"
                )
        pickle_program.read(source, given, pickled.BUILDERS)
        program = pickle_program.read(source, given, pytorch.BUILDERS, storage)
        keys = pickle_program.read(source, given, {}).result
        position = mapped.tell()
    content = np.memmap(path, dtype=np.uint8, mode="r")
    spans = _spans(keys, storages, content, position, given)
    return pickled.assembled(
        program,
        path,
        given,
        format="pytorch-legacy",
        separator=".",
        storage_fn=lambda key: content[slice(*spans[key])],
        sizes={key: end - first for key, (first, end) in spans.items()},
    )


def _is_old_tar(start: bytes) -> bool:
    return start[_TAR_MAGIC_AT:].startswith(_TAR_MAGIC) and start.startswith(_TAR_MEMBERS)


def _persistent(identity: Any) -> Any:
    """What a persistent id stands for.

    It is `("storage", type, key, device, elements, view)` with `view` None, missing, or `(key, first element,
    elements)` for a part of the storage; or `("module", class, file, source code)` beside a pickled module.
    """
    match identity:
        case ("module", cls, _, _):
            return cls
        case ("storage", kind, key, _, size) | ("storage", kind, key, _, size, None):
            return torch_pickle.storage_of(kind, key, size)
        case ("storage", kind, key, _, _, (_, first, size)):
            return torch_pickle.storage_of(kind, key, size, first)
    raise ValueError("a reference to something other than a storage")


def _spans(
    keys: Any, storages: dict[str, Storage], content: np.ndarray, position: int, given: str
) -> dict[str, tuple[int, int]]:
    """Key of each storage -> its first byte and the one past its last; they follow each other."""
    if not isinstance(keys, list) or len(keys) > limits.MAX_LEAVES:
        raise CheckpointError(f"{given}: expected a list of storage keys, found {header.shown(keys)}; {_REMEDY}")
    spans: dict[str, tuple[int, int]] = {}
    for key in keys:
        if not isinstance(key, str) or key not in storages or key in spans:
            raise CheckpointError(f"{given}: expected the key of a storage, once, found {header.shown(key)}; {_REMEDY}")
        first = position + _COUNT_BYTES
        count = int.from_bytes(content[position:first].tobytes(), "little", signed=True)
        end = first + count * storages[key].itemsize
        if count < 0 or not first <= end <= content.size:
            raise CheckpointError(
                f"{given}: storage {header.shown(key)}: expected its elements inside the {content.size} bytes of the "
                f"file, found {count} announced at byte {position}; {_REMEDY}"
            )
        spans[key] = first, end
        position = end
    return spans
