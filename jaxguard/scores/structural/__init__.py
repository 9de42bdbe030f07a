"""Channels of a network nobody described: layers read from the names, shapes and element types of a file's leaves.

`dialects` is the table of what libraries call their leaves, `names` spells a name out, `forms` says how weights are
formed, `layout` which axes are channels, by what fits together in the file, `stacks` finds stacked layers, `norms`
pairs BatchNorms, and `reading` accounts for every leaf. What fits no rule is not understood, and is named.

That is a reading of conventions, not of the network: where two branches interleave, a kernel may be scored with a
neighbour's norm. Where the architecture is known, the channel graph takes this package's place.
"""

from jaxguard.scores.structural.bounds import bounds_of, channel_bounds, kernels_of, layers_of, require_producers
from jaxguard.scores.structural.reading import NOT_A_LAYER, NOT_UNDERSTOOD, SCORED, Producer, Reading, read

__all__ = [
    "NOT_A_LAYER",
    "NOT_UNDERSTOOD",
    "SCORED",
    "Producer",
    "Reading",
    "bounds_of",
    "channel_bounds",
    "kernels_of",
    "layers_of",
    "read",
    "require_producers",
]
