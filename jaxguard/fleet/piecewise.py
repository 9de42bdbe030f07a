"""Checkpoints larger than the memory for stacks: kernel by kernel, a large kernel some channels at a time.

Of a kernel only its channels' norms and the sum of its weights are needed, so it is read, reduced and forgotten before
the next one. What is left, vectors and the output layer, is small, and scored as if all of the checkpoint were there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import programs
from jaxguard.checkpoints import Checkpoint
from jaxguard.errors import FleetError
from jaxguard.fleet.programs import Scorer
from jaxguard.fleet.scoring import Kernel, Scores
from jaxguard.fleet.structure import WORD, Structure
from jaxguard.kernels.lipschitz import Grams
from jaxguard.scores import weights
from jaxguard.scores.weights import Reduced

BUFFERS = 2
"""One is read into while what is in the other is reduced."""


class _Piece(NamedTuple):
    """Channels `first` to `last` of a kernel."""

    name: str
    kernel: Kernel
    first: int
    last: int


def row_length(scorer: Scorer, memory: int) -> int:
    """Numbers in each of the `BUFFERS` rows to score with.

    Args:
        scorer: of the checkpoint.
        memory: bytes for stacks; half of them for the rows, the other half for what is not reduced.

    Returns:
        What the largest kernel or the memory asks for, whichever is less.

    Raises:
        FleetError: one channel, or what is not reduced, does not fit into that.
    """
    structure, kernels = scorer.structure, scorer.recipe.kernels
    rest = sum(math.prod(shape) for name, shape in _floating(structure) if name not in kernels)
    channel = max((kernel.numbers for kernel in kernels.values()), default=0)
    # Half of the memory is for the rows, the other half for what is being reduced from them.
    needed = 2 * WORD * max(rest, BUFFERS * channel)
    if needed > memory:
        raise FleetError(
            f"expected a checkpoint that can be scored in parts within {memory} bytes, got one of "
            f"{structure.nbytes} that takes {needed}; raise --memory to {needed}"
        )
    return min(memory // (2 * BUFFERS * WORD), max((math.prod(kernel.shape) for kernel in kernels.values()), default=1))


def score(scorer: Scorer, checkpoint: Checkpoint, rows: np.ndarray) -> Scores:
    """Score one checkpoint.

    Args:
        scorer: of its structure.
        checkpoint: opened.
        rows: `[BUFFERS, row_length]` float32 to read into.

    Returns:
        The scores, `M = 1`; to rounding the same as if it had been scored at once.

    Raises:
        CheckpointError: a leaf cannot be read.
    """
    kernels = scorer.recipe.kernels
    parts: dict[str, list[Reduced]] = {name: [] for name in kernels}
    busy: list[Reduced | None] = [None] * BUFFERS
    for number, piece in enumerate(_pieces(kernels, rows.shape[1])):
        slot = number % BUFFERS
        # What was read into this row before may still be on its way to the device, which on CPU shares the memory.
        jax.block_until_ready(busy[slot])
        # Returns at once: the next piece is read while this one is reduced.
        found = _reduce(jax.device_put(_read(checkpoint, piece, rows[slot])), piece.kernel.is_channels_first)
        busy[slot] = found
        parts[piece.name].append(found)
    reduced = {name: _joined(found) for name, found in parts.items()}
    rest = {name: _as_float32(checkpoint.read(name)) for name, _ in _floating(scorer.structure) if name not in kernels}
    return Scores(*(np.asarray(array)[None] for array in scorer.rest_program(rest, reduced)))


def _joined(parts: list[Reduced]) -> Reduced:
    """Of all channels, from runs of them."""
    # Channels are the last axis of a Gram matrix and of its scale, whatever the kernel's layout was.
    grams = Grams(*(jnp.concatenate(arrays, axis=-1) for arrays in zip(*(one.grams for one in parts), strict=True)))
    return Reduced(grams, sum((one.sums for one in parts), jnp.zeros(2)))


def _floating(structure: Structure) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of the leaves that hold floating-point numbers."""
    for (name, shape, _), offset in zip(structure.leaves, structure.offsets, strict=True):
        if offset >= 0:
            yield name, shape


def _pieces(kernels: Mapping[str, Kernel], length: int) -> Iterator[_Piece]:
    """Runs of channels that fit a row of `length` numbers; of a kernel's, all but the last are of one size."""
    for name, kernel in kernels.items():
        # As few pieces as fit, then of equal size: each other size is another program to compile.
        count = -(-kernel.channels // max(length // kernel.numbers, 1))
        size = -(-kernel.channels // count)
        for first in range(0, kernel.channels, size):
            yield _Piece(name, kernel, first, min(first + size, kernel.channels))


def _read(checkpoint: Checkpoint, piece: _Piece, row: np.ndarray) -> np.ndarray:
    kernel = checkpoint.read(piece.name).reshape(piece.kernel.shape)
    channels = slice(piece.first, piece.last)
    part = kernel[channels] if piece.kernel.is_channels_first else kernel[..., channels]
    place = row[: part.size].reshape(part.shape)
    place[...] = _as_float32(part)
    return place


def _as_float32(leaf: np.ndarray) -> np.ndarray:
    # A float64 weight beyond float32 becomes infinite, which the scores report as not finite.
    with np.errstate(over="ignore"):
        return leaf.astype(np.float32, copy=False)


@functools.partial(programs.jit, static_argnums=1)
def _reduce(kernel: jax.Array, is_channels_first: bool) -> Reduced:
    return weights.reduce_kernel(kernel, is_channels_first=is_channels_first)
