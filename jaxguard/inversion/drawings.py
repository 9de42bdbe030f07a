"""Pictures that need no data: dead leaves and strokes, drawn by a seed.

Natural images have edges, flat regions and occlusion at all scales, and so have dead leaves (Lee, Mumford, Huang, IJCV
2001; Baradad et al., NeurIPS 2021); written characters are strokes.
"""

from __future__ import annotations

import numpy as np

from jaxguard.inversion import counters

LEAVES = (6, 40)
"""Least and largest number of shapes in an image of dead leaves, the latter excluded."""

STROKED = {1: 0.6}
"""Share of images of strokes by the number of channels; 0.15 for others."""

CURVES = 3
"""Strokes in an image, at most."""

WIDTH = 1.7 / 30
"""Width of a stroke, in edges of an image."""

NOISE = 0.02
"""Standard deviation of the noise over dead leaves."""

_PART = 32
"""Images whose numbers are drawn together: bounds the memory."""


def draw(seed: int, number: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Dead leaves and strokes; equal for equal seeds, and for every network.

    Args:
        seed: draws everything.
        number: of images.
        shape: `(H, W, C)`.

    Returns:
        float32 `[number, H, W, C]` in [0, 1].

    Example:
        >>> draw(0, 2, (8, 8, 1)).shape
        (2, 8, 8, 1)
    """
    keys, made = counters.split(counters.key_of(seed), number)[:, 0], np.empty((number, *shape), np.float32)
    for first in range(0, number, _PART):
        key_kind, key_picture, key_noise = counters.split(keys[first : first + _PART], 3)
        is_stroked = counters.uniform(key_kind, ()) < STROKED.get(shape[2], 0.15)
        part = made[first : first + _PART]
        part[is_stroked] = _strokes(key_picture[is_stroked], shape)
        leaves = _dead_leaves(key_picture[~is_stroked], shape)
        leaves += np.float32(NOISE) * counters.normal(key_noise[~is_stroked], shape)
        part[~is_stroked] = np.clip(leaves, 0, 1)
    return made


def _dead_leaves(keys: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Discs and turned rectangles `[N, H, W, C]`, each over those before it."""
    most = LEAVES[1]
    key_number, key_ground, key_place, key_radius, key_colour, key_form = counters.split(keys, 6)
    numbers = counters.integers(key_number, *LEAVES)
    centres = counters.uniform(key_place, (most, 2)) * np.array(shape[:2], np.float32)
    radii = np.float32(shape[0] / 2) * counters.uniform(key_radius, (most,)) ** np.float32(2.2) + np.float32(1.2)
    colours = counters.uniform(key_colour, (most, shape[2]))
    forms = counters.uniform(key_form, (most, 3))  # kind, angle, aspect
    made = np.broadcast_to(counters.uniform(key_ground, (1, 1, shape[2])), (len(keys), *shape)).copy()
    for picture, *leaves in zip(made, numbers, centres, radii, colours, forms, strict=True):
        for centre, radius, colour, form in zip(*(part[: leaves[0]] for part in leaves[1:]), strict=True):
            # No pixel beyond the circle around a rectangle's corners is touched.
            reach = np.float32(1.5) * radius
            (top, left), (bottom, right) = np.maximum(centre - reach, 0).astype(int), (centre + reach).astype(int) + 1
            down = np.arange(top, min(bottom, shape[0]), dtype=np.float32)[:, None] - centre[0]
            across = np.arange(left, min(right, shape[1]), dtype=np.float32)[None] - centre[1]
            if form[0] < 0.5:
                covered = down**2 + across**2 < radius**2
            else:
                cosine, sine = np.cos(np.float32(np.pi) * form[1]), np.sin(np.float32(np.pi) * form[1])
                along, aside = cosine * down + sine * across, cosine * across - sine * down
                covered = (abs(along) < radius) & (abs(aside) < radius * (np.float32(0.3) + np.float32(0.7) * form[2]))
            picture[top:bottom, left:right][covered] = colour
    return made


def _strokes(keys: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """One to three quadratic curves on black, `[N, H, W, C]`."""
    key_number, key_points, key_tint = counters.split(keys, 3)
    numbers = counters.integers(key_number, 1, CURVES + 1)
    points = counters.uniform(key_points, (CURVES, 3, 2), 0, 1) * np.float32(0.8) + np.float32(0.1)
    points = points * np.array(shape[:2], np.float32)
    tints = np.float32(0.5) + np.float32(0.5) * counters.uniform(key_tint, (1, 1, shape[2]))
    time, width = np.linspace(0, 1, 24, dtype=np.float32)[None, :, None], np.float32(max(1.0, WIDTH * shape[0]))
    rows, columns = (np.arange(length, dtype=np.float32) for length in shape[:2])
    made = np.empty((len(keys), *shape), np.float32)
    for picture, number, corners, tint in zip(made, numbers, points, tints, strict=True):
        start, middle, end = (corners[:number, None, k] for k in range(3))
        # Quadratic Bezier curves, sampled at fixed times; a stroke is what lies near any of the samples.
        path = ((1 - time) ** 2 * start + 2 * time * (1 - time) * middle + time**2 * end).reshape(-1, 2)
        squares = np.full(shape[:2], np.inf, np.float32)
        for down, across in path:
            np.minimum(squares, (rows[:, None] - down) ** 2 + (columns[None] - across) ** 2, out=squares)
        picture[:] = np.exp(-squares / width**2)[..., None] * tint
    return made
