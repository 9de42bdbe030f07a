"""Fusion of two models of one architecture whose channels may lie in another order (OTFusion).

Singh, Jaggi: Model Fusion via Optimal Transport, NeurIPS 2020. Averaging the weights of two networks mixes channels
that have nothing to do with each other. Here the channels of the first model are matched with those of the second by
optimal transport, set by set along the channel graph, carried over, and only then averaged.
"""

from jaxguard.fusion.alignment import Alignment, align
from jaxguard.fusion.channels import Chain, Channels, find_channels, masses_of
from jaxguard.fusion.fuse import Fused, blend, fuse, leaves_by_path

__all__ = [
    "Alignment",
    "Chain",
    "Channels",
    "Fused",
    "align",
    "blend",
    "find_channels",
    "fuse",
    "leaves_by_path",
    "masses_of",
]
