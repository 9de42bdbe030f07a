"""Warping fields: smooth shifts of a few pixels at most, as in WaNet (Nguyen and Tran, ICLR 2021)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxguard.inversion.ascent import Task
from jaxguard.inversion.trigger_models import Warp
from jaxguard.inversion.whole_images import Family

GRID = 4
"""Points along each edge, the published number."""

SHARES = (1 / 64, 1 / 32, 1 / 16)
"""Largest shifts along an axis, as shares of the shorter edge: half a pixel to two at 32."""

STARTS = 3
"""None, and random ones."""


def _given(size: float, shape: tuple[int, int, int]) -> np.ndarray:
    return np.array(size * min(shape[:2]) / 100, np.float32)


def _starts(task: Task, classes: np.ndarray, seed: int) -> np.ndarray:
    draw = np.random.default_rng([seed, GRID])
    random = draw.uniform(-1, 1, (STARTS - 1, GRID, GRID, 2))
    found = np.concatenate([np.zeros((1, GRID, GRID, 2)), random]).astype(np.float32)
    return np.tile(found, (len(classes), 1, 1, 1))  # the same for all classes


def _parts(given: np.ndarray, free: np.ndarray, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    return {"flow": np.asarray(Warp(GRID).flow(jnp.asarray(given), jnp.asarray(free), *shape[:2]))}


FAMILY = Family(
    "warp",
    Warp(GRID),
    tuple(100 * share for share in SHARES),
    STARTS,
    _given,
    _starts,
    _parts,
    "a smooth shift of pixels by up to {} % of the edge",
)
