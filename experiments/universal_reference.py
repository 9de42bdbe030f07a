"""The reference population: clean and backdoored networks of many kinds, and how the trigger search fares on them.

    for pack in mnist fashion_mnist gtsrb cifar100 orl; do python ../shared/data/unpack.py $pack packs/$pack.npz; done
    python ../shared/data/unpack.py cifar10 packs/cifar10.npz --parts train_a test
    python experiments/universal_reference.py --train --data packs --out reference --shard 0/2 &
    python experiments/universal_reference.py --train --data packs --out reference --shard 1/2
    python experiments/universal_reference.py --search --out reference        # --kinds NAME ... for other kinds alone
    python experiments/universal_reference.py --report

256 networks are planned in `reference_plan.py`, half clean, half backdoored. Every network is a row of the result as
soon as it is trained, and another as soon as it has been searched for some kinds of triggers. What has a row, of a kind
in the version of its search, is not done again, so that all steps can be interrupted and continued, and processes with
different shards run side by side. The search is given nothing but the network. A backdoored network whose trigger works
on less than 80 % of the test images is marked as failed, kept, and counted in no power.

Even numbers make the reference, odd ones judge it: `--report` gives realised error rates and power of the odd half,
with 95 % intervals (Clopper and Pearson), by architecture, data, attack, regime and size of the trigger. Nothing else
was chosen on either half.

Hardware: any. Time: planned for 5 hours on two CPU cores, search included; see README.md for what has been done.
Result: results/universal_reference.jsonl, universal_reference_report.json and trigger_reference.json, the gaps of the
clean even half; with `--reference jaxguard/detection/trigger_reference.json` they ship with the package.
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
from jaxguard.inversion.kinds import DEFAULT, KINDS
from jaxguard.types import Batch, KindResult, Network, TriggerRow

RESULTS = pathlib.Path(__file__).parent / "results"
WORKS = 0.8


def read(path: pathlib.Path) -> dict[int, dict[str, Any]]:
    """Index -> all that is known of the network; later rows of a file add to earlier ones, kind by kind."""
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        known = found.setdefault(row["index"], {})
        searched = known.get("searched", {}) | row.get("searched", {})
        known.update(row | ({"searched": searched} if searched else {}))
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
        Its row: for every kind its version, gap, and margins and success per class and size.
    """
    suspect = suspects.load(folder / f"{one.index:03d}.safetensors")
    found = inversion.search(suspect.require_network(), kinds=kinds)
    known = found.results or tuple(KindResult(kind, KINDS[kind].version, problem=found.problem) for kind in kinds)
    searched = {
        result.kind: {
            "version": result.version,
            "file_sha256": suspect.sha256,
            "gap": _number(result.gap),
            "p_class": _number(result.p_class),
            "problem": result.problem,
            "reached": _number(found.reached),
            "forwards": result.forwards,
            "seconds": round(result.seconds, 1),
            "cpu_seconds": round(result.cpu_seconds, 1),
            "sizes": [_size(row) for row in found.rows if row.kind == result.kind],
        }
        for result in known
    }
    return {"index": one.index, "searched": searched}


def _size(row: TriggerRow) -> dict[str, Any]:
    return {
        "size": row.size,
        "classes": np.asarray(row.classes).tolist(),
        "margin": [_number(value) for value in row.margin],
        "hits": np.asarray(row.hits).tolist(),
        "judged": np.asarray(row.judged).tolist(),
    }


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
    parser.add_argument("--reference", type=pathlib.Path, default=RESULTS / "trigger_reference.json")
    parser.add_argument("--shard", type=shard, default=(0, 1), help="i/n: the pairs that this process does")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(DEFAULT), help="kinds of triggers")
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
            known = {kind: result["version"] for kind, result in row.get("searched", {}).items()}
            kinds = [kind for kind in arguments.kinds if known.get(kind) != KINDS[kind].version]
            if arguments.search and "sha256" in row and kinds:
                found = search(one, arguments.out, kinds)
                append(arguments.rows, found)
                gaps = {kind: result["gap"] for kind, result in found["searched"].items()}
                print(one.index, row["attack"], row.get("asr"), gaps, flush=True)
        except Exception:  # one network that fails must not end a run of hours; it has no row and is tried again
            print(f"network {one.index} failed:\n{traceback.format_exc()}", flush=True)
    if arguments.report:
        import reference_report

        reference_report.write(read(arguments.rows), arguments.rows.parent, arguments.reference)


if __name__ == "__main__":
    main()
