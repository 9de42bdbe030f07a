"""Trigger and data reverse engineering: what patch turns images into each class, and images where there are none.

found = invert(apply_fn, variables, images, labels, num_classes, key)  # all classes in one program
trigger = recovered_trigger(found, source="10 clean images")           # the MAD anomaly index names a class
"""

from jaxguard.inversion.anomaly import anomaly_index, recovered_trigger
from jaxguard.inversion.trigger import Inversion, invert

__all__ = ["Inversion", "anomaly_index", "invert", "recovered_trigger"]
