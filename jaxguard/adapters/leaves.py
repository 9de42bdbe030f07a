"""Leaves of a network put into the place of a model's own."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxguard.errors import ArchitectureError
from jaxguard.graph.program import leaf_paths


def replaced(model: Any, variables: Any) -> Any:
    """A tree of one model's structure with another's leaves.

    Args:
        model: pytree whose structure is kept.
        variables: pytree with as many leaves, of the same shapes and in the same order.

    Returns:
        The tree.

    Raises:
        ArchitectureError: the leaves differ in number or shape.

    Example:
        >>> replaced({"w": np.zeros(2)}, {"w": np.ones(2)})["w"].tolist()
        [1.0, 1.0]
    """
    wanted, structure = jax.tree.flatten(model)
    given = jax.tree.leaves(variables)
    if len(wanted) != len(given):
        raise ArchitectureError(
            f"expected the {len(wanted)} leaves of the model, got a network of {len(given)}; "
            "pass the model that the network was made from, or one of the same architecture"
        )
    for path, own, new in zip(leaf_paths(model), wanted, given, strict=True):
        if np.shape(own) != np.shape(new):
            raise ArchitectureError(
                f"expected shape {np.shape(own)}, got {np.shape(new)} for leaf '{path}'; "
                "pass the model that the network was made from, or one of the same architecture"
            )
    return jax.tree.unflatten(structure, given)
