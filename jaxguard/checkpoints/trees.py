"""Between nested variables and flat leaves: `{"params": {"conv": ...}}` and `{"params/conv": ...}`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.checkpoints import refusals
from jaxguard.checkpoints.checkpoint import DTYPES
from jaxguard.errors import CheckpointError

SEPARATOR = "/"
_MAX_DEPTH = 64
_DTYPES = frozenset(DTYPES.values())


def host_array(name: str, leaf: Any) -> np.ndarray:
    """Copies one leaf to the host, where it has to be an array of numbers; of a random stream's key, its data.

    Raises:
        CheckpointError: the leaf is no array, or its dtype is not in the DTYPES table.
    """
    try:
        is_key = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"leaf {name!r}: expected an array, got {type(leaf).__name__} ({error}); "
            "convert it, or leave it out of the checkpoint"
        ) from error
    if array.dtype.newbyteorder("=") not in _DTYPES:
        raise CheckpointError(
            f"leaf {name!r}: expected a dtype of {', '.join(sorted(dtype.name for dtype in _DTYPES))}, "
            f"got {array.dtype}; convert it, or leave it out of the checkpoint"
        )
    return array


def flatten(variables: Any) -> dict[str, np.ndarray]:
    """Flattens a pytree of arrays to host leaves with names.

    Args:
        variables: any pytree of arrays; `None` is dropped, list positions become names `0`, `1`, ...

    Returns:
        `{name: array}`, the keys of a path joined with `/`, in the pytree's order.

    Raises:
        CheckpointError: a leaf is no array of numbers, or two paths give the same name.

    >>> flatten({"params": {"conv1": {"kernel": np.ones(2)}}})
    {'params/conv1/kernel': array([1., 1.])}
    """
    leaves: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=SEPARATOR)
        if name in leaves:
            raise CheckpointError(
                f"leaf {name!r}: expected one leaf of this name, got two whose keys join to it; "
                f"rename the key that contains {SEPARATOR!r}"
            )
        leaves[name] = host_array(name, leaf)
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nests flat leaves into dictionaries; the inverse of `flatten` on nested dictionaries.

    Args:
        leaves: `{name: leaf}`, names split at `/`.

    Returns:
        Nested dictionaries over the same leaves, not copied.

    Raises:
        CheckpointError: a name is both a leaf and a group of leaves, or nests deeper than any network.

    >>> unflatten({"params/conv1/kernel": 1, "params/conv1/bias": 2})
    {'params': {'conv1': {'kernel': 1, 'bias': 2}}}
    """
    groups: dict[tuple[str, ...], dict[str, Any]] = {(): {}}
    for name, leaf in leaves.items():
        *parents, last = name.split(SEPARATOR)
        if len(parents) >= _MAX_DEPTH:
            raise refusals.hostile(f"leaf {name[:80]!r}...", f"at most {_MAX_DEPTH} levels", str(len(parents) + 1))
        for depth in range(len(parents)):
            here = tuple(parents[: depth + 1])
            if here not in groups:
                _refuse_conflict(groups[here[:-1]], here[-1], name)
                groups[here] = groups[here[:-1]][here[-1]] = {}
        _refuse_conflict(groups[tuple(parents)], last, name)
        groups[tuple(parents)][last] = leaf
    return groups[()]


def _refuse_conflict(group: Mapping[str, Any], key: str, name: str) -> None:
    if key in group:
        raise CheckpointError(
            f"leaf {name!r}: expected {key!r} to be a leaf or a group of leaves, got both; rename one"
        )
