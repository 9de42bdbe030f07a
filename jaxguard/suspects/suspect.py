"""A network to be audited, where it came from, and what its checkpoint says of its architecture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxguard import checkpoints
from jaxguard.errors import ArchitectureError, CheckpointError
from jaxguard.models import Model
from jaxguard.types import Network, Variables

UNKNOWN = "unknown"
"""Architecture of a suspect of which only the names and shapes of its leaves are known."""

METADATA_KEY = "jaxguard"
"""Metadata entry, JSON, from which a checkpoint's architecture is found again."""


@dataclass(frozen=True)
class Suspect:
    """A network to be audited, and where it came from.

    Attributes:
        name: path of its checkpoint, or any name.
        network: the network; None where the architecture is unknown, so that it can be scanned but not run.
        architecture: specification such as `resnet20`, or any name.
        sha256: content hash of its checkpoint; empty for a network from memory.
        checkpoint: where it was read from, or None.
        model: bundled architecture, or None.
        layout: naming of the checkpoint's leaves, such as `flax` or `torch`.
        names: leaf of the checkpoint -> path in the variables, for the user's own function.
        notes: caveats for the reader of a report, in full sentences.
        leaves: the checkpoint's arrays by name where `network` is None; otherwise empty.
    """

    name: str
    network: Network | None
    architecture: str = UNKNOWN
    sha256: str = ""
    checkpoint: checkpoints.Checkpoint | None = None
    model: Model | None = None
    layout: Any = "flax"
    names: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    leaves: Mapping[str, np.ndarray] = field(default_factory=dict)

    def require_network(self) -> Network:
        """The network, for whatever must run it.

        Raises:
            ArchitectureError: the architecture is unknown.
        """
        if self.network is None:
            raise ArchitectureError(
                f"expected a model that can be run, got {self.name} of unknown architecture; "
                f"pass --arch, or your own model with --apply. {' '.join(self.notes)}"
            )
        return self.network

    def with_variables(self, variables: Variables) -> Suspect:
        """The same suspect with other variables, such as repaired ones.

        Raises:
            ArchitectureError: the architecture is unknown.
        """
        return replace(self, network=self.require_network().with_variables(variables))


def description(model: Model) -> dict[str, str]:
    """Checkpoint metadata from which `load` finds the architecture again.

    Args:
        model: a bundled architecture.

    Returns:
        Metadata for `checkpoints.save`.
    """
    fields = {"architecture": model.spec, "input_shape": model.input_shape, "mean": model.mean, "std": model.std}
    return {METADATA_KEY: json.dumps(fields)}


def described(checkpoint: checkpoints.Checkpoint) -> dict[str, Any]:
    """The fields of `description` that a checkpoint carries.

    Raises:
        CheckpointError: the entry is no JSON.
    """
    text = checkpoint.metadata.get(METADATA_KEY, "{}")
    try:
        description = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"expected JSON in the metadata entry '{METADATA_KEY}' of {checkpoint.path}, got {text[:60]!r}: {error}; "
            "pass --arch, --input, --mean and --std yourself after removing the entry"
        ) from error
    return description if isinstance(description, dict) else {}
