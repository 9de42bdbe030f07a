"""Reads and writes checkpoints, which may be hostile: nothing is ever unpickled.

`load` recognises a format by its content, checks every announced size, and reads leaves on demand; `save`
writes atomically. `flatten` and `unflatten` convert from and to nested variables.
"""

from jaxguard.checkpoints.checkpoint import DTYPES, Checkpoint, LeafSpec
from jaxguard.checkpoints.finite import check_finite
from jaxguard.checkpoints.formats import FORMATS, Format, is_checkpoint, load, save
from jaxguard.checkpoints.listing import Listed, behind, below, manifest, parts, text_of
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
    "text_of",
    "unflatten",
]
