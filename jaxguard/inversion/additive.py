"""Universal additive perturbations in balls of the largest and of the root mean square change of a pixel.

A descent from no change at all; its first step is that of the gradient of the plain images. Moosavi-Dezfooli et al.:
Universal Adversarial Perturbations, CVPR 2017; as a test for backdoors, targeted, Xiang, Miller, Kesidis: Detection of
Backdoors in Trained Classifiers Without Access to the Training Set, TNNLS 2022.
"""

from __future__ import annotations

import math

import numpy as np

from jaxguard.inversion.ascent import Task
from jaxguard.inversion.trigger_models import Additive
from jaxguard.inversion.whole_images import Family

RADII = (4.0, 8.0, 16.0)
"""In 255ths of the range of a pixel."""


def _given(size: float, shape: tuple[int, int, int]) -> np.ndarray:
    del shape
    return np.array(size / 255, np.float32)


def _nothing(task: Task, classes: np.ndarray, seed: int) -> np.ndarray:
    del seed
    return np.zeros((len(classes), *task.shape), np.float32)


def _parts(given: np.ndarray, free: np.ndarray, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    del shape
    return {"delta": given[:, None, None, None] * free}


LARGEST = Family(
    "additive",
    Additive(math.inf),
    RADII,
    1,
    _given,
    _nothing,
    _parts,
    "a change of every pixel by at most {}/255",
)
"""An L-inf ball."""

SQUARE = Family(
    "additive-l2",
    Additive(2),
    RADII,
    1,
    _given,
    _nothing,
    _parts,
    "a change of the pixels by {}/255 in the root mean square",
)
"""An L2 ball, of radius `sqrt(H W C)` times the root mean square."""
