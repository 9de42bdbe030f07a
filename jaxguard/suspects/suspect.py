"""A network to be audited, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxguard import checkpoints
from jaxguard.errors import ArchitectureError
from jaxguard.models import Model
from jaxguard.types import Network, Variables

UNKNOWN = "unknown"
"""Architecture of a suspect of which only the names and shapes of its leaves are known."""


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
