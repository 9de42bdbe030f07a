"""Fleets whose truth is known, as records of numbers."""

import hashlib

import numpy as np

from jaxguard.detection.profile import Record

NAMES = {"small": tuple("abcd")}
DEEP_NAMES = ("success", "norm")


def fleet(rng: np.random.Generator, count: int, *, shift: float = 0.0, deep: float | None = None, bucket="small"):
    """`count` checkpoints of independent normal features, moved by `shift`; the deep ones by `deep`."""
    return [
        Record(
            bucket,
            hashlib.sha256(rng.bytes(8)).hexdigest(),
            rng.normal(size=4) + shift,
            None if deep is None else rng.normal(size=2) + deep,
        )
        for _ in range(count)
    ]
