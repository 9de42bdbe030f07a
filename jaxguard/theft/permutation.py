"""Neuron permutation: the same function from weights in another order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxguard import surgery
from jaxguard.theft import protocol
from jaxguard.theft.protocol import Network, TheftError, TheftReport
from jaxguard.types import Batch


def permutation(owner: Network, data: Batch | None = None, key: jax.Array | None = None) -> tuple[Network, TheftReport]:
    """Permutes every permutable group of channels at random, wherever its channels lie.

    Args:
        owner: the stolen model; its graph is needed.
        data: ignored.
        key: draws the permutations.

    Returns:
        The copy, whose logits are the owner's up to rounding, and a report.

    Raises:
        TheftError: the graph or the key is missing, or no group may be permuted.

    Example:
        >>> from jaxguard import models
        >>> model = models.build("mlp:hidden=8", num_classes=3, input_shape=(4, 4, 1))
        >>> owner = Network.of(model, model.init(jax.random.key(0)))
        >>> copy, report = permutation(owner, key=jax.random.key(1))
        >>> report.notes
        ('1 of 1 groups of hidden channels were permuted, 8 channels in all.',)
    """
    del data
    graph = protocol.require_graph(owner, "permutation")
    groups = [group for group in graph.groups if group.permutable]
    if key is None or not groups:
        raise TheftError(
            f"expected a key and a model with permutable channels, came key={key} and {len(groups)} groups in "
            "permutation(); a model with nothing but an output layer has none"
        )
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    variables: Any = owner.variables
    for group in groups:
        variables = surgery.permute(variables, group, rng.permutation(group.size))
    hidden = [group for group in graph.groups if group.frozen not in ("input", "output")]
    note = (
        f"{len(groups)} of {len(hidden)} groups of hidden channels were permuted, "
        f"{sum(group.size for group in groups)} channels in all."
    )
    return replace(owner, variables=variables), TheftReport("permutation", {}, (note,))
