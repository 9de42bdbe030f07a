"""Networks that others trained and backdoored: does the scan tell them from a clean one, and do the repairs help?

    python ../shared/data/unpack.py cifar10 c10.npz
    python experiments/third_party.py --data npz:c10.npz

Two WideResNet-16-1 with a BadNets backdoor (3x3 grid, all-to-one) as NAD and ABL published them, and the clean
ResNet-20 of akamaster/pytorch_resnet_cifar10; CIFAR-10, the whole test set. Four parts, each of which can be run alone
with --parts, and then replaces its section of the result:

    reproduce   ACC and ASR against those that came with the checkpoints
    scan        largest z-score and channels above u = 3; no data; four more networks without a working backdoor
    clp         CLP for nine values of u and both pairings
    ft-sam      FT-SAM with 5 % clean images and BackdoorBench's hyper-parameters

Hardware: any; --epochs 30 made the stored result, since on two shared CPU cores an epoch of FT-SAM took 30 to 70
seconds. Time on such a machine: 15 minutes without FT-SAM, and about 35 for it.
Expected: reproduced exactly (84.81 / 100.00, 83.34 / 99.99, 91.73 %). The largest z-score does not tell backdoored
networks (3.22, 3.40) from others: the clean ResNet-20 has 2.67, but the clean ResNet-32 and ResNet-44 have 3.44 and
3.72, and the two WideResNets whose backdoor was taken out have 3.58 and 4.22. CLP at u = 3 lowers ASR to 3.7 and 4.4 %
and costs 10 and 13 points of ACC; from u = 3.5 it cuts nothing. FT-SAM, 30 epochs, lowers ASR to 8.6 % for one point
of ACC on NAD's network, and does nothing for ABL's (ASR 100.00 %).

The checkpoints lie in JAXGUARD_SHARED_DATA, else in ../shared/data; they are not part of this repository. Nothing is
chosen on the test set: u = 3 and every hyper-parameter of FT-SAM are the papers', and the whole sweep is shown.
"""

import argparse
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import machine
import matplotlib.figure
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxguard import data, evaluation, repairs, scanning, suspects
from jaxguard.attacks import Attack, known
from jaxguard.defenses import clp
from jaxguard.graph.pairing import Pairing
from jaxguard.suspects import Suspect
from jaxguard.training import CropFlip
from jaxguard.types import Dataset, Metrics, Variables

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = pathlib.Path(os.environ.get("JAXGUARD_SHARED_DATA", ROOT.parent / "shared" / "data"))
RESULTS = ROOT / "experiments" / "results"
CHECKPOINTS = ("c10_bd_wrn16_nad_student", "c10_bd_wrn16_abl_grid", "c10_clean_resnet20_aka")
SCANNED_TOO = (
    "c10_ft_wrn16_nad_teacher",
    "c10_repaired_wrn16_nad_erased",
    "c10_clean_resnet32_aka",
    "c10_clean_resnet44_aka",
)
"""Without a working backdoor, of the same makes: what the scores above are to be judged by."""

ARCHITECTURES = {"wrn16_1": "wideresnet-16-1"} | {f"resnet{n}_cifar": f"resnet{n}" for n in (20, 32, 44)}
SEED = 0
CLEAN = 0.05
U = 3.0
SWEEP = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
PAIRINGS: tuple[Pairing, ...] = ("dataflow", "module_order")
EPOCHS = 100
"""BackdoorBench's for CIFAR-10."""


@dataclass(frozen=True)
class Case:
    """A checkpoint and what its authors say of it.

    Attributes:
        name: file name without suffix.
        suspect: the model.
        attack: its backdoor, None for a clean one.
        measured: ACC and ASR that came with the file.
    """

    name: str
    suspect: Suspect
    attack: Attack | None
    measured: dict[str, float]


def open_case(name: str) -> Case:
    folder = SHARED / "checkpoints"
    card = json.loads((folder / f"{name}.json").read_text())
    preprocess = {key: tuple(values) for key, values in card["preprocess"].items()}
    suspect = suspects.load(folder / card["file"], arch=ARCHITECTURES[card["arch"]], **preprocess)
    attack = None
    if card["attack"]:
        attack = known(data.load_trigger(folder / card["attack"]["trigger_file"]), target=card["attack"]["target"])
    return Case(name, suspect, attack, {key: card["measured"].get(key) for key in ("acc", "asr")})


