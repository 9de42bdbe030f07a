"""What checkpoints must share to be scored by one compiled program: their leaves, laid out in a row of numbers."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Container
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.checkpoints import Checkpoint, LeafSpec
from jaxguard.errors import CheckpointError
from jaxguard.suspects import described

WORD = 4
"""Bytes of a number in a row, float32."""

_ALIGNMENT = 16  # words: 64 bytes, what XLA wants of memory it is to use as it is


@dataclass(frozen=True)
class Structure:
    """The leaves of a checkpoint and their place in a row of float32 numbers.

    Attributes:
        leaves: `(name, shape, dtype)` in file order; all of them, so that an architecture can be recognised.
        offsets: where each leaf begins in the row; -1 for leaves that it does not hold as numbers.
        length: float32 numbers in the row, `W`.
        is_raw: whether the row is the file from its first leaf on, byte by byte.
        description: what the checkpoint says of its own architecture, JSON.
        aliases: `(leaf, its other names)` of leaves that have several.
    """

    leaves: tuple[tuple[str, tuple[int, ...], str], ...]
    offsets: tuple[int, ...]
    length: int
    is_raw: bool
    description: str
    aliases: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @functools.cached_property
    def key(self) -> str:
        """Short name of the leaves, whatever their order or place; hexadecimal."""
        text = json.dumps([sorted(self.leaves), self.description])
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]

    @functools.cached_property
    def nbytes(self) -> int:
        """Bytes of a row."""
        return self.length * WORD

    def specs(self) -> dict[str, LeafSpec]:
        """Shape and element type by name, as a checkpoint announces them."""
        return {name: LeafSpec(shape, np.dtype(dtype)) for name, shape, dtype in self.leaves}

    def cut(
        self,
        rows: jax.Array,
        first: jax.typing.ArrayLike,
        offset: jax.typing.ArrayLike,
        shape: tuple[int, ...],
        *,
        count: int = 1,
        plain: bool = False,
    ) -> jax.Array:
        """A leaf in some rows of a stack, copied out of it; traceable.

        Args:
            rows: `[M, W]` float32.
            first: number of the first of the rows.
            offset: where the leaf begins in each of them.
            shape: its own, or another of as many numbers.
            count: of the rows.
            plain: see `jaxguard.execution.cuts_plain_numbers`.

        Returns:
            The leaf in that shape, `[count, *shape]`.
        """
        numbers = jax.lax.dynamic_slice(rows, (first, offset), (count, math.prod(shape)))
        # Without the barrier the slices become part of every loop that reads them, which triples the time to compile.
        if plain:
            return jax.lax.optimization_barrier(numbers).reshape(count, *shape)
        return jax.lax.optimization_barrier(numbers.reshape(count, *shape))

    def unpack(
        self,
        rows: jax.Array,
        first: jax.typing.ArrayLike,
        *,
        count: int = 1,
        without: Container[str] = (),
        plain: bool = False,
    ) -> dict[str, jax.Array]:
        """The floating-point leaves in some rows of a stack; traceable.

        Args:
            rows: `[M, W]` float32.
            first: number of the first of the rows.
            count: of the rows.
            without: names of leaves to pass over.
            plain: as in `cut`.

        Returns:
            Arrays by name, `[count, ...]`.
        """
        return {
            name: self.cut(rows, first, offset, shape, count=count, plain=plain)
            for (name, shape, _), offset in zip(self.leaves, self.offsets, strict=True)
            if offset >= 0 and name not in without
        }

    def pack(self, leaves: dict[str, np.ndarray], row: np.ndarray) -> None:
        """Fill a row; the way for files that cannot be read into one as they are.

        Args:
            leaves: arrays by name.
            row: `[W]` float32, written to.
        """
        with np.errstate(over="ignore"):
            for (name, shape, _), offset in zip(self.leaves, self.offsets, strict=True):
                if offset >= 0:
                    row[offset : offset + math.prod(shape)].reshape(shape)[...] = leaves[name]


def structure_of(checkpoint: Checkpoint) -> Structure:
    """The structure of an opened checkpoint.

    Args:
        checkpoint: no leaf of it is read.

    Returns:
        Its structure; checkpoints of equal ones can be stacked.

    Raises:
        CheckpointError: it holds no floating-point leaf, or describes itself in no JSON.
    """
    specs = checkpoint.leaves
    floating = [name for name, spec in specs.items() if holds_weights(spec)]
    if not any(_element(specs[name].dtype).is_floating for name in floating):
        raise CheckpointError(
            f"{checkpoint.path}: expected floating-point leaves, got {len(specs)} of other types; "
            "dequantise the checkpoint before auditing it"
        )
    first_bytes = checkpoint.first_bytes
    start = min(first_bytes.values(), default=0)
    # A file of float32 leaves at aligned places is a row already: it is read in one piece, without a copy per leaf.
    is_raw = bool(first_bytes) and all(
        specs[name].dtype == np.float32 and (first_bytes[name] - start) % WORD == 0 for name in floating
    )
    offsets = dict.fromkeys(specs, -1)
    if is_raw:
        # In file order, so that two files that list equal leaves in another order have other structures.
        names = sorted(specs, key=lambda name: (first_bytes[name], name))
        offsets |= {name: (first_bytes[name] - start) // WORD for name in floating}
        length = -(-sum(spec.nbytes for spec in specs.values()) // WORD)
    else:
        names, length = list(specs), 0
        # Leaves one after the other; those that hold no weights have no place, offset -1.
        for name in floating:
            offsets[name] = length
            length += math.prod(specs[name].shape)
    return Structure(
        leaves=tuple((name, tuple(specs[name].shape), _element(specs[name].dtype).name) for name in names),
        offsets=tuple(offsets[name] for name in names),
        # Padded so that every row of a stack begins at an aligned address.
        length=max(-(-length // _ALIGNMENT) * _ALIGNMENT, _ALIGNMENT),
        is_raw=is_raw,
        description=json.dumps(described(checkpoint), sort_keys=True),
        aliases=tuple(sorted(checkpoint.aliases.items())),
    )


def holds_weights(spec: LeafSpec) -> bool:
    """Whether a leaf may hold weights: floating-point numbers, or 8-bit integers of two or more axes with scales."""
    return _element(spec.dtype).is_floating or (spec.dtype == np.int8 and len(spec.shape) >= 2)


class _Element(NamedTuple):
    name: str
    is_floating: bool


@functools.cache
def _element(dtype: np.dtype) -> _Element:
    """What is asked of every leaf, cached: numpy and JAX take microseconds to answer."""
    return _Element(dtype.name, bool(jnp.issubdtype(dtype, jnp.floating)))
