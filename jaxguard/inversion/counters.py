"""JAX's default random numbers (threefry2x32, partitionable) in NumPy, for many keys at once.

Equal bits for equal keys, without a compiler: a program that draws a few numbers for each of many keys takes XLA ten
seconds to compile on CPU, and its numbers less than one. After Salmon et al., SC 2011; `tests/inversion/
test_counters.py` compares them with `jax.random`.

Keys are uint32 `[N, 2]`, as `jax.random.key_data` gives them.
"""

from __future__ import annotations

import math

import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def key_of(seed: int) -> np.ndarray:
    """Keys `[1, 2]` of a seed, >= 0, as `jax.random.key`."""
    return np.array([[seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF]], np.uint32)


def split(keys: np.ndarray, number: int) -> np.ndarray:
    """New keys.

    Args:
        keys: `[N, 2]`.
        number: for each of them, `m`.

    Returns:
        `[m, N, 2]`, to be unpacked.

    Example:
        >>> split(key_of(0), 2)[1].tolist()
        [[928981903, 3453687069]]
    """
    return np.moveaxis(np.stack(_blocks(keys, number), axis=-1), 1, 0)


def bits(keys: np.ndarray, number: int) -> np.ndarray:
    """Random uint32 `[N, number]`."""
    first, second = _blocks(keys, number)
    return first ^ second


def uniform(keys: np.ndarray, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Random float32 `[N, *shape]` in [low, high)."""
    # 23 random bits as the fraction of a number in [1, 2)
    ones = (bits(keys, math.prod(shape)) >> np.uint32(9) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)
    least, span = np.float32(low), np.float32(high) - np.float32(low)
    return np.maximum(least, ones * span + least).reshape(len(keys), *shape)


def normal(keys: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Random float32 `[N, *shape]` of a standard normal distribution."""
    from scipy import special

    drawn = uniform(keys, shape, float(np.nextafter(np.float32(-1), np.float32(0))), 1.0)
    return np.float32(math.sqrt(2)) * special.erfinv(drawn)


def integers(keys: np.ndarray, low: int, high: int) -> np.ndarray:
    """Random int32 `[N]` in [low, high)."""
    higher, lower = (bits(key, 1)[:, 0].astype(np.uint64) for key in split(keys, 2))
    span = high - low
    return (low + (higher % span * (2**32 % span) + lower % span) % span).astype(np.int32)  # 64 bits modulo the span


def _blocks(keys: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Both halves `[N, number]` of the cipher's blocks 0 to `number - 1`; their upper counters are 0."""
    words = keys[:, :1], keys[:, 1:], keys[:, :1] ^ keys[:, 1:] ^ _PARITY
    first = np.broadcast_to(words[0], (len(keys), number)).copy()
    second = np.arange(number, dtype=np.uint32) + words[1]
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            first += second
            second = (second << np.uint32(distance) | second >> np.uint32(32 - distance)) ^ first
        first += words[(group + 1) % 3]
        second += words[(group + 2) % 3] + np.uint32(group + 1)
    return first, second
