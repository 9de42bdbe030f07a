"""A network to be audited: from a checkpoint and back, or from memory."""

from jaxguard.suspects.opening import ModelOptions, load, structural, structural_note
from jaxguard.suspects.own_model import network_of, paths_of, tied, variables_of
from jaxguard.suspects.saving import require_writable, save, written_format
from jaxguard.suspects.suspect import METADATA_KEY, UNKNOWN, Suspect, described, description

__all__ = [
    "METADATA_KEY",
    "UNKNOWN",
    "ModelOptions",
    "Suspect",
    "described",
    "description",
    "load",
    "network_of",
    "paths_of",
    "require_writable",
    "save",
    "structural",
    "structural_note",
    "tied",
    "variables_of",
    "written_format",
]
