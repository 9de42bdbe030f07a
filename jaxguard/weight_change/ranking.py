"""Channels ranked by what unlearning did to their weights, over all layers together."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from jaxguard.errors import UnscorableError
from jaxguard.graph import ChannelGraph, kernel_cuts
from jaxguard.types import LayerScores, Variables
from jaxguard.weight_change.scores import highest, neuron_weight_change, weight_change

Layers = Literal["hidden", "convolutions"]


class Ranking(NamedTuple):
    """The channels that may be edited, and how far unlearning moved them.

    Attributes:
        numbers: of the producers in the channel graph.
        scores: NWC, `[C]` per producer.
        changes: `|theta_ul - theta|`, `[C, weights per channel]` per producer.
        notes: which layers were left out because their kernels cannot be edited, and why.
    """

    numbers: tuple[int, ...]
    scores: list[np.ndarray]
    changes: list[np.ndarray]
    notes: tuple[str, ...] = ()

    def top(self, n: float) -> dict[int, np.ndarray]:
        """The channels of the highest NWC, over all layers.

        Args:
            n: share of the channels.

        Returns:
            Producer number -> bool `[C]`.
        """
        return dict(zip(self.numbers, highest(self.scores, n), strict=True))

    def layers(self, graph: ChannelGraph, n: float) -> tuple[LayerScores, ...]:
        """Scores and masks for a report; the threshold is the highest score that was spared.

        Args:
            graph: the model's channel graph.
            n: share of the channels.

        Returns:
            One entry per producer.
        """
        masks = self.top(n)
        spared = np.concatenate([score[~masks[k]] for k, score in zip(self.numbers, self.scores, strict=True)])
        threshold = float(spared.max()) if spared.size else 0.0
        return tuple(
            LayerScores(graph.producers[k].name, score, threshold, masks[k], np.zeros(len(score), bool))
            for k, score in zip(self.numbers, self.scores, strict=True)
        )


def rank(
    graph: ChannelGraph,
    before: Variables,
    after: Variables,
    *,
    layers: Layers = "hidden",
    exclude: str = "",
    decimals: int | None = None,
    scope: kernel_cuts.Scope = "channels",
) -> Ranking:
    """Compares a model with its unlearned copy.

    Args:
        graph: the model's channel graph.
        before: its variables.
        after: those of the copy.
        layers: `hidden`, all but the layer that makes the logits, or `convolutions` among these.
        exclude: layers with this in their name are left out.
        decimals: places that NWC is rounded to.
        scope: what will be set to zero in the kernels; layers where that cannot be done are left out and noted.

    Returns:
        The ranking; a kernel that is used twice is in it once.

    Raises:
        UnscorableError: no layer is left.
    """
    why: dict[int, str | None] = {}
    for k, producer in enumerate(graph.producers):
        wanted = k not in graph.outputs and (layers == "hidden" or producer.is_convolution)
        # A kernel that is used twice is ranked once, by its first use.
        if wanted and graph.first_uses[k] not in why and not (exclude and exclude in producer.name):
            why[graph.first_uses[k]] = kernel_cuts.why_uncuttable(graph, k, scope)
    numbers = tuple(k for k, reason in why.items() if reason is None)
    notes = tuple(
        f"The {scope} of {graph.producers[k].name} cannot be set to zero and were not ranked: {reason}."
        for k, reason in why.items()
        if reason is not None
    )
    if not numbers:
        raise UnscorableError(
            f"expected layers to rank, got none of the {len(graph.producers)} producers with {layers=} and "
            f"{exclude=}; the layer that makes the logits is never ranked. {' '.join(notes)}".rstrip()
        )
    scores = neuron_weight_change(graph, before, after, decimals=decimals)
    changes = weight_change(graph, before, after)
    return Ranking(numbers, [scores[k] for k in numbers], [np.asarray(changes[k]) for k in numbers], notes)
