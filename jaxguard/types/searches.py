"""What a search for universal triggers found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class TriggerRow:
    """The best triggers of one kind and size, one of each class that was searched.

    Attributes:
        kind: family of the triggers, such as `patch`.
        size: in the unit of the family; of a patch its edge in pixels.
        classes: int `[S]` that were searched.
        margin: `[S]`, T: mean over judged images of the class's logit less the highest other one, in standard
            deviations of all clean logits.
        hits: int `[S]`, judged images that the trigger turns into the class.
        judged: int `[S]`, images neither of the class nor taken for it without the trigger.
        corners: int `[S, 2]`, row and column where a patch begins.
        pixels: `[S, h, w, C]` in [0, 1], the patches.
    """

    kind: str
    size: float
    classes: np.ndarray
    margin: np.ndarray
    hits: np.ndarray
    judged: np.ndarray
    corners: np.ndarray
    pixels: np.ndarray

    @property
    def success(self) -> np.ndarray:
        """`[S]`, share of the judged images that are turned into the class; NaN where none was judged."""
        import numpy as np

        return np.where(self.judged > 0, self.hits / np.maximum(self.judged, 1), np.nan)

    @property
    def order(self) -> np.ndarray:
        """Rows from the highest margin to the lowest."""
        import numpy as np

        return np.argsort(-self.margin, kind="stable")

    @property
    def gap(self) -> float:
        """The highest margin less the next one; NaN for fewer than two classes."""
        high = sorted(map(float, self.margin), reverse=True)
        return high[0] - high[1] if len(high) > 1 else math.nan

    def layers(self, number: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """A trigger on a whole image.

        Args:
            number: row of the class.
            height: of the image.
            width: of the image.

        Returns:
            Mask `[H, W, 1]` and pattern `[H, W, C]`, stamped as `x (1 - mask) + pattern mask`.
        """
        import numpy as np

        (top, left), pixels = self.corners[number], self.pixels[number]
        mask = np.zeros((height, width, 1), np.float32)
        pattern = np.zeros((height, width, pixels.shape[-1]), np.float32)
        mask[top : top + pixels.shape[0], left : left + pixels.shape[1]] = 1
        pattern[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        return mask, pattern


@dataclass(frozen=True)
class TriggerSearch:
    """Universal triggers of all classes, and how far one class stands out.

    Attributes:
        rows: one per kind and size that was searched to the end.
        gap: G, the largest gap of a row; NaN without one.
        p_class: chance that one of equal classes leads by as much, see `jaxguard.inversion.margins`; NaN where it has
            none.
        problem: why the figures say nothing of a backdoor, in words; empty where they do.
        source: what images it was made on.
        reached: share of the procedural images that the network is sure of; NaN where images were given.
        left_out: sizes that there was no time for, and other limits, in full sentences.
        num_classes: `K`.
        shape: `(H, W, C)` of the images.
        pictures: `[N, H, W, C]`, a few of the judging images; None where no trigger was found.
        answers: int `[N, 2]`, what the network answers to them, without and with the leading trigger.
        forwards: cost in forward passes.
        seconds: wall-clock time.
    """

    rows: tuple[TriggerRow, ...] = ()
    gap: float = math.nan
    p_class: float = math.nan
    problem: str = ""
    source: str = ""
    reached: float = math.nan
    left_out: tuple[str, ...] = ()
    num_classes: int = 0
    shape: tuple[int, ...] = ()
    pictures: np.ndarray | None = None
    answers: np.ndarray | None = None
    forwards: int = 0
    seconds: float = 0.0

    @property
    def leading(self) -> TriggerRow | None:
        """The row of the largest gap."""
        known = [row for row in self.rows if not math.isnan(row.gap)]
        return max(known, key=lambda row: row.gap) if known else None

    @property
    def target(self) -> int | None:
        """The class that leads there; whether it is suspected, a verdict says."""
        row = self.leading
        return None if row is None else int(row.classes[row.order[0]])

    @property
    def success(self) -> float:
        """Success of the leading trigger on judged images."""
        row = self.leading
        return math.nan if row is None else float(row.success[row.order[0]])

    @property
    def interval(self) -> tuple[float, float]:
        """Its exact (Clopper-Pearson) 95 % interval."""
        row = self.leading
        if row is None or not row.judged[row.order[0]]:
            return 0.0, 1.0
        from scipy import stats

        first = row.order[0]
        found = stats.binomtest(int(row.hits[first]), int(row.judged[first])).proportion_ci(0.95, method="exact")
        return float(found.low), float(found.high)

    @property
    def kinds(self) -> str:
        """What was searched, such as `patches of 2, 3, 5 pixels of edge`; empty where nothing was."""
        sizes = ", ".join(f"{row.size:g}" for row in self.rows)
        return f"patches of {sizes} pixels of edge" if sizes else ""

    @property
    def trigger(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Mask and pattern of the leading trigger on a whole image."""
        row = self.leading
        return None if row is None else row.layers(int(row.order[0]), self.shape[0], self.shape[1])
