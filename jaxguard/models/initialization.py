"""Random weights made on the host, in a fraction of a second: Flax's `init` compiles for seconds.

Convolutions draw He normal with fan-out, dense layers LeCun normal with fan-in; scales and variances are one,
biases and means zero, tokens and position embeddings normal with deviation 0.02, layer scales 1e-6. The values of a
leaf depend only on the key and its path.
"""

from collections.abc import Callable

import jax
import numpy as np


def fill(path: str, shape: tuple[int, ...], dtype: np.dtype, key: jax.Array) -> np.ndarray:
    """Initial value of the leaf at `path`, drawn from `key`.

    Args:
        path: slash-separated leaf path such as `params/conv1/kernel`; its last part determines the distribution.
        shape: HWIO for convolutions, (in, out) for dense layers.
        dtype: floating dtype of the result.
        key: a `jax.random.key`.

    Returns:
        An array of that shape and dtype.

    >>> fill("params/bn1/scale", (3,), np.dtype(np.float32), jax.random.key(0))
    array([1., 1., 1.], dtype=float32)
    """
    rng = np.random.default_rng([*np.asarray(jax.random.key_data(key)).ravel().tolist(), *path.encode()])
    return FILLS[path.rsplit("/", 1)[-1]](rng, shape).astype(dtype, copy=False)


def _kernel(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    *receptive_field, fan_in, fan_out = shape
    gain = 2.0 / (np.prod(receptive_field) * fan_out) if receptive_field else 1.0 / fan_in
    return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(gain))


def _zeros(_: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.float32)


def _ones(_: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.ones(shape, np.float32)


def _embedding(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape, np.float32) * np.float32(0.02)


def _layer_scale(_: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, 1e-6, np.float32)


FILLS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "kernel": _kernel,
    "bias": _zeros,
    "scale": _ones,
    "mean": _zeros,
    "var": _ones,
    "cls_token": _embedding,
    "pos_embed": _embedding,
    "gamma": _layer_scale,
}
