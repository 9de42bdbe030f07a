"""Pickles that no container is around: of NumPy or JAX arrays, or of PyTorch tensors that never saw `torch.save`."""

import pathlib
import re
from typing import Any

import numpy as np

from jaxguard.checkpoints import foreign, pickle_program, pickled, pytorch, pytorch_legacy, refusals
from jaxguard.checkpoints.checkpoint import Checkpoint
from jaxguard.checkpoints.pickle_containers import content_of
from jaxguard.checkpoints.torch_pickle import Storage

_START = re.compile(rb"\x80[\x02-\x05]|c[\w.]+\n[\w.]+\n|\((?:[dl]p\d|d\.|l\.|c[\w.]+\n)|[\]}](?:q.|[(.])", re.DOTALL)
"""How pickles of containers, arrays and calls begin, by any protocol."""


def _of_joblib(*_: Any) -> Any:
    raise refusals.Unsupported("an array of joblib, which stands between the opcodes")


_JOBLIB = {
    f"joblib.numpy_pickle.{name}": _of_joblib for name in ("NumpyArrayWrapper", "NDArrayWrapper", "ZNDArrayWrapper")
}
_MAX_STORAGES = 10_000
_NOTHING = np.empty(0, np.uint8)


def recognises(path: pathlib.Path) -> bool:
    """True for the first bytes of a pickle, by any protocol, of a container, an array or a call; not for joblib's."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(256)
        return _START.match(head) is not None and not foreign.is_joblib(head + file.read(foreign.HEAD_BYTES))


def open_checkpoint(path: pathlib.Path, given: str) -> Checkpoint:
    """Opens what `pickle.dump` wrote, running nothing of it.

    Args:
        path: a regular file.
        given: the path as the user wrote it.

    Returns:
        A checkpoint whose content is in memory; names are joined with `/`, and with `.` where PyTorch's tensors are.

    Raises:
        DamagedError: it is no sound pickle.
        HostileError: it is a trick.
        UnsupportedError: it holds no arrays of numbers.
    """
    size = path.stat().st_size
    storages: dict[str, np.ndarray] = {}
    num_bytes = 0

    def stored(content: Any) -> Storage:
        """`torch.storage._load_from_bytes`: each storage is a legacy stream of its own."""
        nonlocal num_bytes
        held = content_of(content)
        num_bytes += len(held)
        if len(storages) >= _MAX_STORAGES or num_bytes > size:
            raise refusals.Trick(f"more than {_MAX_STORAGES} storages, or more in them than in the file")
        stream = bytes(held)
        program, found, _ = pytorch_legacy.read_stream(stream, np.frombuffer(stream, np.uint8), given)
        storage = program.result
        if not isinstance(storage, Storage) or (data := found.get(storage.key, _NOTHING)).size < storage.nbytes:
            raise ValueError("a pickled storage that is none")
        key = str(len(storages))
        storages[key] = data
        return Storage(key, storage.dtype, storage.kind, storage.itemsize, storage.size, storage.first)

    builders = {**pytorch.BUILDERS, "torch.storage._load_from_bytes": stored, **_JOBLIB}
    with pickled.mapped(path, given, size) as source:
        program = pickle_program.read(source, given, builders)
        rest = source[program.end : program.end + 2]
    return pickled.assembled(
        program,
        path,
        given,
        format="pickle",
        separator="." if storages else "/",
        storage_fn=storages.__getitem__,
        sizes={key: len(content) for key, content in storages.items()},
        beside=pickled.behind(size - program.end, rest, given),
    )
