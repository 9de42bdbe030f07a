"""Reverse engineering: for each class the patch that turns images into it; and images, for a defender without any.

    found = invert(apply_fn, variables, images, labels, key)      # all classes in one program
    trigger = recovered_trigger(found, source="10 clean images")  # the MAD anomaly index names a class

Without images, `made = synthesise(graph, variables, key, labels=labels)` gives `made.images` to start from, and
`made.source` to describe them.
"""

from jaxguard.inversion.anomaly import anomaly_index, recovered_trigger
from jaxguard.inversion.batches import in_turn
from jaxguard.inversion.known_images import FEWEST
from jaxguard.inversion.synthesis import Synthesis, synthesise
from jaxguard.inversion.trigger import Inversion, invert
from jaxguard.inversion.universal import search

__all__ = [
    "FEWEST",
    "Inversion",
    "Synthesis",
    "anomaly_index",
    "in_turn",
    "invert",
    "recovered_trigger",
    "search",
    "synthesise",
]
