"""Fusion of two models of one architecture whose channels may be in different orders (OTFusion).

Singh, Jaggi: Model Fusion via Optimal Transport, NeurIPS 2020. Averaging the weights of two networks directly mixes
unrelated channels. Instead, optimal transport matches the channels of the first model with those of the second, set by
set along the channel graph; the first model is transported, and then averaged with the second.
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
