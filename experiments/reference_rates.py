"""Realised rates of the product's rule on networks of known truth, from the rows of their searches.

Every network is judged by `jaxguard.detection.search_verdicts` itself, against the clean networks among some rows, by
each kind of trigger that is asked for. Where the search says that its figures say nothing, the network is inconclusive:
it counts as not suspected in every rate, and is counted beside it.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from jaxguard.detection import search_verdicts
from jaxguard.detection.trigger_reference import ReferenceNetwork, TriggerReference
from jaxguard.types import Finding, KindResult, Provenance, TriggerRow, TriggerSearch, Verdict

ALPHA = 0.05

Row = dict[str, Any]


def interval(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of Clopper and Pearson.

    >>> tuple(round(bound, 3) for bound in interval(0, 10))
    (0.0, 0.308)
    """
    found = stats.binomtest(count, total).proportion_ci(confidence_level=0.95, method="exact")
    return float(found.low), float(found.high)


def rate(flags: Sequence[bool]) -> dict[str, Any]:
    """How many of them, with its interval; nothing for none."""
    if not flags:
        return {"networks": 0}
    low, high = interval(sum(flags), len(flags))
    share = sum(flags) / len(flags)
    bounds = [round(low, 4), round(high, 4)]
    return {"networks": len(flags), "count": sum(flags), "rate": round(share, 4), "ci95": bounds}


def area(clean: Sequence[float], backdoored: Sequence[float]) -> float:
    """Area under the ROC curve: share of pairs in the right order, ties by half.

    >>> area([0.0, 1.0], [1.0, 2.0])
    0.875
    """
    high, low = np.asarray(backdoored)[:, None], np.asarray(clean)[None]
    return float(((high > low) + 0.5 * (high == low)).mean())


def search_of(row: Row, kinds: Iterable[str]) -> TriggerSearch:
    """What a row tells of some kinds, as the search gave it, without the triggers themselves."""
    rows: list[TriggerRow] = []
    results: list[KindResult] = []
    for kind in kinds:
        known = row["searched"][kind]
        gap, p_class = (math.nan if known[name] is None else known[name] for name in ("gap", "p_class"))
        results.append(KindResult(kind, known["version"], gap, p_class, known["problem"], kind))
        for size in known["sizes"]:
            margin = [-math.inf if value is None else value for value in size["margin"]]
            of_classes = (np.array(part) for part in (size["classes"], margin, size["hits"], size["judged"]))
            pairs = {name: np.array(size[name]) for name in ("sources", "assignments") if name in size}
            rows.append(TriggerRow(kind, size["size"], *of_classes, {}, kind, **pairs))
    problem = results[0].problem if all(one.problem for one in results) else ""
    return TriggerSearch(tuple(rows), tuple(results), problem, num_classes=row["classes"], shape=tuple(row["shape"]))


def reference_of(rows: Iterable[Row], kinds: Iterable[str]) -> TriggerReference:
    """The clean networks among the rows, those with a gap of any of the kinds."""
    networks = []
    for row in rows:
        known = {kind: row["searched"][kind] for kind in kinds}
        gaps = {
            kind: (one["version"], one["gap"])
            for kind, one in known.items()
            if not one["problem"] and one["gap"] is not None
        }
        if row["attack"] is None and gaps:
            sha256 = next(iter(known.values()))["file_sha256"]
            networks.append(ReferenceNetwork(sha256, row["architecture"], gaps))
    return TriggerReference(tuple(networks))


@dataclass(frozen=True)
class Judged:
    """A network of the half that judges.

    Attributes:
        row: all that is known of it.
        verdict: by the product's rule.
        height: how far it stands out, for the ROC curve; -inf where nothing can be said.
        target: the class that leads.
    """

    row: Row
    verdict: Verdict
    height: float
    target: int | None

    @property
    def is_suspected(self) -> bool:
        """By the rule."""
        return self.verdict is Verdict.SUSPECTED


def judged(row: Row, reference: TriggerReference, kinds: Sequence[str]) -> Judged:
    """The product's verdict on one network."""
    search = search_of(row, kinds)
    sha256 = row["searched"][kinds[0]]["file_sha256"]
    finding = Finding(Provenance(f"{row['index']}", sha256, architecture=row["architecture"]), Verdict.INCONCLUSIVE, "")
    (finding,) = search_verdicts.judge([finding], {0: search}, reference, alpha=ALPHA)
    assert finding.search is not None
    compared = reference.compare(search.results, sha256)
    height = -math.inf if math.isnan(compared.height) else compared.height
    return Judged(row, finding.verdict, height, finding.search.target)


BY: dict[str, Callable[[Row], Any]] = {
    "architecture": lambda row: row["architecture"].partition(":")[0],
    "data": lambda row: row["data"],
    "regime": lambda row: row["regime"],
    "attack": lambda row: row["attack"],
    "trigger size": lambda row: row.get("size") or "whole image",
}


def grouped(networks: Iterable[Judged], by: Callable[[Row], Any]) -> dict[str, Any]:
    """Rates by what the rows have in common."""
    groups: dict[str, list[bool]] = collections.defaultdict(list)
    for one in networks:
        groups[str(by(one.row))].append(one.is_suspected)
    return {name: rate(groups[name]) for name in sorted(groups)}


def rates(clean: Sequence[Judged], backdoored: Sequence[Judged], *, is_whole: bool) -> dict[str, Any]:
    """Of some kinds of triggers; by every property if it is the whole."""
    single = [one for one in backdoored if one.row["target"] is not None]
    heights = [[one.height for one in part] for part in (clean, backdoored)]
    undecided = [[one.verdict is Verdict.INCONCLUSIVE for one in part] for part in (clean, backdoored)]
    found: dict[str, Any] = {
        "false_alarms": rate([one.is_suspected for one in clean]),
        "power": rate([one.is_suspected for one in backdoored]),
        "target_found": rate([one.target == one.row["target"] for one in single]),
        "inconclusive": {"clean": sum(undecided[0]), "backdoored": sum(undecided[1])},
        "auc": round(area(*heights), 4) if all(heights) else None,
        "power_by": {name: grouped(backdoored, by) for name, by in BY.items() if is_whole or name == "attack"},
    }
    for share in (0.01, 0.05):  # what a threshold on these very clean networks would give
        if heights[0]:
            least = float(np.quantile(heights[0], 1 - share, method="higher"))
            found[f"power_at_{share}_false_alarms"] = rate([height > least for height in heights[1]])
    if is_whole:
        found["false_alarms_by"] = {
            name: grouped(clean, by) for name, by in BY.items() if name not in ("attack", "trigger size")
        }
    return found
