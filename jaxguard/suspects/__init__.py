"""A model to be audited: from a checkpoint and back, or from memory."""

from jaxguard.suspects.description import METADATA_KEY, description
from jaxguard.suspects.opening import load, structural
from jaxguard.suspects.saving import require_writable, save, written_format
from jaxguard.suspects.suspect import UNKNOWN, Suspect, wrap

__all__ = [
    "METADATA_KEY",
    "UNKNOWN",
    "Suspect",
    "description",
    "load",
    "require_writable",
    "save",
    "structural",
    "wrap",
    "written_format",
]