class Evaluator:
    """Metrics on the test set; variables seen before are not run again, since many thresholds cut nothing."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.known: dict[tuple[str, str], Metrics] = {}

    def __call__(self, case: Case, variables: Variables) -> Metrics:
        """Metrics of a case's model with these variables."""
        content = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(variables)))
        key = case.name, content.hexdigest()
        if key not in self.known:
            test = self.dataset.test
            network = case.suspect.require_network().with_variables(variables)
            self.known[key] = evaluation.evaluate(network, test, case.attack)
        return self.known[key]


def reproduce(case: Case, evaluate: Evaluator) -> dict[str, Any]:
    found = evaluate(case, case.suspect.require_network().variables)
    pairs = [(found.acc, case.measured["acc"]), (found.asr, case.measured["asr"])]
    difference = max(abs(ours - theirs) for ours, theirs in pairs if ours is not None and theirs is not None)
    return {**asdict(found), "measured_before": case.measured, "largest_difference": round(difference, 6)}


def scan(case: Case, evaluate: Evaluator) -> dict[str, Any]:
    del evaluate
    rows = {}
    for pairing in PAIRINGS:
        (finding,) = scanning.scan(case.suspect, pairing=pairing).findings
        by_layer = [layer.z for layer in finding.layers]
        highest = finding.layers[int(np.nanargmax(by_layer))]
        rows[pairing] = {
            "largest_z": round(finding.z, 3),
            "in_layer": highest.name,
            "largest_z_possible_there": round((len(highest.scores) - 1) / len(highest.scores) ** 0.5, 3),
            "channels_above_3": sum(layer.above for layer in finding.layers),
            "channels": sum(len(layer.scores) for layer in finding.layers),
            "verdict": finding.verdict,
        }
    return rows


def sweep_clp(case: Case, evaluate: Evaluator) -> list[dict[str, Any]]:
    network = case.suspect.require_network()
    before = evaluate(case, network.variables)
    rows = []
    for pairing in PAIRINGS:
        for u in SWEEP:
            repaired, report = clp(network, u=u, pairing=pairing)
            cut = sum(int(layer.mask.sum()) for layer in report.layers)
            rows.append(
                {"pairing": pairing, "u": u, "cut": cut, **outcome(case, before, evaluate(case, repaired.variables))}
            )
            print(f"  {pairing} u={u:g}: {rows[-1]}", flush=True)
    return rows


def repair_ft_sam(case: Case, evaluate: Evaluator, *, epochs: int) -> dict[str, Any] | None:
    if case.attack is None:
        return None
    clean = evaluate.dataset.clean
    repaired, report = repairs.repair(
        case.suspect, "ft-sam", jax.random.key(SEED), clean=clean, options={"epochs": epochs, "augment": CropFlip()}
    )
    before, after = (evaluate(case, suspect.require_network().variables) for suspect in (case.suspect, repaired))
    return {
        **outcome(case, before, after),
        "before": asdict(before),
        "clean_images": len(clean.labels),
        "options": dict(report.options),
        "shortened": None if epochs == EPOCHS else f"{epochs} of {EPOCHS} epochs, which would not fit in 12 minutes",
        "seconds_per_epoch": round(report.seconds / max(epochs, 1), 2),
    }


def outcome(case: Case, before: Metrics, after: Metrics) -> dict[str, float | None]:
    der = evaluation.defense_effectiveness_rate(before, after) if case.attack else None
    rates = {"acc": after.acc, "asr": after.asr, "ra": after.ra, "der": der}
    return {name: None if rate is None else round(rate, 6) for name, rate in rates.items()}


def percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.2f}"


def comparison(results: dict[str, Any]) -> list[list[str]]:
    """Heading and one row per checkpoint; parts that were not run stay empty."""
    rows = [["checkpoint", "ACC", "ASR", "largest z", "above 3", "CLP u=3 ACC/ASR", "FT-SAM ACC/ASR"]]
    for name in (*CHECKPOINTS, *SCANNED_TOO):
        metrics, scanned, curve, tuned = (
            results.get(part, {}).get("checkpoints", {}).get(name) or {} for part in PARTS
        )
        scanned = scanned.get("dataflow", {}) if scanned else {}
        cut = next((row for row in curve if (row["pairing"], row["u"]) == ("dataflow", U)), {})
        repaired = [" / ".join(filter(None, map(percent, (row.get("acc"), row.get("asr"))))) for row in (cut, tuned)]
        scores = [str(scanned.get(key, "")) for key in ("largest_z", "channels_above_3")]
        rows.append([name, percent(metrics.get("acc")), percent(metrics.get("asr")), *scores, *repaired])
    return rows


