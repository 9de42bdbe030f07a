"""How far from a hinge should the self-null test of `tafa_hinge` look for comparison?

    python experiments/hinge_controls.py

The test compares how a model bends at the owner's hinges with how it bends at controls along the same lines. `near`
is what ships, controls at 2 and 3 deltas to either side; `far` has them at 4, 6 and 8, for which points must keep twice
the distance from 0 and 1; `near, inner` are the near controls on the lines of `far`. Networks are those of
`hinge_tasks.py`, from other seeds. `bends` is the curve behind it: how much independents bend at every distance from
the owner's hinges, 1 being the mean over all distances.

Hardware: any. Time: 11 minutes on two CPU cores that others used too.
Expected: far controls find more copies at 0.1 % (8 to 21 points), but 11 % of the tests on independent convolutional
classifiers fall below 5 %: those bend less far from the owner's hinges. Near ones stay at 0 to 1.4 %. Nobody is accused
at 0.1 % by either.
Result: experiments/results/hinge_controls.json.
"""

import argparse
import json
from collections import defaultdict
from typing import Any

import hinge_networks
import jax
import machine
import numpy as np
import ranking
from hinge_networks import Task
from hinge_tasks import RESULT
from rich.console import Console
from rich.table import Table
from scipy import stats

from jaxguard.fingerprints import hinge_layers, hinge_statistics, hinges
from jaxguard.fingerprints.queries import outputs_of
from jaxguard.fingerprints.tafa_hinge import ROUNDING
from jaxguard.fingerprints.verification import ALPHA, NULL_ALPHA
from jaxguard.suspects import Suspect
from jaxguard.types import Network

OUT = RESULT.with_name("hinge_controls.json")
NUMBER, CANDIDATES, DEPTHS, SCALE = 100, 800, (1, 2), 0.03
"""Defaults of `tafa_hinge`."""

FAR = (-8, -6, -4, 4, 6, 8)
SETTINGS = {
    "near": (hinge_statistics.CONTROLS, hinge_statistics.FARTHEST),
    "far": (FAR, max(FAR) + 1),
    "near, inner": (hinge_statistics.CONTROLS, max(FAR) + 1),
}
"""Controls, and how far lines reach, both in deltas."""


