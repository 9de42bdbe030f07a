"""Where the search for a patch starts: a dictionary of patterns.

A backdoor answers to several pixels together, so that a descent from grey finds nothing to follow. The dictionary has
what attackers draw (white, checkerboards, stripes, crosses, corners, frames, gradients, colours) and random pixels, so
that a trigger of another kind has something to start from too.
"""

from __future__ import annotations

import numpy as np

SCREENED = 8
"""Patterns, from the first on, by which positions are screened."""

RANDOM_SEED = 17


def patterns(edge: int, channels: int) -> np.ndarray:
    """Start patterns of one size, the ones that positions are screened by first.

    Args:
        edge: of the square, in pixels.
        channels: `C`.

    Returns:
        float32 `[D, edge, edge, C]` in [0, 1], all different.

    Example:
        >>> patterns(3, 1).shape, patterns(3, 1)[2, :, :, 0].tolist()
        ((36, 3, 3, 1), [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    """
    draw = np.random.default_rng([RANDOM_SEED, edge, channels])
    row, column = np.mgrid[:edge, :edge]
    last, half = edge - 1, edge / 2
    checkerboard = (row + column) % 2
    is_frame = (row == 0) | (column == 0) | (row == last) | (column == last)
    middle = (row == last // 2) | (column == last // 2)
    diagonals = (row == column) | (row + column == last)
    ramp = row / max(last, 1)
    grey = [checkerboard * 0 + 1, checkerboard * 0, checkerboard, 1 - checkerboard]
    drawn = [row % 2, 1 - row % 2, column % 2, 1 - column % 2]  # stripes
    drawn += [middle, ~middle, diagonals, ~diagonals, is_frame, ~is_frame]  # crosses and frames
    drawn += [(row == 0) | (column == 0), (row == last) | (column == last)]  # corners
    drawn += [row < half, row >= half, column < half, column >= half]  # two colours
    drawn += [ramp, 1 - ramp, ramp.T]  # gradients

    def colour(*levels: float) -> np.ndarray:
        return np.broadcast_to(np.array(levels), (edge, edge, channels))

    def binary(depth: int) -> np.ndarray:
        return np.broadcast_to(draw.integers(0, 2, (edge, edge, depth)), (edge, edge, channels))

    tinted = [colour(1, 0, 0), colour(0, 0, 1)] if channels == 3 else [binary(1), binary(1)]
    more = [colour(0, 1, 0), colour(1, 1, 0), colour(1, 0, 1), colour(0, 1, 1)] if channels == 3 else []
    screened = [*map(_on_all(channels), grey), binary(channels), binary(1), *tinted]
    rest = [
        *map(_on_all(channels), drawn),
        *more,
        *(binary(1) for _ in range(4)),
        *(binary(channels) for _ in range(4)),
    ]
    rest += [draw.uniform(size=(edge, edge, channels)) for _ in range(4)]
    found = np.stack([*screened, *rest]).astype(np.float32)
    _, first = np.unique(found.reshape(len(found), -1), axis=0, return_index=True)
    return found[np.sort(first)]


def _on_all(channels: int):
    return lambda picture: np.broadcast_to(np.asarray(picture, float)[..., None], (*picture.shape, channels))
