"""Reads and writes checkpoints, which may be hostile: nothing is ever unpickled.

`load` recognises a format by its content, checks every announced size, and reads leaves on demand; `save`
writes atomically. `flatten` and `unflatten` convert from and to nested variables.

Names are imported when they are first used: looking for code in a file needs neither JAX nor NumPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxguard.checkpoints.calls import Call
    from jaxguard.checkpoints.checkpoint import DTYPES, Checkpoint, LeafSpec
    from jaxguard.checkpoints.code import Code, examine
    from jaxguard.checkpoints.finite import check_finite
    from jaxguard.checkpoints.formats import FORMATS, Format, is_checkpoint, is_url, load, save
    from jaxguard.checkpoints.listing import Listed, behind, below, manifest, parts, text_of
    from jaxguard.checkpoints.raw import read_into
    from jaxguard.checkpoints.training_state import is_random
    from jaxguard.checkpoints.trees import flatten, unflatten

_HOMES = {
    "Call": "calls",
    "Checkpoint": "checkpoint",
    "Code": "code",
    "DTYPES": "checkpoint",
    "FORMATS": "formats",
    "Format": "formats",
    "LeafSpec": "checkpoint",
    "Listed": "listing",
    "behind": "listing",
    "below": "listing",
    "check_finite": "finite",
    "examine": "code",
    "flatten": "trees",
    "is_checkpoint": "formats",
    "is_random": "training_state",
    "is_url": "formats",
    "load": "formats",
    "manifest": "listing",
    "parts": "listing",
    "read_into": "raw",
    "save": "formats",
    "text_of": "listing",
    "unflatten": "trees",
}
"""Name -> module that it is imported from."""

__all__ = [
    "DTYPES",
    "FORMATS",
    "Call",
    "Checkpoint",
    "Code",
    "Format",
    "LeafSpec",
    "Listed",
    "behind",
    "below",
    "check_finite",
    "examine",
    "flatten",
    "is_checkpoint",
    "is_random",
    "is_url",
    "load",
    "manifest",
    "parts",
    "read_into",
    "save",
    "text_of",
    "unflatten",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"jaxguard.checkpoints.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'jaxguard.checkpoints' has no attribute {name!r}")
