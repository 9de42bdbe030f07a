"""From bytes to leaves: the only parser of hostile files, and it never unpickles.

`load` recognises a format by its content, checks every announced size, and reads leaves when they are asked
for; `save` writes so that nobody ever sees half a checkpoint. `flatten` and `unflatten` translate to nested
variables.
"""

from jaxguard.checkpoints.checkpoint import DTYPES, Checkpoint, LeafSpec
from jaxguard.checkpoints.finite import check_finite
from jaxguard.checkpoints.formats import FORMATS, Format, is_checkpoint, load, save
from jaxguard.checkpoints.listing import Listed, behind, below, manifest, parts
from jaxguard.checkpoints.raw import read_into
from jaxguard.checkpoints.remote import is_url
from jaxguard.checkpoints.trees import flatten, unflatten

__all__ = [
    "DTYPES",
    "FORMATS",
    "Checkpoint",
    "Format",
    "LeafSpec",
    "Listed",
    "behind",
    "below",
    "check_finite",
    "flatten",
    "is_checkpoint",
    "is_url",
    "load",
    "manifest",
    "parts",
    "read_into",
    "save",
    "unflatten",
]
