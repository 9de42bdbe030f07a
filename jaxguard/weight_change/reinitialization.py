"""Zero reinitialisation: of the channels that moved the most, the weights that moved the most (TSBD, stage 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxguard import surgery
from jaxguard.graph import ChannelGraph
from jaxguard.types import Variables


def reinitialize(
    graph: ChannelGraph,
    variables: Variables,
    changes: Mapping[int, np.ndarray],
    masks: Mapping[int, np.ndarray],
    m: float,
) -> Any:
    """Sets to zero the weights of the masked channels that changed the most.

        pool = changes of all weights of all masked channels,  q = floor(m |pool|)
        w := 0  where  change >= the q-th largest of the pool

    Biases, norms and unmasked channels are not modified.

    Args:
        graph: the model's channel graph.
        variables: its variables; not modified.
        changes: producer number -> `[C, weights per channel]`, of `weight_change`.
        masks: producer number -> bool `[C]`.
        m: share of the pool, in [0, 1]; ties with the q-th largest change are zeroed too. Nothing is if `q = 0`.

    Returns:
        The edited variables.

    Raises:
        GraphError: the kernel's weights cannot be zeroed one by one in its leaves.
    """
    pools = [changes[number][mask].ravel() for number, mask in masks.items()]
    pool = np.concatenate([*pools, np.zeros(0, np.float32)])
    q = math.floor(m * len(pool))
    if q == 0:
        return variables
    # The q-th largest change: a partial sort finds it without ordering millions of weights.
    smallest = np.partition(pool, len(pool) - q)[len(pool) - q]
    for number, mask in masks.items():
        weights = mask[:, None] & (changes[number] >= smallest)
        if weights.any():
            variables = surgery.zero_weights(graph, variables, number, weights)
    return variables
