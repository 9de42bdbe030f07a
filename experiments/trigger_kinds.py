"""What does each kind of trigger find that small patches do not? Gaps on even numbers of the reference population.

    python experiments/trigger_kinds.py --search --out reference

Searches networks of even numbers, which choices may rest on (see universal_reference.py, which trains them), for kinds
of triggers, and counts how many backdoored ones have a larger gap than every clean one, and lead at the true target.
What has a row, of a kind in its version, there or in universal_reference.jsonl, is not searched again.

Hardware: any; about 5 s of a CPU core per network and kind of 8 to 28 px, most of them to compile.
Result: results/trigger_kinds.jsonl, a row per network, and trigger_kinds.json.
"""

import argparse
import collections
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import machine
import numpy as np
import reference_plan
import universal_reference
from universal_reference import RESULTS, append, read

from jaxguard.inversion import cleansing
from jaxguard.inversion.kinds import KINDS

Row = dict[str, Any]


def leading(kind: str, known: Row) -> tuple[float, int | None]:
    """Gap of a kind, and the class that leads by it; -inf and None where it says nothing."""
    if known["problem"] or known["gap"] is None:
        return -np.inf, None
    if kind == cleansing.NAME:  # its one row has the classes in order of their anomaly indices
        return known["gap"], known["sizes"][0]["classes"][0]

    def first_two(size: Row) -> tuple[float, int]:
        margins = np.array([-np.inf if margin is None else margin for margin in size["margin"]])
        success = np.divide(size["hits"], np.maximum(size["judged"], 1))
        first, second = np.argsort(-margins, kind="stable")[:2]
        lead = float(margins[first] - margins[second]) * max(0.0, float(success[first] - success[second]))
        return lead, size["classes"][first]

    return known["gap"], max(map(first_two, known["sizes"]))[1]


def auc(clean: Sequence[float], backdoored: Sequence[float]) -> float | None:
    """Area under the ROC curve, ties by half.

    >>> auc([0.0, 1.0], [1.0, 2.0])
    0.875
    """
    if not clean or not backdoored:
        return None
    pairs = [(one > other) + 0.5 * (one == other) for one in backdoored for other in clean]
    return round(float(np.mean(pairs)), 4)


def summary(rows: Sequence[Row], kinds: Sequence[str]) -> Row:
    """For each kind: the largest clean gap; and by attack how many exceed it and lead at the target, AUC, gaps.

    Networks of which a kind says nothing are counted by themselves.

    Args:
        rows: of networks, with `attack`, `target` and `searched`.
        kinds: to tell of.

    Returns:
        JSON-serialisable.
    """
    found: Row = {}
    for kind in kinds:
        known = [row for row in rows if row["searched"].get(kind, {}).get("version") == KINDS[kind].version]
        leads = {row["index"]: leading(kind, row["searched"][kind]) for row in known}
        said = {k: gap for k, (gap, _) in leads.items() if np.isfinite(gap)}
        clean = [said[row["index"]] for row in known if row["attack"] is None and row["index"] in said]
        attacks: dict[str, list[Row]] = collections.defaultdict(list)
        for row in known:
            if row["attack"] is not None and not row["failed"]:
                attacks[row["attack"]].append(row)
        found[kind] = {
            "version": KINDS[kind].version,
            "clean": len(clean),
            "largest_clean_gap": max(clean, default=None),
            "forwards": int(np.median([row["searched"][kind].get("forwards", 0) for row in known])) if known else None,
            "attacks": {
                attack: {
                    "networks": len(some),
                    "nothing_said": sum(row["index"] not in said for row in some),
                    "above_all_clean": sum(
                        said.get(row["index"], -np.inf) > max(clean, default=np.inf) for row in some
                    ),
                    "at_target": sum(leads[row["index"]][1] == row["target"] is not None for row in some),
                    "auc": auc(clean, [said[row["index"]] for row in some if row["index"] in said]),
                    "gaps": {str(row["index"]): said.get(row["index"]) for row in some},
                }
                for attack, some in sorted(attacks.items())
            },
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("reference"), help="folder of the checkpoints")
    parser.add_argument("--rows", type=pathlib.Path, default=RESULTS / "universal_reference.jsonl")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS))
    parser.add_argument("--search", action="store_true", help="search what has no row; without it, only count")
    parser.add_argument(
        "--numbers", nargs="*", type=int, help="even numbers of networks; all that are trained by default"
    )
    arguments = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(arguments.out.absolute() / "compiled"))
    plan, known = reference_plan.plan(), read(arguments.rows)
    numbers = [k for k, row in sorted(known.items()) if k % 2 == 0 and "sha256" in row]
    numbers = [k for k in arguments.numbers if k in numbers] if arguments.numbers else numbers
    own = arguments.results / "trigger_kinds.jsonl"

    def searched(k: int) -> dict[str, Row]:
        return known[k].get("searched", {}) | read(own).get(k, {}).get("searched", {})

    for k in numbers if arguments.search else ():
        left = [kind for kind in arguments.kinds if searched(k).get(kind, {}).get("version") != KINDS[kind].version]
        if left:
            append(own, universal_reference.search(plan[k], arguments.out, left))
            print(k, known[k]["attack"], {kind: leading(kind, searched(k)[kind]) for kind in left}, flush=True)
    rows = [known[k] | {"searched": searched(k)} for k in numbers]
    found = {"environment": machine.environment("scipy", seed=reference_plan.SEED), **summary(rows, arguments.kinds)}
    (arguments.results / "trigger_kinds.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    print(json.dumps({kind: found[kind] for kind in arguments.kinds}, indent=1))


if __name__ == "__main__":
    main()
