"""A network to be audited: from a checkpoint and back, or from memory."""

from jaxguard.suspects.description import METADATA_KEY, described, description
from jaxguard.suspects.opening import load, structural, structural_note
from jaxguard.suspects.saving import require_writable, save, written_format
from jaxguard.suspects.suspect import UNKNOWN, Suspect

__all__ = [
    "METADATA_KEY",
    "UNKNOWN",
    "Suspect",
    "described",
    "description",
    "load",
    "require_writable",
    "save",
    "structural",
    "structural_note",
    "written_format",
]
