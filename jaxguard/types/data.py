"""Labelled images, and functions that train on them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from jaxguard.graph.program import Variables

TrainFn = Callable[[Variables, jax.Array], tuple[jax.Array, Variables]]
"""`(variables, images) -> (logits, variables)` in training mode; the result differs in its running statistics only."""


class Batch(NamedTuple):
    """Labelled images.

    Attributes:
        images: `[B, H, W, C]` float32 in [0, 1].
        labels: `[B]` int32 in [0, K).
    """

    images: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits.

    Attributes:
        name: the specification it was loaded from, such as `digits`.
        train: what the model's author trains (and an attacker poisons).
        clean: the few images a defender owns; drawn from the official training split, never in `train`.
        test: what metrics are measured on, and nothing is ever chosen on.
        num_classes: `K`.
    """

    name: str
    train: Batch
    clean: Batch
    test: Batch
    num_classes: int
