"""Images that judge triggers: none of them was used to find one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jaxguard.inversion import margins
from jaxguard.types.searches import TriggerRow


class Judges(NamedTuple):
    """Judging images and what the network makes of them.

    Attributes:
        images: `[B, H, W, C]`.
        clean: logits `[B, K]` of the plain images.
        labels: int `[B]`.
        spread: standard deviation of the logits of all clean images.
    """

    images: np.ndarray
    clean: np.ndarray
    labels: np.ndarray
    spread: float

    def row(
        self,
        kind: str,
        size: float,
        classes: np.ndarray,
        stamped: np.ndarray,
        parameters: Mapping[str, np.ndarray],
        *,
        kept: int | None = None,
        anomaly: np.ndarray | None = None,
    ) -> TriggerRow:
        """Judges one trigger per class.

        Args:
            kind: of the triggers.
            size: of the triggers.
            classes: int `[S]`.
            stamped: logits `[S, B, K]` of the images with the trigger of each class.
            parameters: of the triggers `[S, ...]`, in the order of the classes.
            kept: triggers that the row keeps, from the leading one on; None for all.
            anomaly: `[S]`, what ranks the classes; None for their margins.

        Returns:
            The row, without words.
        """
        judged = margins.judged(stamped, self.clean, classes, self.labels, self.spread)
        row = TriggerRow(kind, size, classes, *judged, {}, anomaly=anomaly)
        chosen = row.order[:kept]
        return replace(row, parameters={name: np.asarray(part)[chosen] for name, part in parameters.items()})
