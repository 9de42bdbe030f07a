"""NaN and infinity in a checkpoint, found before they turn a scan into silence."""

import os
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from jaxguard.errors import NonFiniteError


def check_finite(leaves: Mapping[str, np.ndarray], source: str | os.PathLike[str]) -> None:
    """Refuses leaves that hold NaN or infinity: one NaN makes a whole layer's threshold NaN.

    Args:
        leaves: `{leaf name: array}`; integers and booleans are always finite.
        source: where they came from, for the message.

    Raises:
        NonFiniteError: names the first such leaf, its NaN and infinities, and how many leaves have any.

    >>> check_finite({"params/bias": np.zeros(3)}, "demo.safetensors")
    """
    broken = []
    for name, leaf in leaves.items():
        # jax's issubdtype knows bfloat16 and float8, numpy's does not.
        if jnp.issubdtype(leaf.dtype, np.inexact):
            num_bad = leaf.size - int(np.count_nonzero(np.isfinite(leaf)))
            if num_bad:
                broken.append((name, num_bad, int(np.count_nonzero(np.isnan(leaf))), leaf.size))
    if broken:
        name, num_bad, num_nan, size = broken[0]
        raise NonFiniteError(
            f"{os.fspath(source)}: leaf {name!r}: expected finite numbers, got {num_nan} NaN and "
            f"{num_bad - num_nan} infinite of {size} ({len(broken)} of {len(leaves)} leaves have some); "
            "the training diverged or the file is damaged, use an earlier checkpoint"
        )
