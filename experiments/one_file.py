"""A verdict from one file on the networks that others trained: what is found, at the target, accused, inconclusive.

    for pack in cifar10 mnist fashion_mnist; do python ../shared/data/unpack.py $pack packs/$pack.npz; done
    python experiments/one_file.py --run --images 0                  # the product's rule, no data
    python experiments/one_file.py --run --images 20 50 100 --data packs
    python experiments/one_file.py --run --methods mm-bd neural-cleanse
    python experiments/one_file.py --report

The rule is that of the package with the reference that ships, untouched: these networks are for reporting alone. Beside
it stand two published methods, given no data either. MM-BD (Wang, Xiang, Miller, Kesidis, S&P 2024): the largest margin
that any image reaches, class by class, and a gamma distribution fitted to all but the largest; p = 1 - F(largest)^K,
suspected at 0.05. Neural Cleanse (Wang et al., S&P 2019): the smallest patch of each class, sought briefly on noise
(`jaxguard.detection.triggers`), suspected at an anomaly index above 2.

Every network, method and number of images is one row as soon as it is done, and is not done again; small networks are
first. Needs the third-party checkpoints in JAXGUARD_SHARED_DATA, else ../shared/data.
Hardware: any. Time: an hour without data for the search of small patches on two CPU cores that others use too.
Result: results/one_file.jsonl and one_file.json.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import machine
import numpy as np
import universal_reference
from reference_rates import ALPHA, search_of
from scipy import stats
from third_party import RESULTS
from third_party_table import FOLDER, PACKS, known_network, loaded

from jaxguard import inversion
from jaxguard.detection import search_verdicts, trigger_reference, triggers
from jaxguard.inversion.kinds import DEFAULT, KINDS
from jaxguard.types import Finding, Network, Provenance, Verdict

ROWS = RESULTS / "one_file.jsonl"
METHODS = ("search", "mm-bd", "neural-cleanse")
STARTS, STEPS, RATE = 10, 100, 0.05
"""Of MM-BD's ascent: images per class, steps, and their length, in root mean squares of a pixel."""

INDEX = 2.0
"""Anomaly index from which on Neural Cleanse suspects."""


def cards() -> dict[str, dict[str, Any]]:
    """Name -> card of every network whose inputs are images, small files first."""
    paths = sorted(FOLDER.glob("*.safetensors"), key=lambda path: (path.stat().st_size, path.name))
    known = {path.stem: json.loads(path.with_suffix(".json").read_text()) for path in paths}
    return {name: card for name, card in known.items() if len(card["input_hwc"] or ()) == 3}


def target_of(card: dict[str, Any]) -> int | None:
    """Of the attack, where it is known."""
    target = (card["attack"] or {}).get("target")
    return target if isinstance(target, int) else None


def searched(network: Network, card: dict[str, Any], number: int, packs: pathlib.Path, kinds: Sequence[str]) -> Any:
    """The search's figures by kind, on some clean training images or on none."""
    images = labels = None
    if number:
        train = loaded(packs / f"{card['dataset']}.npz").train
        chosen = inversion.in_turn(np.asarray(train.labels))[:number]
        images, labels = np.asarray(train.images)[chosen], np.asarray(train.labels)[chosen]
    found = inversion.search(network, images=images, labels=labels, kinds=kinds)
    return universal_reference.by_kind(found, kinds)


