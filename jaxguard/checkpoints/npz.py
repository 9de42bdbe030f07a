"""NumPy's npz: a zip archive of npy records, one per leaf, mapped where they are stored and inflated where not."""

import pathlib
from collections.abc import Sequence

import numpy as np

from jaxguard.checkpoints import archive, header, limits, npy, refusals
from jaxguard.checkpoints.checkpoint import Checkpoint, LeafSpec

_SUFFIX = ".npy"
_MAX_NOTE_LENGTH = 1000


def recognises(path: pathlib.Path) -> bool:
    """True for a zip archive all of whose members are called `.npy`."""
    names = archive.member_names(path)
    return bool(names) and all(name.endswith(_SUFFIX) for name in names)


def open_checkpoint(path: pathlib.Path, given: str) -> Checkpoint:
    """Checks the headers of all members.

    Args:
        path: a regular file; it must not be shortened in place while the arrays are in use.
        given: the path as the user wrote it.

    Returns:
        A checkpoint of the arrays of numbers, under the names they were saved with; single texts are its metadata.

    Raises:
        DamagedError: an archive that is not sound, or a member that is not as large as its header says.
        HostileError: a trick of the archive.
        UnsupportedError: no array, or a version of the record that is not read.
    """
    opened = archive.open_archive(path, given)
    records: dict[str, npy.Record] = {}
    leaves: dict[str, LeafSpec] = {}
    metadata: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for member, place in opened.members.items():
        name = member.removesuffix(_SUFFIX)
        try:
            record = npy.parse(opened.head(member, npy.HEAD_BYTES))
            if record.problem and record.stored.hasobject:
                left_out[_name(name)] = record.problem
                continue
            if record.nbytes != place.size:
                raise ValueError(f"{place.size} bytes where its header announces {record.nbytes}")
            if record.stored.kind == "U" and record.shape == () and record.nbytes < 4 * _MAX_NOTE_LENGTH:
                metadata[_text(name)] = _text(str(record.array(opened.view(member))))
                continue
            if record.problem:
                left_out[_name(name)] = record.problem
                continue
            leaves[_name(name)], records[name] = record.spec, record
        except ValueError as error:
            raise refusals.because(error, f"{given}: leaf {header.shown(name)}", "an npy record") from error
    if not (leaves or left_out) or len(leaves) > limits.MAX_LEAVES:
        expected = f"1 to {limits.MAX_LEAVES} arrays"
        raise refusals.unsupported(given, expected, f"a file of {len(leaves)}", "save the model's arrays")
    limits.check_announced(sum(spec.nbytes for spec in leaves.values()), path.stat().st_size, given)

    def read_fn(names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: records[name].array(opened.view(name + _SUFFIX)) for name in names}

    return Checkpoint(given, "npz", leaves, metadata, path, read_fn, left_out=left_out, beside=opened.beside)


def _name(name: str) -> str:
    if len(name) > limits.MAX_NAME_LENGTH:
        raise refusals.Trick(f"a name of {len(name)} characters")
    name.encode()  # zip names are cp437 or UTF-8; a lone surrogate raises the ValueError it should
    return name


def _text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
