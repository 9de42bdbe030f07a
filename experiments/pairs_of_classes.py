"""Do backdoors over pairs of classes show, on a few clean images and on none? Even numbers of the reference population.

    python experiments/pairs_of_classes.py --data packs --out reference --numbers \
        96 50 70 64 30 68 56 12 84 66 90 46 72 108 62

Searches networks of even numbers, which choices may rest on (see universal_reference.py, which trains them), for a
patch that sends every class to another one and for one that turns images of one class only: on ten clean test images of
each class, and on procedural ones. The statistics were chosen on these networks, so that the table shows what the
choice rests on and no error rate.

Hardware: any; about 3 s of a CPU core per network, kind and source of images.
Result: results/pairs_of_classes.jsonl, a row per network and source of images.
"""

import argparse
import pathlib
from typing import Any

import machine
import numpy as np
import reference_plan
import reference_training
from universal_reference import RESULTS, append, by_kind, read

from jaxguard import inversion, suspects
from jaxguard.types import TriggerSearch

KINDS = ("all-to-all", "source-target")
PER_CLASS = 10


def images_of(task: str, packs: str) -> dict[str, np.ndarray]:
    """Clean images of each class, and their labels."""
    _, test, num_classes = reference_training.images_of(task, packs)
    labels = np.asarray(test.labels)
    chosen = np.concatenate([np.flatnonzero(labels == y)[:PER_CLASS] for y in range(num_classes)])
    return {"images": np.asarray(test.images)[chosen], "labels": labels[chosen]}


def goals(found: TriggerSearch) -> dict[str, str]:
    """What the leading trigger of each kind does."""
    return {row.kind: row.goal(int(row.order[0])) for row in found.rows}


def truth(known: dict[str, Any]) -> str:
    """What the attack was, in the same words."""
    if known["attack"] == "all-to-all":
        return ", ".join(f"{y} \u2192 {(y + 1) % known['classes']}" for y in range(known["classes"]))
    if known["attack"] == "source-specific":
        return f"class {known['trigger']['sources'][0]} \u2192 {known['target']}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="packs", help="folder of the packs that unpack.py wrote")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("reference"), help="folder of the checkpoints")
    parser.add_argument("--rows", type=pathlib.Path, default=RESULTS / "universal_reference.jsonl")
    parser.add_argument("--result", type=pathlib.Path, default=RESULTS / "pairs_of_classes.jsonl")
    parser.add_argument("--numbers", nargs="+", type=int, required=True, help="even numbers of networks")
    arguments = parser.parse_args()
    if any(number % 2 for number in arguments.numbers):
        raise SystemExit(f"expected even numbers, got {arguments.numbers}; odd ones judge, and inform no choice")
    plan, rows = reference_plan.plan(), read(arguments.rows)
    for number in arguments.numbers:
        known = rows[number]
        network = suspects.load(arguments.out / f"{number:03d}.safetensors").require_network()
        for source in ("clean", "none"):
            given = images_of(plan[number].structure.task, arguments.data) if source == "clean" else {}
            found = inversion.search(network, kinds=KINDS, **given)
            told = goals(found)
            about = {name: known.get(name) for name in ("index", "data", "architecture", "regime", "attack", "asr")}
            about |= {"images": source, "truth": truth(known), "found": told, "searched": by_kind(found, KINDS)}
            append(arguments.result, about | {"environment": machine.environment("scipy", seed=0)})
            print(
                number, known["attack"], source, found.gaps, [one == truth(known) for one in told.values()], flush=True
            )


if __name__ == "__main__":
    main()