def largest_margins(network: Network, key: jax.Array) -> np.ndarray:
    """MM-BD: `[K]`, the largest margin of each class over all images, by ascent from random ones."""
    shape, classes = network.input_spec.shape, network.num_classes

    def margin(images: jax.Array, target: jax.Array) -> jax.Array:
        logits = network.apply_fn(network.variables, images)
        own = jnp.arange(classes) == target
        return jnp.where(own, logits, 0).sum(-1) - jnp.where(own, -jnp.inf, logits).max(-1)

    @jax.jit
    def climbed(images: jax.Array, target: jax.Array) -> jax.Array:
        def step(images: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            gradient = jax.grad(lambda x: margin(x, target).sum())(images)
            size = jnp.sqrt((gradient**2).mean((1, 2, 3), keepdims=True))
            moved = jnp.clip(images + RATE * gradient / jnp.maximum(size, 1e-12), 0, 1)
            return moved, margin(images, target).max()

        return jax.lax.scan(step, images, None, length=STEPS)[1].max()

    starts = jax.random.uniform(key, (classes, STARTS, *shape))
    return np.array([float(climbed(starts[c], jnp.asarray(c))) for c in range(classes)])


def gamma_p_value(margins: np.ndarray) -> float:
    """MM-BD: chance that the largest of K draws from the gamma distribution of the others is as large.

    >>> margins = np.r_[np.linspace(1, 2, 9), 50.0]
    >>> gamma_p_value(margins) < 0.01 < gamma_p_value(np.r_[margins[:-1], 2.1])
    True
    """
    others = np.delete(margins, margins.argmax())
    shape, place, scale = stats.gamma.fit(others)
    return float(1 - stats.gamma.cdf(margins.max(), shape, place, scale) ** len(margins))


def row_of(name: str, card: dict[str, Any], method: str, number: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One network by one method."""
    start, cpu = time.perf_counter(), time.process_time()
    suspect = known_network(FOLDER / f"{name}.safetensors", card)
    network = suspect.require_network()
    row: dict[str, Any] = {"model": name, "method": method, "images": number}
    if method == "search":
        row["searched"] = searched(network, card, number, arguments.data, arguments.kinds)
        row |= {"classes": network.num_classes, "shape": list(network.input_spec.shape), "arch": card["arch"]}
    elif method == "mm-bd":
        margins = largest_margins(network, jax.random.key(0))
        is_finite = bool(np.isfinite(margins).all() and margins.std() > 0)
        row |= {"p_value": gamma_p_value(margins) if is_finite else None, "flagged": int(margins.argmax())}
        row["margins"] = [round(float(margin), 3) for margin in margins] if is_finite else None
    else:
        found = triggers.inverted(network.graph, network.variables, jax.random.key(0))
        trigger = inversion.recovered_trigger(found, source="noise")
        index = float(trigger.anomaly.max())
        row |= {"index": round(index, 3) if np.isfinite(index) else None, "flagged": trigger.target}
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    return row | {part: round(value, 1) for part, value in spent.items()}


def done(path: pathlib.Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """(model, method, images) -> row; kinds of triggers add to each other."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        known = found.setdefault((row["model"], row["method"], row["images"]), {})
        merged = {"searched": known.get("searched", {}) | row["searched"]} if "searched" in row else {}
        known.update(row | merged)
    return found


def outcome(row: dict[str, Any], reference: trigger_reference.TriggerReference | None) -> dict[str, Any]:
    """`suspected`, `inconclusive` or `nothing`, and the class that leads."""
    if row["method"] == "mm-bd":
        verdict = "inconclusive" if row["p_value"] is None else "suspected" if row["p_value"] <= 0.05 else "nothing"
        return {"verdict": verdict, "class": row["flagged"], "p": row["p_value"]}
    if row["method"] == "neural-cleanse":
        is_high = row["index"] is not None and row["index"] > INDEX
        return {"verdict": "suspected" if is_high else "nothing", "class": row["flagged"], "index": row["index"]}
    search = search_of(row, list(row["searched"]))
    finding = Finding(Provenance(row["model"], architecture=row["arch"]), Verdict.INCONCLUSIVE, "")
    (finding,) = search_verdicts.judge([finding], {0: search}, reference, alpha=ALPHA)
    names = {Verdict.SUSPECTED: "suspected", Verdict.INCONCLUSIVE: "inconclusive"}
    assert finding.search is not None
    known = finding.search
    shown = {"kind": known.lead, "problem": known.problem, "p_class": known.p_class, "success": known.success}
    numbers = {"p": finding.p_value, "gaps": known.gaps} | shown
    return {"verdict": names.get(finding.verdict, "nothing"), "class": known.target} | _finite(numbers)


def _finite(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return (round(value, 4) if np.isfinite(value) else None) if isinstance(value, float) else value


def summary(rows: Sequence[dict[str, Any]], known: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Per method and number of images: outcome of each network, and counts."""
    reference = trigger_reference.load()
    for method, number in sorted({(row["method"], row["images"]) for row in rows}):
        models = {
            row["model"]: outcome(row, reference) for row in rows if (row["method"], row["images"]) == (method, number)
        }
        bad = {name for name in models if known[name]["label"].startswith("backdoored")}
        found = {name for name in bad if models[name]["verdict"] == "suspected"}
        others = models.keys() - bad
        yield {
            "method": method,
            "images": number,
            "networks": len(models),
            "backdoored": len(bad),
            "found": len(found),
            "at_target": sum(target_of(known[name]) == models[name]["class"] for name in found),
            "accused": sorted(name for name in others if models[name]["verdict"] == "suspected"),
            "inconclusive": sorted(name for name in models if models[name]["verdict"] == "inconclusive"),
            "models": models,
        }


def table(found: Sequence[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = ["| method | images | networks | found | at the target | accused | inconclusive |", "|---" * 7 + "|"]
    for one in found:
        counts = f"{one['found']} of {one['backdoored']} | {one['at_target']}"
        others = one["networks"] - one["backdoored"]
        accused = f"{len(one['accused'])} of {others}"
        method = f"| {one['method']} | {one['images']} | {one['networks']}"
        lines.append(f"{method} | {counts} | {accused} | {len(one['inconclusive'])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["search"])
    parser.add_argument("--images", nargs="+", type=int, default=[0], help="clean ones, for the search; 0 for none")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=DEFAULT, help="of triggers")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("packs"), help="folder of the packs")
    parser.add_argument("--models", nargs="+", help="names; all by default")
    parser.add_argument("--rows", type=pathlib.Path, default=ROWS)
    arguments = parser.parse_args()
    known = cards()
    for name in (arguments.models or known) if arguments.run else ():
        for method in arguments.methods:
            for number in arguments.images if method == "search" else [0]:
                before = done(arguments.rows).get((name, method, number), {})
                versions = {kind: one["version"] for kind, one in before.get("searched", {}).items()}
                wanted = {kind: KINDS[kind].version for kind in arguments.kinds}
                is_done = wanted.items() <= versions.items() if method == "search" else bool(before)
                if is_done or (number and known[name]["dataset"] not in PACKS):
                    continue
                row = row_of(name, known[name], method, number, arguments)
                universal_reference.append(arguments.rows, row)
                print({part: row[part] for part in ("model", "method", "images", "cpu_seconds")}, flush=True)
    if arguments.report:
        rows = list(done(arguments.rows).values())
        found = list(summary(rows, known))
        result = {"environment": machine.environment("scipy"), "alpha": ALPHA, "methods": found}
        arguments.rows.with_suffix(".json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        print(table(found))


if __name__ == "__main__":
    main()
