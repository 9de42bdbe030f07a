"""Equinox's `tree_serialise_leaves`: npy records one after the other, behind a line of JSON where the user wrote one.

The tree is in the program that wrote the file, so leaves have positions for names: `0`, `1`, ...
"""

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxguard.checkpoints import header, limits, npy, refusals
from jaxguard.checkpoints.checkpoint import Checkpoint, LeafSpec

_MAX_LINE_BYTES = 2**16


def recognises(path: pathlib.Path) -> bool:
    """True for a file that starts with an npy record, or with one line of JSON and then an npy record."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(len(npy.MAGIC))
        if start == npy.MAGIC:
            return True
        return start.startswith(b"{") and npy.MAGIC in (start + file.read(_MAX_LINE_BYTES)).partition(b"\n")[2][:6]


def open_checkpoint(path: pathlib.Path, given: str) -> Checkpoint:
    """Finds the records of a file and checks their headers; a single npy file is one record.

    Args:
        path: a regular file; it must not be shortened in place while the arrays are in use.
        given: the path as the user wrote it.

    Returns:
        A checkpoint with the leaves `0`, `1`, ... in the order of the tree, read-only views of the file where they are
        aligned; its metadata are the entries of the JSON line.

    Raises:
        DamagedError: bytes that are no record, or a record cut short.
        HostileError: more records than any network has leaves.
        UnsupportedError: a version of the record that is not read.
    """
    content: np.ndarray = np.memmap(path, dtype=np.uint8, mode="r")
    line = b""
    if content[:1].tobytes() == b"{":
        line = content[: _MAX_LINE_BYTES + len(npy.MAGIC)].tobytes().partition(b"\n")[0] + b"\n"
    fields = header.parse(line, given) if line else {}
    position = len(line)
    records: dict[str, npy.Record] = {}
    places: dict[str, int] = {}
    leaves: dict[str, LeafSpec] = {}
    left_out: dict[str, str] = {}
    while position < content.size:
        name = str(len(leaves) + len(left_out))
        try:
            record = npy.parse(content[position : position + npy.HEAD_BYTES].tobytes())
            if record.stored.hasobject:  # a pickle of unknown length, behind which nothing can be found
                left_out[name] = record.problem
                break
            if position + record.nbytes > content.size:
                raise ValueError(f"{record.nbytes} bytes announced and {content.size - position} left in the file")
            if len(leaves) + len(left_out) >= limits.MAX_LEAVES:
                raise refusals.Trick("more leaves than any network has")
            if record.problem:
                left_out[name] = record.problem
            else:
                leaves[name] = record.spec
        except ValueError as error:
            raise refusals.because(error, f"{given}: leaf {name} at byte {position}", "an npy record") from error
        records[name], places[name] = record, position
        position += record.nbytes
    if not leaves and not left_out:
        raise refusals.damaged(given, "npy records", "none")

    def read_fn(names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: records[name].array(content[places[name] :][: records[name].nbytes]) for name in names}

    return Checkpoint(given, "equinox", leaves, _texts(fields), path, read_fn, left_out=left_out)


def _texts(fields: dict[str, object]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}
