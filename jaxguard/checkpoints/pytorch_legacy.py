"""PyTorch's stream before version 1.6: five pickles, then the storages one after the other.

The pickles are a magic number, the protocol, facts about the machine, the object, and the keys of its storages; each
storage is a count of elements, 64 bits, and its content. Both are little-endian whatever the machine was.
"""

import mmap
import pathlib
import re
from typing import Any

import numpy as np

from jaxguard.checkpoints import header, limits, mapping, pickle_program, pickled, pytorch, refusals, torch_pickle
from jaxguard.checkpoints.checkpoint import Checkpoint
from jaxguard.checkpoints.pickle_program import Program
from jaxguard.checkpoints.torch_pickle import Storage

_MAGIC = 0x1950A86A20F9469CFC6C
_START = re.compile(rb"\x80[\x02-\x05](?:\x95.{8})?\x8a\n" + re.escape(_MAGIC.to_bytes(10, "little")), re.DOTALL)
_PROTOCOL = 1001
_COUNT_BYTES = 8
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257
_TAR_MEMBERS = (b"sys_info\0", b"pickle\0", b"tensors\0", b"storages\0")


def recognises(path: pathlib.Path) -> bool:
    """True for a pickle of PyTorch's magic number, and for the tar archives of PyTorch before 0.1.10."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(_TAR_MAGIC_AT + len(_TAR_MAGIC))
    return _START.match(start) is not None or _is_old_tar(start)


def open_checkpoint(path: pathlib.Path, given: str) -> Checkpoint:
    """Opens what `torch.save` wrote before version 1.6, without torch.

    Args:
        path: a regular file; it must not be shortened in place while the arrays are in use.
        given: the path as the user wrote it.

    Returns:
        A checkpoint with the model's names as PyTorch gave them; `read` returns read-only views of the file, or copies
        where the offset of a storage is not a multiple of its element size.

    Raises:
        DamagedError: a stream or a pickle that is not sound, or tensors beyond their storages.
        HostileError: a trick of a pickle.
        UnsupportedError: no tensor in it, or a tar archive of PyTorch before 0.1.10.
    """
    with path.open("rb") as file:
        if _is_old_tar(file.read(_TAR_MAGIC_AT + len(_TAR_MAGIC))):
            remedy = "load it with an old PyTorch and save it again"
            expected = "a checkpoint of PyTorch 0.1.10 or later"
            raise refusals.unsupported(given, expected, "a tar archive from before", remedy)
    content = mapping.mapped(path)
    with pickled.mapped(path, given, pickle_program.MAX_PICKLE_BYTES) as source:
        program, storages, end = read_stream(source, content, given)
    return pickled.assembled(
        program,
        path,
        given,
        format="pytorch-legacy",
        separator=".",
        storage_fn=storages.__getitem__,
        sizes={key: storage.size for key, storage in storages.items()},
        beside=pickled.behind(content.size - end, content[end : end + 2].tobytes(), given),
    )


def read_stream(
    source: bytes | mmap.mmap, content: np.ndarray, given: str
) -> tuple[Program, dict[str, np.ndarray], int]:
    """Reads the five pickles and finds the storages behind them.

    Args:
        source: the start of the stream, with all of its pickles.
        content: all of the stream, `[n]` uint8.
        given: the path as the user wrote it.

    Returns:
        What the fourth pickle describes, the storages by key, views of `content`, and the position behind the last.

    Raises:
        DamagedError: a stream that is not sound.
        UnsupportedError: another protocol.
    """
    referred: dict[str, Storage] = {}

    def storage(identity: Any) -> Any:
        found = _persistent(identity)
        if isinstance(found, Storage):
            if not found.itemsize:  # the storages behind it could not be found
                raise refusals.Unsupported(f"a storage of the unknown type {header.shown(found.kind)}")
            known = referred.setdefault(found.key, found)
            if known.itemsize != found.itemsize:
                raise ValueError(f"the storage {header.shown(found.key)} with elements of two sizes")
        return found

    position = 0
    for expected in (_MAGIC, _PROTOCOL):
        number = pickle_program.read(source, given, {}, start=position)
        position = number.end
        if number.result != expected:
            raise refusals.unsupported(given, f"the number {expected}", header.shown(number.result))
    machine = pickle_program.read(source, given, pickled.BUILDERS, start=position)
    program = pickle_program.read(source, given, pytorch.BUILDERS, storage, start=machine.end)
    keys = pickle_program.read(source, given, {}, start=program.end)
    return program, *_storages(keys.result, referred, content, keys.end, given)


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


def _storages(
    keys: Any, referred: dict[str, Storage], content: np.ndarray, position: int, given: str
) -> tuple[dict[str, np.ndarray], int]:
    """Storages by key, which follow each other, and the position behind the last."""
    if not isinstance(keys, list) or len(keys) > limits.MAX_LEAVES:
        raise refusals.damaged(given, "a list of storage keys", header.shown(keys))
    found: dict[str, np.ndarray] = {}
    for key in keys:
        if not isinstance(key, str) or key not in referred or key in found:
            raise refusals.damaged(given, "the key of a storage, once", header.shown(key))
        first = position + _COUNT_BYTES
        count = int.from_bytes(content[position:first].tobytes(), "little", signed=True)
        end = first + count * referred[key].itemsize
        if count < 0 or not first <= end <= content.size:
            where, expected = f"{given}: storage {header.shown(key)}", f"elements inside the {content.size} bytes"
            raise refusals.damaged(where, expected, f"{count} announced at byte {position}")
        found[key] = content[first:end]
        position = end
    return found, position
