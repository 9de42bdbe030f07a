"""The reference population: clean and backdoored networks of many kinds, and how the trigger search fares on them.

    for pack in mnist fashion_mnist gtsrb cifar100 orl; do python ../shared/data/unpack.py $pack packs/$pack.npz; done
    python ../shared/data/unpack.py cifar10 packs/cifar10.npz --parts train_a test
    python experiments/universal_reference.py --train --data packs --out reference --shard 0/2 &
    python experiments/universal_reference.py --train --data packs --out reference --shard 1/2
    python experiments/universal_reference.py --search --out reference
    python experiments/universal_reference.py --report

256 networks are planned in `reference_plan.py`, half clean, half backdoored. Every network is a row of the result as
soon as it is trained, and another as soon as it has been searched; what has a row is not done again, so that all steps
can be interrupted and continued, and processes with different shards run side by side. The search is given nothing but
the network. A backdoored network whose trigger works on less than 80 % of the test images is marked as failed, kept,
and counted in no power.

Even numbers make the reference, odd ones judge it: `--report` gives realised error rates and power of the odd half,
with 95 % intervals (Clopper and Pearson), by kind of trigger searched, architecture, data, attack, regime and size of
the trigger. Choices were made on even numbers alone. A kind that is new, or whose version was raised, is searched by
itself; the rest stays.

Hardware: any. Time: planned for 5 hours on two CPU cores, search included; see docs/reference.md for what has been
done.
Result: results/universal_reference.jsonl, universal_reference_report.json, and the file that ships with the package,
jaxguard/detection/trigger_reference.json: gaps of the clean networks of both halves, and the rates of the report.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
import time
import traceback
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import reference_plan
import reference_training
from reference_plan import Plan

from jaxguard import checkpoints, evaluation, inversion, suspects
from jaxguard.attacks import restricted
from jaxguard.detection import trigger_reference
from jaxguard.inversion.kinds import DEFAULT, KINDS
from jaxguard.types import Batch, Network, TriggerRow, TriggerSearch

RESULTS = pathlib.Path(__file__).parent / "results"
WORKS = 0.8

MOST_CLASSES = 100
"""Classes, or pairs of classes, of a size that a row holds: the leading ones."""


def read(path: pathlib.Path) -> dict[int, dict[str, Any]]:
    """Index -> all that is known of the network; later rows of a file add to earlier ones, kind of trigger by kind."""
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        known = found.setdefault(row["index"], {})
        searched = known.get("searched", {}) | row.get("searched", {})
        known.update(row, searched=searched)
    return found


def append(path: pathlib.Path, row: dict[str, Any]) -> None:
    """One line in one write, so that processes can share the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def train(one: Plan, packs: str, folder: pathlib.Path) -> dict[str, Any]:
    """Trains a network, saves it, and measures it.

    Args:
        one: of the plan.
        packs: folder of the data.
        folder: of the checkpoints.

    Returns:
        Its row.
    """
    start = time.perf_counter()
    cpu = time.process_time()
    model, variables, poison = reference_training.trained(one, packs)
    _, test, num_classes = reference_training.images_of(one.structure.task, packs)
    network = model.network(variables)
    metrics = evaluation.evaluate(network, test, poison and poison.attack)
    path = folder / f"{one.index:03d}.safetensors"
    leaves = {name: np.asarray(leaf) for name, leaf in checkpoints.flatten(variables).items()}
    checkpoints.save(path, leaves, metadata=suspects.description(model), overwrite=True)
    digest = hashlib.sha256(b"".join(leaves[name].tobytes() for name in sorted(leaves))).hexdigest()
    row = {
        "index": one.index,
        "plan": one.digest,
        "half": one.half,
        "data": one.structure.task,
        "classes": num_classes,
        "shape": list(model.input_shape),
        "architecture": model.spec,
        "regime": one.regime,
        "attack": one.kind,
        "acc": round(metrics.acc, 4),
    }
    if poison is not None:
        assert metrics.asr is not None and metrics.ra is not None
        row |= {"target": poison.attack.target, "rate": poison.rate, "trigger": dict(poison.details)}
        row |= {"size": poison.size, "asr": round(metrics.asr, 4), "ra": round(metrics.ra, 4)}
        row |= {"failed": metrics.asr < WORKS}
        if poison.attack.sources is not None:
            row |= {"asr_elsewhere": round(_elsewhere(network, test, poison.attack), 4)}
    seconds = {"seconds": round(time.perf_counter() - start, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    return row | seconds | {"seed": [reference_plan.SEED, one.index], "sha256": digest, "jax": jax.__version__}


def _elsewhere(network: Network, test: Batch, attack: Any) -> float:
    """Share of the triggered images of all classes but the sources that are taken for the target."""
    others = tuple(sorted({*np.asarray(test.labels).tolist()} - {*attack.sources, attack.target}))
    square = dataclasses.replace(attack, relabel=lambda labels: labels * 0 + attack.target, sources=None)
    return evaluation.evaluate(network, test, restricted(square, others)).asr or 0.0


def search(one: Plan, folder: pathlib.Path, kinds: Sequence[str]) -> dict[str, Any]:
    """Searches a saved network for triggers, without data.

    Args:
        one: of the plan.
        folder: of the checkpoints.
        kinds: of triggers.

    Returns:
        Its row: for each kind its version, gap, and margins and success per class and size.
    """
    suspect = suspects.load(folder / f"{one.index:03d}.safetensors")
    found = inversion.search(suspect.require_network(), kinds=kinds)
    searched = by_kind(found, kinds)
    for known in searched.values():
        known["file_sha256"] = suspect.sha256
    return {"index": one.index, "searched": searched}


def by_kind(found: TriggerSearch, kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What rows tell of a search: kind -> version, gap, margins and success per class and size, cost."""
    nothing = {"gap": None, "p_class": None, "problem": found.problem, "reached": _number(found.reached), "sizes": []}
    searched = {kind: {"version": KINDS[kind].version} | nothing for kind in kinds}
    for result in found.results:
        searched[result.kind] |= {
            "gap": _number(result.gap),
            "p_class": _number(result.p_class),
            "problem": result.problem,
            "forwards": result.forwards,
            "seconds": round(result.seconds, 1),
            "cpu_seconds": round(result.cpu_seconds, 1),
            "sizes": [_size(row) for row in found.rows if row.kind == result.kind],
        }
    return searched


def _size(row: TriggerRow) -> dict[str, Any]:
    """One size of one kind: the leading classes, or pairs of classes, in order."""
    order = row.order[:MOST_CLASSES]
    numbers = {"classes": row.classes, "sources": row.sources, "assignments": row.assignments}
    numbers |= {"hits": row.hits, "judged": row.judged}
    known = {name: np.asarray(part)[order].tolist() for name, part in numbers.items() if part is not None}
    return {"size": row.size, "margin": [_number(value) for value in row.margin[order]], **known}


def _number(value: Any) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def shard(text: str) -> tuple[int, int]:
    """`i/n` as numbers."""
    index, count = (int(part) for part in text.split("/"))
    if not 0 <= index < count:
        raise argparse.ArgumentTypeError(f"expected i/n with i from 0 to n - 1, got {text}")
    return index, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for step in ("train", "search", "report"):
        parser.add_argument(f"--{step}", action="store_true")
    parser.add_argument("--data", default="packs", help="folder of the packs that unpack.py wrote")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("reference"), help="folder of the checkpoints")
    parser.add_argument("--rows", type=pathlib.Path, default=RESULTS / "universal_reference.jsonl")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=DEFAULT, help="of triggers to search")
    parser.add_argument("--reference", type=pathlib.Path, default=trigger_reference.FILE, help="file that ships")
    parser.add_argument("--shard", type=shard, default=(0, 1), help="i/n: the pairs that this process does")
    parser.add_argument("--half", choices=("reference", "judgement"), help="even or odd numbers alone")
    parser.add_argument("--first", type=int, help="networks of the plan to stop after")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(arguments.out.absolute() / "compiled"))
    part, parts = arguments.shard
    planned = [one for one in reference_plan.plan()[: arguments.first] if one.index // 2 % parts == part]
    planned = [one for one in planned if arguments.half in (None, one.half)]
    for one in planned if arguments.train or arguments.search else ():
        row = read(arguments.rows).get(one.index, {})
        if row and row["plan"] != one.digest:
            raise SystemExit(f"expected network {one.index} as it is planned in {arguments.rows}; pass another --rows")
        try:
            if arguments.train and "sha256" not in row:
                row = train(one, arguments.data, arguments.out)
                append(arguments.rows, row)
                shown = ("index", "data", "architecture", "regime", "attack", "acc", "asr", "seconds", "cpu_seconds")
                print({name: row.get(name) for name in shown}, flush=True)
            done = {kind: known["version"] for kind, known in row.get("searched", {}).items()}
            left = [kind for kind in arguments.kinds if done.get(kind) != KINDS[kind].version]
            if arguments.search and "sha256" in row and left:
                found = search(one, arguments.out, left)
                append(arguments.rows, found)
                gaps = {kind: known["gap"] for kind, known in found["searched"].items()}
                print(one.index, row["attack"], row.get("asr"), gaps, flush=True)
        except Exception:  # one network that fails must not end a run of hours; it has no row and is tried again
            print(f"network {one.index} failed:\n{traceback.format_exc()}", flush=True)
    if arguments.report:
        import reference_report

        reference_report.write(read(arguments.rows), arguments.rows.parent, arguments.reference)


if __name__ == "__main__":
    main()
