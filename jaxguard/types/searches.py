"""What a search for universal triggers found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jaxguard.types.triggers import Trigger

if TYPE_CHECKING:
    import numpy as np


TRANSFERABILITY = "transferability"
"""Name of the result for networks of fewer than five classes; its gap is the expected transferability."""


@dataclass(frozen=True)
class TriggerRow:
    """The best triggers of one kind and size, one of each class (or pair of classes) that was searched.

    Attributes:
        kind: of the triggers, such as `patch`; see `jaxguard.inversion.kinds`.
        size: in the unit of the kind; of a patch its edge in pixels.
        classes: int `[S]`, targets that were searched.
        margin: `[S]`, T: mean over judged images of the class's logit less the highest other one, in standard
            deviations of all clean logits.
        hits: int `[S]`, judged images that the trigger turns into the class.
        judged: int `[S]`, images neither of the class nor taken for it without the trigger.
        parameters: the triggers of the `M` leading classes in `order`, `M` of 1 to `S`. Of patches `corners`, int
            `[M, 2]` (row and column where each begins), and `pixels`, `[M, h, w, C]`; of others the parts of a
            `Trigger`, `[M, ...]`.
        label: the leading trigger in words, such as `a 3x3 patch at (29, 29)`.
        anomaly: `[S]`, MAD anomaly index of each class's smallest mask, which ranks the classes of Neural Cleanse; None
            where the margins do.
        sources: int `[S]`, the classes whose images are turned; None where those of all are.
        assignments: int `[S, K]`, where a trigger turns images of every class into another one: the class for each, -1
            for classes that were not searched. `classes` are -1 then; None for triggers of one target.
        own_gap: G of a kind that has its own; NaN for the usual one.
    """

    kind: str
    size: float
    classes: np.ndarray
    margin: np.ndarray
    hits: np.ndarray
    judged: np.ndarray
    parameters: Mapping[str, np.ndarray]
    label: str = ""
    anomaly: np.ndarray | None = None
    sources: np.ndarray | None = None
    assignments: np.ndarray | None = None
    own_gap: float = math.nan

    @property
    def success(self) -> np.ndarray:
        """`[S]`, share of the judged images that are turned into the class; NaN where none was judged."""
        import numpy as np

        return np.where(self.judged > 0, self.hits / np.maximum(self.judged, 1), np.nan)

    @property
    def ranks(self) -> np.ndarray:
        """`[S]`, what ranks the classes: margins, or anomaly indices."""
        return self.margin if self.anomaly is None else self.anomaly

    @property
    def order(self) -> np.ndarray:
        """Numbers of the classes from the highest rank to the lowest."""
        import numpy as np

        return np.argsort(-self.ranks, kind="stable")

    @property
    def gap(self) -> float:
        """G: how far the first class leads the next one in margin, times how far in success; NaN for one class.

        In networks whose classes are all easy to reach a margin may lead while the success of the next class is near.
        Where anomaly indices rank the classes, it is the highest.
        """
        import numpy as np

        if not math.isnan(self.own_gap):
            return self.own_gap
        if not len(self.margin) == len(self.hits) == len(self.judged) > 1:
            return math.nan
        first, second = self.order[:2]
        if self.anomaly is not None:
            return float(self.anomaly[first])
        lead = float(np.nan_to_num(self.success[first] - self.success[second]))
        return float(self.margin[first] - self.margin[second]) * max(0.0, lead)

    def goal(self, number: int) -> str:
        """What a trigger does to classes, in words.

        Args:
            number: of the trigger among `S`.

        Returns:
            Such as `class 5`, `class 3 → 5`, or `0 → 1, 1 → 2, 2 → 0`.
        """
        if self.assignments is not None:
            return ", ".join(f"{y} \u2192 {t}" for y, t in enumerate(self.assignments[number]) if t >= 0)
        target = int(self.classes[number])
        return f"class {target}" if self.sources is None else f"class {int(self.sources[number])} \u2192 {target}"

    def labels(self, number: int, num_classes: int) -> np.ndarray:
        """What images of each class become by a trigger.

        Args:
            number: of the trigger among `S`.
            num_classes: `K`.

        Returns:
            int `[K]`, the class itself where the trigger is not for its images.
        """
        import numpy as np

        own = np.arange(num_classes)
        if self.assignments is not None:
            return np.where(self.assignments[number] >= 0, self.assignments[number], own)
        is_meant = True if self.sources is None else own == self.sources[number]
        return np.where(is_meant, self.classes[number], own)

    def searched(self, num_classes: int) -> str:
        """How many of the classes, or pairs of them, were searched.

        Args:
            num_classes: `K`.

        Returns:
            Such as `all 10 classes` or `90 of 1806 pairs of classes`.
        """
        if self.assignments is not None:
            some, every, what = int((self.assignments[0] >= 0).sum()), num_classes, "classes"
        elif self.sources is not None:
            some, every, what = len(self.classes), num_classes * (num_classes - 1), "pairs of classes"
        else:
            some, every, what = len(self.classes), num_classes, "classes"
        return f"all {some} {what}" if some >= every else f"{some} of {every} {what}"

    def trigger(self, place: int, height: int, width: int) -> Trigger:
        """One of the triggers.

        Args:
            place: of the class in `order`, below `M`; 0 for the leading one.
            height: of the images.
            width: of the images.

        Returns:
            The trigger on whole images.
        """
        import numpy as np

        known = {name: part[place] for name, part in self.parameters.items()}
        if "corners" not in known:
            return Trigger(**known)
        (top, left), pixels = known["corners"], known["pixels"]
        mask = np.zeros((height, width, 1), np.float32)
        pattern = np.zeros((height, width, pixels.shape[-1]), np.float32)
        mask[top : top + pixels.shape[0], left : left + pixels.shape[1]] = 1
        pattern[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        return Trigger(mask, pattern)


@dataclass(frozen=True)
class KindResult:
    """How far one class stands out by the triggers of one kind.

    Attributes:
        kind: its name.
        version: of its search; gaps of different versions do not compare.
        gap: G, the largest gap of its rows; NaN without one.
        p_class: chance that one of equal classes leads by as much, see `jaxguard.inversion.margins`; NaN where it has
            none.
        problem: why its figures say nothing of a backdoor, in words; empty where they do.
        label: what was searched, such as `patches of 2, 3 pixels of edge`; empty where nothing was to the end.
        pictures: `[N, H, W, C]`, a few of the judging images; None where no trigger was found.
        answers: int `[N, 2]`, what the network answers to them, without and with the kind's leading trigger.
        forwards: cost in forward passes.
        seconds: wall-clock time.
        cpu_seconds: of the process meanwhile.
    """

    kind: str
    version: int = 1
    gap: float = math.nan
    p_class: float = math.nan
    problem: str = ""
    label: str = ""
    pictures: np.ndarray | None = None
    answers: np.ndarray | None = None
    forwards: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class TriggerSearch:
    """Universal triggers of all classes, and how far one class stands out by each kind.

    Attributes:
        rows: one per kind and size that was searched to the end.
        results: one per kind, in the order they were searched.
        problem: why no figure says anything of a backdoor, in words; empty where those of a kind do.
        lead: the kind that a verdict rests on; empty for that of the smallest `p_class`.
        source: what images it was made on.
        reached: share of the procedural images that the network is sure of; NaN where images were given.
        left_out: sizes that there was no time for, and other limits, in full sentences.
        unsearched: kinds that were not searched, by name.
        interrupted: how far it was when the user stopped it, in words; empty where it was not.
        num_classes: `K`.
        shape: `(H, W, C)` of the images.
        forwards: cost in forward passes.
        seconds: wall-clock time.
    """

    rows: tuple[TriggerRow, ...] = ()
    results: tuple[KindResult, ...] = ()
    problem: str = ""
    lead: str = ""
    source: str = ""
    reached: float = math.nan
    left_out: tuple[str, ...] = ()
    unsearched: tuple[str, ...] = ()
    interrupted: str = ""
    num_classes: int = 0
    shape: tuple[int, ...] = ()
    forwards: int = 0
    seconds: float = 0.0

    @property
    def gaps(self) -> dict[str, float]:
        """Kind -> G."""
        return {one.kind: one.gap for one in self.results}

    @property
    def leading_result(self) -> KindResult | None:
        """Of the kind that leads: `lead`, or that of the smallest `p_class` among those that say anything."""
        named = next((one for one in self.results if one.kind == self.lead), None)
        known = [one for one in self.results if not math.isnan(one.gap)]

        def rank(one: KindResult) -> tuple[bool, float]:
            return bool(one.problem), 2.0 if math.isnan(one.p_class) else one.p_class

        return named or min(known, key=rank, default=None)

    @property
    def gap(self) -> float:
        """G of the leading kind; NaN without one."""
        return math.nan if (one := self.leading_result) is None else one.gap

    @property
    def p_class(self) -> float:
        """Of all kinds that say anything together, by Bonferroni; NaN without any."""
        known = [one.p_class for one in self.results if not one.problem and not math.isnan(one.p_class)]
        return min(1.0, len(known) * min(known)) if known else math.nan

    @property
    def leading(self) -> TriggerRow | None:
        """The leading kind's row of the largest gap."""
        if (one := self.leading_result) is None:
            return None
        known = [row for row in self.rows if row.kind == one.kind and not math.isnan(row.gap)]
        return max(known, key=lambda row: row.gap, default=None)

    @property
    def target(self) -> int | None:
        """The class that leads there, None where every class has its own; whether it is suspected, a verdict says."""
        row = self.leading
        return None if row is None or row.assignments is not None else int(row.classes[row.order[0]])

    @property
    def goal(self) -> str:
        """What the leading trigger does to classes, such as `class 5`; empty without one."""
        row = self.leading
        return "" if row is None else row.goal(int(row.order[0]))

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
    def label(self) -> str:
        """What was searched, such as `patches of 2, 3, 5 pixels of edge`; empty where nothing was."""
        return "; ".join(one.label for one in self.results if one.label)

    @property
    def trigger(self) -> Trigger | None:
        """The leading one, with what it does to each class."""
        row = self.leading
        if row is None:
            return None
        labels = row.labels(int(row.order[0]), self.num_classes)
        return replace(row.trigger(0, self.shape[0], self.shape[1]), labels=labels)
