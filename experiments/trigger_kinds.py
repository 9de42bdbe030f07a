"""What does each kind of trigger find that small patches do not? Gaps on even numbers of the reference population.

    python experiments/trigger_kinds.py --out reference --kinds blended additive additive-l2 warp neural-cleanse

Searches networks of even numbers, which choices may rest on (see universal_reference.py, which trains them), for kinds
of triggers, and counts how many backdoored ones have a larger gap than every clean one, and lead at the true target.
What has a row, of a kind in its version, is not searched again.

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

from jaxguard.inversion.kinds import KINDS

Row = dict[str, Any]


def leading(known: Row) -> tuple[float, int | None]:
    """Gap of a kind, and the class that leads by it; -inf and None where it says nothing."""
    if known["problem"] or known["gap"] is None:
        return -np.inf, None

    def gap(size: Row) -> float:
        if len(size["margin"]) < 2 or None in size["margin"][:2]:
            return -np.inf
        success = [hits / max(judged, 1) for hits, judged in zip(size["hits"][:2], size["judged"][:2], strict=True)]
        return (size["margin"][0] - size["margin"][1]) * max(0.0, success[0] - success[1])

    return known["gap"], max(known["sizes"], key=gap)["classes"][0]  # classes of a row are in order of their lead


def summary(rows: Sequence[Row], kinds: Sequence[str]) -> Row:
    """For each kind: the largest clean gap; and by attack how many exceed it, how many lead at the target, and gaps.

    Args:
        rows: of networks, with `attack`, `target` and `searched`.
        kinds: to tell of.

    Returns:
        JSON-serialisable.
    """
    found: Row = {}
    for kind in kinds:
        known = [row for row in rows if row["searched"].get(kind, {}).get("version") == KINDS[kind].version]
        clean = [leading(row["searched"][kind])[0] for row in known if row["attack"] is None]
        largest = max(clean, default=-np.inf)
        attacks: dict[str, list[Row]] = collections.defaultdict(list)
        for row in known:
            if row["attack"] is not None and not row["failed"]:
                attacks[row["attack"]].append(row)
        found[kind] = {
            "version": KINDS[kind].version,
            "clean": len(clean),
            "largest_clean_gap": _number(largest),
            "forwards": int(np.median([row["searched"][kind].get("forwards", 0) for row in known])) if known else None,
            "attacks": {
                attack: {
                    "networks": len(some),
                    "above_all_clean": sum(leading(row["searched"][kind])[0] > largest for row in some),
                    "at_target": sum(leading(row["searched"][kind])[1] == row["target"] is not None for row in some),
                    "gaps": {str(row["index"]): _number(leading(row["searched"][kind])[0]) for row in some},
                }
                for attack, some in sorted(attacks.items())
            },
        }
    return found


def _number(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("reference"), help="folder of the checkpoints")
    parser.add_argument("--rows", type=pathlib.Path, default=RESULTS / "universal_reference.jsonl")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS))
    parser.add_argument(
        "--numbers", nargs="*", type=int, help="even numbers of networks; all that are trained by default"
    )
    arguments = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(arguments.out.absolute() / "compiled"))
    plan, known = reference_plan.plan(), read(arguments.rows)
    numbers = [k for k, row in sorted(known.items()) if k % 2 == 0 and "sha256" in row]
    numbers = [k for k in arguments.numbers if k in numbers] if arguments.numbers else numbers
    own = arguments.results / "trigger_kinds.jsonl"
    for k in numbers:
        done = {kind: one["version"] for kind, one in read(own).get(k, {}).get("searched", {}).items()}
        left = [kind for kind in arguments.kinds if kind != "patch" and done.get(kind) != KINDS[kind].version]
        if left:
            append(own, universal_reference.search(plan[k], arguments.out, left))
            print(
                k,
                known[k]["attack"],
                {kind: leading(one) for kind, one in read(own)[k]["searched"].items()},
                flush=True,
            )
    rows = [known[k] | {"searched": known[k].get("searched", {}) | one["searched"]} for k, one in read(own).items()]
    found = {"environment": machine.environment("scipy", seed=reference_plan.SEED), **summary(rows, arguments.kinds)}
    (arguments.results / "trigger_kinds.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    print(json.dumps({kind: found[kind] for kind in arguments.kinds}, indent=1))


if __name__ == "__main__":
    main()
