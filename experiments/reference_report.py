"""What the reference population says: gaps of its clean networks, realised error rates and power on the other half.

A network is suspected where the conformal p-value of its gap, against the clean networks of the reference half, is at
most ALPHA and the lower 95 % bound of its best trigger's success is above a half. Where the search itself says that its
figures say nothing, the network is inconclusive: it counts as not suspected in every rate, and is counted beside it.
"""

from __future__ import annotations

import collections
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import machine
import numpy as np
import reference_plan
from scipy import stats

from jaxguard import conformal
from jaxguard.detection import trigger_reference

ALPHA = 0.05
KIND = "patch"
"""The kind that verdicts rest on."""

FEWEST = math.ceil(1 / ALPHA) - 1
"""References from which on a p-value can be that small."""


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


def leading(row: Row) -> tuple[int, float, float]:
    """Class, success and its lower 95 % bound of the trigger with the largest gap."""

    def gap(size: Row) -> float:
        high = sorted((-math.inf if margin is None else margin for margin in size["margin"]), reverse=True)
        return high[0] - high[1]

    size = max(row["searched"][KIND]["sizes"], key=gap)
    best = int(np.argmax([-math.inf if margin is None else margin for margin in size["margin"]]))
    hits, judged = size["hits"][best], size["judged"][best]
    return size["classes"][best], hits / judged, interval(hits, judged)[0]


def is_scored(row: Row) -> bool:
    """Whether the search of a network has a gap to judge by."""
    return not row["searched"][KIND]["problem"] and row["searched"][KIND]["gap"] is not None


def is_suspected(row: Row, references: Sequence[float]) -> bool:
    """The rule above."""
    if not is_scored(row):
        return False
    p_value = conformal.p_values([row["searched"][KIND]["gap"]], references)[0]
    return bool(p_value <= ALPHA and leading(row)[2] > 0.5)


def is_at_target(row: Row) -> bool:
    """Whether the leading class is the one that the trigger leads to."""
    return is_scored(row) and leading(row)[0] == row["target"]


def area(clean: Sequence[float], backdoored: Sequence[float]) -> float:
    """Area under the ROC curve: share of pairs in the right order, ties by half.

    >>> area([0.0, 1.0], [1.0, 2.0])
    0.875
    """
    differences = np.subtract.outer(np.asarray(backdoored), np.asarray(clean))
    return float(((differences > 0) + 0.5 * (differences == 0)).mean())


BY: dict[str, Callable[[Row], Any]] = {
    "architecture": lambda row: row["architecture"].partition(":")[0],
    "data": lambda row: row["data"],
    "regime": lambda row: row["regime"],
    "attack": lambda row: row["attack"],
    "trigger size": lambda row: row.get("size") or "whole image",
}


def grouped(rows: Iterable[Row], by: Callable[[Row], Any], references: Sequence[float]) -> dict[str, Any]:
    """Rates by what the rows have in common."""
    groups: dict[str, list[bool]] = collections.defaultdict(list)
    for row in rows:
        groups[str(by(row))].append(is_suspected(row, references))
    return {name: rate(groups[name]) for name in sorted(groups)}


def summary(rows: dict[int, Row]) -> dict[str, Any]:
    """Everything that `--report` states; as much as the rows allow.

    Args:
        rows: index -> what is known of the network.

    Returns:
        JSON-serialisable.
    """
    planned = reference_plan.plan()
    trained = [row for row in rows.values() if "sha256" in row]
    versions = collections.Counter(
        row["searched"][KIND]["version"] for row in trained if KIND in row.get("searched", {})
    )
    version = versions.most_common(1)[0][0] if versions else None
    searched = [
        row
        for row in trained
        if row.get("searched", {}).get(KIND, {}).get("version") == version and version is not None
    ]
    clean, backdoored = ([row for row in searched if (row["attack"] is None) == is_clean] for is_clean in (True, False))
    halves = {half: [row for row in clean if row["half"] == half] for half in ("reference", "judgement")}
    references = [row["searched"][KIND]["gap"] for row in halves["reference"] if is_scored(row)]
    working = [row for row in backdoored if not row["failed"] and row["half"] == "judgement"]
    found: dict[str, Any] = {
        "planned": len(planned),
        "trained": len(trained),
        "trained_clean": sum(row["attack"] is None for row in trained),
        "attack_failed": sorted(row["index"] for row in trained if row.get("failed")),
        "searched": len(searched),
        "searched_with_other_versions": sum(versions.values()) - len(searched),
        "search_version": version,
        "references": len(references),
        "alpha": ALPHA,
        "seconds": {
            step: round(float(np.median([part["cpu_seconds"] for part in parts])), 1) if parts else None
            for step, parts in (("train", trained), ("search", [row["searched"][KIND] for row in searched]))
        },
    }
    if len(references) < FEWEST:
        return {**found, "note": f"Too few references: from {FEWEST} on, a network can be suspected at {ALPHA}."}
    gaps = [[row["searched"][KIND]["gap"] for row in part if is_scored(row)] for part in (halves["judgement"], working)]
    false_alarms = [is_suspected(row, references) for row in halves["judgement"]]
    single = [row for row in working if row["target"] is not None]
    found |= {
        "auc": round(area(*gaps), 4) if all(gaps) else None,
        "false_alarms": rate(false_alarms),
        "power": rate([is_suspected(row, references) for row in working]),
        "target_found": rate([is_at_target(row) for row in single]),
        "inconclusive": {
            "clean": sum(not is_scored(row) for row in halves["judgement"]),
            "backdoored": sum(not is_scored(row) for row in working),
        },
        "false_alarms_by": {
            name: grouped(halves["judgement"], by, references)
            for name, by in BY.items()
            if name not in ("attack", "trigger size")
        },
        "power_by": {name: grouped(working, by, references) for name, by in BY.items()},
    }
    return found


