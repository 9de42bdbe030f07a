"""A checkpoint as a table of leaves: what is in the file, before any of it is read."""

import math
import pathlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import ml_dtypes
import numpy as np

from jaxguard.checkpoints import hashing
from jaxguard.checkpoints.calls import Call
from jaxguard.errors import CheckpointError

DTYPES: Mapping[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
}
"""Element types a leaf may have, under their safetensors codes; entries of others, objects above all, are left out."""

ReadFn = Callable[[Sequence[str]], dict[str, np.ndarray]]
"""`names -> {name: array}`; the names exist, the arrays have the announced shapes and dtypes."""


@dataclass(frozen=True)
class LeafSpec:
    """Shape and element type of one leaf, known without reading it."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the leaf in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint: its header has been checked, its leaves are still on disk.

    Attributes:
        path: as the user gave it.
        format: row of the FORMATS table, such as `safetensors`.
        leaves: what is inside, `{leaf name: LeafSpec}` in file order; names joined with `/` where it nests.
        metadata: free text stored beside the leaves.
        location: the file or directory that was opened; differs from `path` where that names a training run.
        read_fn: how the format reads leaves.
        shards: files in the folder of `location` that hold the leaves, where that is an index.
        first_bytes: where each leaf begins in the file `location`, for formats that hold all leaves there as they lie
            in memory, little-endian and without gaps; empty for others.
        left_out: stored entries that are no leaves, `{name: reason}`: training state, and what is not supported. A
            large collection is one entry, named by its prefix and `*`, with count and bytes in the reason.
        beside: parts of a file just opened that are no entries of its tree, `{name: what it is}`; later in `left_out`.
        aliases: `{leaf: its other names}`: tensors that share storage, offset, shape and strides are one leaf.
        notes: what a reader of a report must know of the choice of the leaves, in full sentences.
        paths: of a file just opened, the keys that lead to each entry; where there are none, names are split at `/`.
        separator: of the keys in a name.
        places: of a file just opened, what tells whether two entries are the same memory.
    """

    path: str
    format: str
    leaves: Mapping[str, LeafSpec]
    metadata: Mapping[str, str]
    location: pathlib.Path = field(repr=False)
    read_fn: ReadFn = field(repr=False)
    shards: Sequence[pathlib.Path] = field(default=(), repr=False)
    first_bytes: Mapping[str, int] = field(default_factory=dict, repr=False)
    left_out: Mapping[str, str] = field(default_factory=dict, repr=False)
    beside: Mapping[str, str] = field(default_factory=dict, repr=False)
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    separator: str = field(default="/", repr=False)
    places: Mapping[str, tuple[Hashable, ...]] = field(default_factory=dict, repr=False)

    @cached_property
    def code(self) -> tuple[Call, ...]:
        """Code that a loader of the file would run, such as a call of `os.system` in a pickle; empty for most."""
        from jaxguard.checkpoints import code

        return code.examine(self.location).calls

    @cached_property
    def sha256(self) -> str:
        """Content hash, hexadecimal; see `content`."""
        return self.content("sha256")

    def content(self, algorithm: hashing.Algorithm) -> str:
        """The name of what is in the file, or of the sorted relative names and contents of several.

        Several files are those of a directory, or an index and its shards.

        Args:
            algorithm: of `jaxguard.checkpoints.hashing`.

        Returns:
            SHA-256, hexadecimal, or `blake3:` and that.

        Raises:
            CheckpointError: a file went away or became unreadable since the checkpoint was opened.
        """
        try:
            if self.location.is_dir():
                return hashing.of_files(self.location, self.location.rglob("*"), algorithm)
            if self.shards:
                return hashing.of_files(self.location.parent, [self.location, *self.shards], algorithm)
            return hashing.of_file(self.location, algorithm)
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: expected to hash what was opened, got {error}; open the checkpoint again"
            ) from error

    def read(self, name: str) -> np.ndarray:
        """Reads one leaf to the host.

        Args:
            name: a key of `leaves`.

        Returns:
            Array of the announced shape and dtype; read-only and memory-mapped where the format allows it.

        Raises:
            CheckpointError: no such leaf, or its stored bytes are damaged.
        """
        if name not in self.leaves:
            raise CheckpointError(
                f"{self.path}: expected the name of one of its {len(self.leaves)} leaves, got {name!r}; "
                f"the first are {', '.join(list(self.leaves)[:3])}"
            )
        return self.read_fn([name])[name]

    def read_all(self) -> dict[str, np.ndarray]:
        """Reads every leaf to the host, in the order of `leaves`.

        Raises:
            CheckpointError: the stored bytes of a leaf are damaged.
        """
        return self.read_fn(list(self.leaves))