def search(owner: Network, key: jax.Array, reach: int) -> hinges.Hinges:
    """The hinges that `tafa_hinge` keeps, in a box that lets lines reach so far."""
    found, _ = hinge_layers.hinge_layers(owner.graph)
    linear = tuple(layer for layer in found if layer.is_linear)
    parts = [
        hinges.search(
            owner.graph, owner.variables, jax.random.fold_in(key, depth), layers, CANDIDATES // len(DEPTHS),
            linear=linear, scale=SCALE, margin=reach * SCALE + ROUNDING,
        )
        for depth, layers in hinge_layers.of_depths(found, DEPTHS).items()
    ]  # fmt: skip
    whole = hinges.Hinges(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    usable = np.flatnonzero(whole.usable)
    return whole.take(usable[np.argsort(-whole.ranks[usable], kind="stable")[:NUMBER]])


def bends(kept: hinges.Hinges, reach: int, models: list[Suspect]) -> np.ndarray:
    """Second differences `[models, hinges, 2 reach - 1]` of each model along each line, from `1 - reach` deltas on."""
    steps = (np.arange(-reach, reach + 1) * kept.deltas[:, None]).astype(np.float32)
    lines = kept.points[:, None] + steps[..., None, None, None] * kept.directions[:, None]
    outputs = outputs_of(models, lines.reshape(-1, *lines.shape[2:]))
    answers = np.stack([one.reshape(*lines.shape[:2], -1) for one in outputs]).astype(np.float64)
    return np.linalg.norm(np.diff(answers, n=2, axis=2), axis=-1)


def self_null(found: np.ndarray, controls: tuple[int, ...]) -> np.ndarray:
    """P-value of each model, as `hinge_statistics.self_null` has it."""
    middle = found.shape[2] // 2
    beside = found[:, :, [middle + at for at in controls]].mean(-1)
    p_values = []
    for row in found[:, :, middle] - beside:
        _, p_value = stats.wilcoxon(row, alternative="greater") if row.any() else (0, 1)
        p_values.append(float(np.asarray(p_value)))
    return np.array(p_values)


def measure(task: Task, owners: int, independents: int, seed: int, into: dict[str, Any]) -> None:
    """Adds what owners of one seed find."""
    key_owners, key_others, key_copies, key_probes = jax.random.split(jax.random.key(seed), 4)
    others = [
        hinge_networks.suspect_of("independent", task.network(task.models[k % len(task.models)], task.others, key))
        for k, key in enumerate(jax.random.split(key_others, independents))
    ]
    for k, key in enumerate(jax.random.split(key_owners, owners)):
        owner = task.network(task.models[0], task.owners, key)
        copies = dict(task.copies(owner, jax.random.fold_in(key_copies, k)))
        models = [hinge_networks.suspect_of(name, copy) for name, copy in copies.items()] + others
        key_lines = jax.random.fold_in(key_probes, k)
        seen = {}
        for reach in {reach for _, reach in SETTINGS.values()}:
            kept = search(owner, key_lines, reach)
            seen[reach] = len(kept.points), bends(kept, reach, models)
        for name, (controls, reach) in SETTINGS.items():
            count, found = seen[reach]
            row = into.setdefault(name, {"hinges": [], "independents": [], "copies": defaultdict(list), "bends": []})
            p_values = self_null(found, controls)
            row["hinges"].append(count)
            row["independents"] += p_values[len(copies) :].tolist()
            for copy, p_value in zip(copies, p_values, strict=False):
                row["copies"][copy].append(float(p_value))
            mean = found[len(copies) :].mean(1)
            row["bends"].append((mean / mean.mean(-1, keepdims=True)).mean(0).tolist())


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """Rates of one setting on one task."""
    independents = np.array(row["independents"])
    copies = {name: np.array(values) for name, values in row["copies"].items()}
    return {
        "tests": len(independents),
        "fewest_hinges": min(row["hinges"]),
        "smallest_p": float(independents.min()),
        **{f"accused_at_{alpha:g}": ranking.rate_above(-independents, -alpha) for alpha in (ALPHA, NULL_ALPHA)},
        "found_of_all_copies": ranking.rate_above(-np.concatenate(list(copies.values())), -NULL_ALPHA),
        "found": {name: ranking.rate_above(-values, -NULL_ALPHA).value for name, values in copies.items()},
        "bends_of_independents": np.round(np.mean(row["bends"], 0), 3).tolist(),
        "p_of_independents": [float(f"{value:.3g}") for value in independents],
        "p_of_copies": {name: [float(f"{value:.3g}") for value in values] for name, values in copies.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--owners", type=int, default=2, help="of each seed")
    parser.add_argument("--independents", type=int, default=12, help="of each seed")
    arguments = parser.parse_args()
    collected: dict[str, dict[str, Any]] = defaultdict(dict)
    for seed in arguments.seeds:
        for number, task in enumerate(hinge_networks.tasks(seed)):
            measure(task, arguments.owners, arguments.independents, 1000 * seed + number, collected[task.name])
    results = {task: {name: summary(row) for name, row in rows.items()} for task, rows in collected.items()}
    settings = {"owners": arguments.owners, "independents": arguments.independents, "controls": SETTINGS}
    environment = machine.environment("scipy", seeds=arguments.seeds)
    OUT.write_text(json.dumps({"environment": environment, "settings": settings, "tasks": results}, indent=1) + "\n")
    table = Table("task", "controls", "tests", "smallest p", "accused at 5 %", "at 0.1 %", "copies found")
    for task, rows in results.items():
        for name, row in rows.items():
            rates = [row[f"accused_at_{alpha:g}"] for alpha in (ALPHA, NULL_ALPHA)] + [row["found_of_all_copies"]]
            shares = [f"{rate.value:.1%} ({rate.low:.1%}-{rate.high:.1%})" for rate in rates]
            table.add_row(task, name, str(row["tests"]), f"{row['smallest_p']:.2g}", *shares)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