def reference_file(rows: dict[int, Row], found: dict[str, Any]) -> dict[str, Any]:
    """The file that ships with the package: gaps of the clean networks of the reference half, with provenance.

    Args:
        rows: index -> what is known of the network.
        found: `summary` of the rows.

    Returns:
        As `jaxguard.detection.trigger_reference` reads it.
    """
    chosen = [
        row
        for row in rows.values()
        if row.get("attack") is None
        and row.get("half") == "reference"
        and row.get("searched", {}).get(KIND, {}).get("version") == found["search_version"]
        and is_scored(row)
    ]
    networks = [
        {
            "sha256": row["searched"][KIND]["file_sha256"],
            "gap": row["searched"][KIND]["gap"],
            **{name: row[name] for name in ("index", "data", "classes", "shape", "architecture", "regime", "acc")},
        }
        for row in sorted(chosen, key=lambda row: row["index"])
    ]
    rates = {
        name: {"found": found[key]["count"], "of": found[key]["networks"]}
        for name, key in (("power", "power"), ("false_alarms", "false_alarms"))
        if found.get(key, {}).get("networks")
    }
    source = {"experiment": "universal_reference.py", "seed": reference_plan.SEED, "alpha": ALPHA}
    source |= {name: found[name] for name in ("planned", "trained", "searched")}
    return {
        "schema": trigger_reference.SCHEMA,
        "search": found["search_version"],
        "source": source,
        **rates,
        "networks": networks,
    }


def tables(found: dict[str, Any]) -> str:
    """The rates as Markdown."""

    def shown(one: Row) -> str:
        if not one["networks"]:
            return "- |"
        low, high = (f"{100 * bound:.0f}" for bound in one["ci95"])
        return f"{one['count']} of {one['networks']} | {100 * one['rate']:.0f} % [{low}, {high}]"

    lines = ["| | | suspected | rate [95 %] |", "|---|---|---|---|"]
    if "power" in found:
        for name, key in (("clean", "false_alarms"), ("backdoored", "power"), ("at the true class", "target_found")):
            lines.append(f"| {name} | all | {shown(found[key])} |")
        for name, key in (("clean", "false_alarms_by"), ("backdoored", "power_by")):
            for by, groups in found[key].items():
                lines += [f"| {name}, by {by} | {group} | {shown(one)} |" for group, one in groups.items()]
    return "\n".join(lines)


def write(rows: dict[int, Row], folder: pathlib.Path, package: pathlib.Path | None = None) -> dict[str, Any]:
    """Writes the report, and the reference file where there are enough references.

    Args:
        rows: index -> what is known of the network.
        folder: of the report.
        package: the reference file.

    Returns:
        The report.
    """
    found = {"environment": machine.environment("scipy", seed=reference_plan.SEED), **summary(rows)}
    (folder / "universal_reference_report.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    if package is not None and found["references"] >= FEWEST:
        package.write_text(json.dumps(reference_file(rows, found), allow_nan=False).replace("}, {", "},\n{") + "\n")
    print(json.dumps({name: found[name] for name in found if name not in ("environment", "power_by")}, indent=1))
    print(tables(found))
    return found
