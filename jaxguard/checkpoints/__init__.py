"""From bytes to leaves: the only parser of hostile files, and it never unpickles.

`load` recognises a format by its content, checks every announced size, and reads leaves when they are asked
for; `save` writes so that nobody ever sees half a checkpoint. `flatten` and `unflatten` translate to nested
variables.
"""

from jaxguard.checkpoints.checkpoint import DTYPES, Checkpoint, LeafSpec
from jaxguard.checkpoints.finite import check_finite
from jaxguard.checkpoints.formats import FORMATS, Format, load, save
from jaxguard.checkpoints.trees import flatten, unflatten

__all__ = [
    "DTYPES",
    "FORMATS",
    "Checkpoint",
    "Format",
    "LeafSpec",
    "check_finite",
    "flatten",
    "load",
    "save",
    "unflatten",
]