def curves(results: dict[str, Any]) -> list[list[str]]:
    """Heading and one row per threshold: ACC / ASR and channels cut, each pairing and checkpoint."""
    by_checkpoint = results.get("clp", {}).get("checkpoints", {})
    columns = [(name, pairing) for name in by_checkpoint for pairing in PAIRINGS]
    table = [["u", *(f"{name} {pairing}" for name, pairing in columns)]]
    for u in SWEEP:
        cells = []
        for name, pairing in columns:
            row = next(row for row in by_checkpoint[name] if (row["pairing"], row["u"]) == (pairing, u))
            rates = " / ".join(filter(None, (percent(row["acc"]), percent(row["asr"]))))
            cells.append(f"{rates} ({row['cut']})")
        table.append([f"{u:g}", *cells])
    return table


def draw(by_checkpoint: dict[str, list[dict[str, Any]]], path: pathlib.Path) -> None:
    matplotlib.rcParams |= {"svg.hashsalt": path.name, "svg.fonttype": "none"}
    figure = matplotlib.figure.Figure(figsize=(9, 2.8), layout="constrained")
    panels = figure.subplots(1, len(by_checkpoint), sharey=True, squeeze=False)[0]
    for axes, (name, rows) in zip(panels, by_checkpoint.items(), strict=True):
        for pairing, style in zip(PAIRINGS, ("-", ":"), strict=True):
            curve = [row for row in rows if row["pairing"] == pairing]
            for rate, color in (("acc", "C0"), ("asr", "C3")):
                heights = [row[rate] for row in curve]
                if None not in heights:
                    axes.plot(SWEEP, [100 * y for y in heights], style, color=color, label=f"{rate.upper()}, {pairing}")
        axes.set(title=name, xlabel="u", ylim=(-3, 103))
        axes.title.set_fontsize("small")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("%")
    panels[0].legend(fontsize="x-small")
    figure.savefig(path, metadata={"Date": None})


PARTS: dict[str, Callable[[Case, Evaluator], Any]] = {
    "reproduce": reproduce,
    "scan": scan,
    "clp": sweep_clp,
    "ft-sam": repair_ft_sam,
}


def stored(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="npz:PATH of a CIFAR-10 pack")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of FT-SAM")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "third_party.json")
    arguments = parser.parse_args()

    evaluate = Evaluator(data.load(arguments.data, seed=SEED, clean=CLEAN))
    cases = [open_case(name) for name in (*CHECKPOINTS, *SCANNED_TOO)]
    results = stored(arguments.out)
    for part in arguments.parts:
        run = functools.partial(PARTS[part], epochs=arguments.epochs) if part == "ft-sam" else PARTS[part]
        section = {"environment": machine.environment("optax", seed=SEED, clean=CLEAN), "checkpoints": {}}
        for case in cases if part == "scan" else cases[: len(CHECKPOINTS)]:
            print(f"{part}: {case.name}", flush=True)
            section["checkpoints"][case.name] = run(case, evaluate)
            print(f"  {section['checkpoints'][case.name]}", flush=True)
        results = {**stored(arguments.out), part: section}
        ordered = {name: results[name] for name in PARTS if name in results}
        arguments.out.parent.mkdir(exist_ok=True)
        arguments.out.write_text(json.dumps(ordered, indent=1, allow_nan=False) + "\n")
    if "clp" in arguments.parts:
        draw(results["clp"]["checkpoints"], arguments.out.with_name(f"{arguments.out.stem}_clp.svg"))
    console = Console(width=160)
    for heading, *rows in (comparison(results), curves(results)):
        table = Table(*heading)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        print("\n".join("| " + " | ".join(row) + " |" for row in (heading, ["---"] * len(heading), *rows)))


if __name__ == "__main__":
    main()
