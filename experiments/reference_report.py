"""What the reference population says: realised error rates and power on the half that no choice had seen.

The clean networks of the reference half are the references (`reference_rates.py`), by the default kinds of triggers
joined, by all that were searched, by each kind alone, and by the default ones but one. The same strangers are judged a
second time against the clean networks of both halves, those that ship, each without itself.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import machine
import numpy as np
import reference_plan
from reference_rates import ALPHA, Judged, Row, judged, rates, reference_of

from jaxguard.detection import trigger_reference
from jaxguard.inversion.kinds import DEFAULT

FEWEST = math.ceil(1 / ALPHA) - 1
"""References from which on a p-value can be that small."""


def summary(rows: Mapping[int, Row]) -> dict[str, Any]:
    """Everything that `--report` states; as much as the rows allow.

    Args:
        rows: index -> what is known of the network.

    Returns:
        JSON-serialisable.
    """
    trained = [row for row in rows.values() if "sha256" in row]
    kinds = sorted({kind for row in trained for kind in row["searched"]})
    newest = {
        kind: max(row["searched"][kind]["version"] for row in trained if kind in row["searched"]) for kind in kinds
    }
    searched = {
        kind: [row for row in trained if row["searched"].get(kind, {}).get("version") == newest[kind]] for kind in kinds
    }
    found: dict[str, Any] = {
        "planned": len(reference_plan.plan()),
        "trained": len(trained),
        "trained_clean": sum(row["attack"] is None for row in trained),
        "attack_failed": sorted(row["index"] for row in trained if row.get("failed")),
        "versions": newest,
        "searched": {kind: len(part) for kind, part in searched.items()},
        "alpha": ALPHA,
        "cpu_seconds": {"train": _median(row["cpu_seconds"] for row in trained)}
        | {kind: _median(row["searched"][kind].get("cpu_seconds") for row in part) for kind, part in searched.items()},
    }
    # Sets of kinds are compared on the networks that were searched for all of them.
    complete = [row for row in trained if all(row in searched[kind] for kind in kinds)] if kinds else []
    references = [row for row in complete if row["half"] == "reference"]
    strangers = [row for row in complete if row["half"] == "judgement" and not row.get("failed")]
    whole = sorted(DEFAULT) if set(DEFAULT) <= set(kinds) else kinds
    number = len(reference_of(references, whole).networks)
    found |= {"complete": len(complete), "references": number}
    if number < FEWEST:
        return {**found, "note": f"Too few references: from {FEWEST} on, a network can be suspected at {ALPHA}."}
    sets = [whole, kinds, *([kind] for kind in kinds), *([one for one in whole if one != kind] for kind in whole)]
    sets = [some for k, some in enumerate(sets) if some and some not in sets[:k]]
    clean = [row for row in complete if row["attack"] is None]
    found["rates"] = [_rates_of(some, newest, references, strangers, is_whole=some == whole) for some in sets]
    found["shipped"] = [_rates_of(some, newest, clean, strangers, is_whole=some == whole) for some in sets]
    return found


def _rates_of(
    kinds: Sequence[str], versions: Mapping[str, int], known: Sequence[Row], strangers: Sequence[Row], *, is_whole: bool
) -> dict[str, Any]:
    """By some kinds, against the clean networks among those known; none is compared with itself."""
    reference = reference_of(known, kinds)
    parts: list[list[Judged]] = [[], []]
    for row in strangers:
        parts[row["attack"] is not None].append(judged(row, reference, kinds))
    counts = {"kinds": {kind: versions[kind] for kind in kinds}, "references": len(reference.networks)}
    return counts | rates(*parts, is_whole=is_whole)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.median(known)), 1) if known else None


def reference_file(rows: Mapping[int, Row], found: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """The file that ships with the package: gaps of the clean networks of both halves, with provenance.

    Args:
        rows: index -> what is known of the network.
        found: `summary` of the rows, in which one half was judged by the other alone.
        environment: of the machine.

    Returns:
        As `jaxguard.detection.trigger_reference` reads it.
    """
    networks = []
    for _, row in sorted(rows.items()):
        gaps = {
            kind: {"version": one["version"], "gap": one["gap"]}
            for kind, one in row.get("searched", {}).items()
            if one["version"] == found["versions"].get(kind) and not one["problem"] and one["gap"] is not None
        }
        if row.get("attack") is None and gaps:
            sha256 = next(iter(row["searched"].values()))["file_sha256"]
            names = ("index", "half", "data", "classes", "shape", "architecture", "regime", "acc", "jax")
            networks.append({"sha256": sha256, **{name: row.get(name) for name in names}, "kinds": gaps})
    measured = [
        {
            "alpha": ALPHA,
            "kinds": one["kinds"],
            "references": one["references"],
            "false_alarms": _counts(one["false_alarms"]),
            "power": {attack: _counts(part) for attack, part in one["power_by"]["attack"].items()},
        }
        for one in found.get("shipped", ())
    ]
    source = {"experiment": "universal_reference.py", "seed": reference_plan.SEED}
    source |= {name: environment[name] for name in ("date", "jax") if name in environment}
    source |= {name: found[name] for name in ("planned", "trained", "searched")}
    return {"schema": trigger_reference.SCHEMA, "source": source, "rates": measured, "networks": networks}


def _counts(one: Mapping[str, Any]) -> dict[str, int]:
    return {"found": one.get("count", 0), "of": one["networks"]}


def tables(found: Mapping[str, Any]) -> str:
    """The rates as Markdown: the default kinds joined by every property, then the sets of kinds side by side."""

    def shown(one: Row) -> str:
        if not one["networks"]:
            return "- |"
        low, high = (f"{100 * bound:.0f}" for bound in one["ci95"])
        return f"{one['count']} of {one['networks']} | {100 * one['rate']:.0f} % [{low}, {high}]"

    if "rates" not in found:
        return ""
    whole = found["rates"][0]
    lines = ["| | | suspected | rate [95 %] |", "|---|---|---|---|"]
    for name, key in (("clean", "false_alarms"), ("backdoored", "power"), ("at the true class", "target_found")):
        lines.append(f"| {name} | all | {shown(whole[key])} |")
    for name, key in (("clean", "false_alarms_by"), ("backdoored", "power_by")):
        for by, groups in whole[key].items():
            lines += [f"| {name}, by {by} | {group} | {shown(one)} |" for group, one in groups.items()]
    attacks = sorted({attack for one in found["rates"] for attack in one["power_by"]["attack"]})
    lines += [
        "",
        f"| kinds searched | references | false alarms | {' | '.join(attacks)} | all | AUC |",
        "|---" * (len(attacks) + 5) + "|",
    ]
    for one in (*found["rates"], *found["shipped"]):
        parts = [one["false_alarms"], *(one["power_by"]["attack"].get(attack, {"networks": 0}) for attack in attacks)]
        cells = [f"{part.get('count', 0)} of {part['networks']}" for part in (*parts, one["power"])]
        lines.append(f"| {', '.join(one['kinds'])} | {one['references']} | {' | '.join(cells)} | {one['auc']} |")
    return "\n".join(lines)


def write(rows: Mapping[int, Row], folder: pathlib.Path, package: pathlib.Path) -> dict[str, Any]:
    """Writes the report, and the reference file where there are enough references.

    Args:
        rows: index -> what is known of the network.
        folder: of the report.
        package: the reference file.

    Returns:
        The report.
    """
    environment = machine.environment("scipy", seed=reference_plan.SEED)
    found = {"environment": environment, **summary(rows)}
    (folder / "universal_reference_report.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    if found["references"] >= FEWEST:
        document = reference_file(rows, found, environment)
        package.write_text(json.dumps(document, allow_nan=False).replace("}}}, {", "}}},\n{") + "\n")
    print(
        json.dumps({name: found[name] for name in found if name not in ("environment", "rates", "shipped")}, indent=1)
    )
    print(tables(found))
    return found
