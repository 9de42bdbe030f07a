"""Does the TAFA-style fingerprint find copies whatever the task: classes, a regression, images out of images?

    python experiments/hinge_tasks.py

Dense and convolutional classifiers and autoencoders of digits, and regressions of the diabetes table, all of ReLUs.
Every owner's network is stolen once in every way; independents are trained on other data than the owners', half of
them to set each owner's threshold at 5 %, half to be judged. The self-null test needs no references: there all of them
are judged, and the owners by each other's probes, networks of the same data and architecture. `raw outputs` is the
yardstick, the mean cosine of outputs on test images. Defaults of `tafa_hinge` throughout; recipes were chosen by how
well networks learn, on another seed.

An AUC is that of copies and judged independents on one owner's probes, averaged over owners; its interval resamples
owners and independents. Intervals of rates are binomial, as if one network asked by several owners were several:
those of independents are narrower than they should be. `pruning` cuts the smallest weights of every kernel, `channels`
the quietest hidden channels; 4 bits and 60 % ruin some networks, see `quality`.

Hardware: any. Time: 19 minutes on two CPU cores that others used too.
Expected: see the README, "Ownership".
Result: experiments/results/hinge_tasks.json, .svg.
"""

import argparse
import json
import pathlib
import time
from collections import defaultdict
from typing import Any

import hinge_networks
import jax
import jax.numpy as jnp
import machine
import matplotlib as mpl
import numpy as np
import ranking
from fingerprint_benchmark import raw_outputs
from hinge_networks import Task
from jaxguard.fingerprints.ranking import Rate
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jaxguard import ownership
from jaxguard.fingerprints import Fingerprint, Owner, Probes
from jaxguard.fingerprints.queries import outputs_of
from jaxguard.fingerprints.verification import ALPHA, NULL_ALPHA
from jaxguard.suspects import Suspect

RESULT = pathlib.Path(__file__).parent / "results" / "hinge_tasks.json"
AIM = 0.99
AIMED = ("fine-tuning", "pruning", "channels", "8 bits", "4 bits")
"""What the thefts are called that the aim is for."""


def asked(methods: dict[str, Fingerprint], probes: dict[str, Probes], models: list[Suspect]) -> dict[str, np.ndarray]:
    """Scores `[S]` by method, the first model being the owner's, and the hinges' own p-values."""
    found = {}
    outputs = {id(one): jnp.asarray(np.stack(outputs_of(models, one.images))) for one in probes.values()}
    for name, method in methods.items():
        answers = outputs[id(probes[name])]
        signatures = method.signature_fn(probes[name], answers)
        found[name] = method.scores(method.distance_fn(probes[name], signatures[0], signatures))
        if method.null_fn is not None:
            found["null"] = method.null_fn(probes[name], answers)
    return found


def auc(copies: np.ndarray, judged: np.ndarray) -> Rate:
    """Chance that a copy scores above an independent network on its owner's probes, ties counted half.

    Args:
        copies: `[O]`, one for each owner.
        judged: `[O, N]`, the same networks for each owner.
    """
    wins = (copies[:, None] > judged) + 0.5 * (copies[:, None] == judged)
    rng = np.random.default_rng(0)
    drawn = [
        wins[np.ix_(rng.integers(len(wins), size=len(wins)), rng.integers(wins.shape[1], size=wins.shape[1]))].mean()
        for _ in range(ranking.RESAMPLES)
    ]
    return Rate(float(wins.mean()), *(float(end) for end in np.quantile(drawn, (0.025, 0.975))))


def measure(task: Task, owners: int, independents: int, seed: int) -> dict[str, Any]:
    """One column of the table."""
    key_owners, key_others, key_copies, key_probes = jax.random.split(jax.random.key(seed), 4)
    hinges = ownership.build("tafa-hinge", {})
    cka = ownership.build("tafa-hinge", {"statistic": "cka"})
    raw = raw_outputs(np.asarray(task.test.images[:300], np.float32))
    methods = {"profile": hinges, "cka": cka, "raw outputs": raw}
    mine = [task.network(task.models[0], task.owners, key) for key in jax.random.split(key_owners, owners)]
    others = [
        task.network(task.models[k % len(task.models)], task.others, key)
        for k, key in enumerate(jax.random.split(key_others, independents))
    ]
    half = independents // 2
    innocent = [hinge_networks.suspect_of(f"independent {k}", network) for k, network in enumerate(others)]
    scores: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in (*methods, "null")}
    against: dict[str, list[np.ndarray]] = defaultdict(list)  # [O] of [independents]
    siblings, quality, made, verified, notes = [], defaultdict(list), [], [], []
    for k, owner in enumerate(mine):
        copies = dict(task.copies(owner, jax.random.fold_in(key_copies, k)))
        start = time.perf_counter()
        lines = hinges.make(Owner(owner), jax.random.fold_in(key_probes, k))
        made.append(time.perf_counter() - start)
        notes += lines.notes
        probes = {"profile": lines, "cka": lines, "raw outputs": raw.make(Owner(owner), key_probes)}
        suspects = [hinge_networks.suspect_of(name, copy) for name, copy in {"owner": owner, **copies}.items()]
        strangers = [hinge_networks.suspect_of("owner", other) for other in mine if other is not owner]
        models = suspects + innocent + strangers
        found = asked(methods, probes, models)
        start = time.perf_counter()
        asked({"profile": hinges}, {"profile": lines}, models)
        verified.append((time.perf_counter() - start) / len(models))
        for name, values in found.items():
            for suspect, value in zip(suspects, values, strict=False):
                scores[name][suspect.name].append(float(value))
            against[name].append(values[len(suspects) : len(suspects) + independents])
        siblings.append(found["null"][len(suspects) + independents :])
        for name, copy in {"owner": owner, **copies}.items():
            quality[name].append(round(task.quality(copy), 4))
    thefts: dict[str, Any] = {name: {"quality": values} for name, values in quality.items()}
    rates = {}
    for name in methods:
        references, judged = np.array(against[name])[:, :half], np.array(against[name])[:, half:]
        thresholds = np.array([ranking.calibrated_threshold(row, ALPHA) for row in references])
        rates[name] = ranking.rate_above((judged - thresholds[:, None]).ravel(), 0.0)
        for theft, values in scores[name].items():
            thefts[theft][name] = {
                "scores": [round(value, 4) for value in values],
                "auc": auc(np.array(values), judged),
                "found_at_threshold": ranking.rate_above(np.array(values) - thresholds, 0.0),
            }
    for theft, values in scores["null"].items():
        thefts[theft]["null"] = {"p": values, "found": ranking.rate_above(-np.array(values), -NULL_ALPHA)}
    return {
        "models": [model.spec for model in task.models],
        "images": [len(part.images) for part in (task.owners, task.others, task.test)],
        "quality_of_independents": [round(task.quality(network), 4) for network in others],
        "fpr_at_threshold": rates,
        "independents": {name: np.round(np.array(against[name]), 4).tolist() for name in ("profile", "null")},
        "self_null": {"independents": accused(against["null"]), "owners_by_each_other": accused(siblings)},
        "thefts": thefts,
        "seconds_to_make": {"first": round(made[0], 2), "least": round(min(made), 2)},
        "milliseconds_per_suspect": round(1000 * min(verified), 2),
        "notes": notes,
    }


def accused(p_values: list[np.ndarray]) -> dict[str, Any]:
    """How often the self-null test accuses networks that are no copies."""
    flat = np.concatenate(p_values)
    return {
        "tests": len(flat),
        "smallest_p": float(flat.min()),
        **{f"accused_at_{alpha:g}": ranking.rate_above(-flat, -alpha) for alpha in (ALPHA, NULL_ALPHA)},
    }


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """Profile similarity of every copy, and range and median of the independents', task by task."""
    mpl.rcParams |= {"svg.hashsalt": path.name, "svg.fonttype": "none"}
    figure = Figure(figsize=(10.5, 4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(results), sharey=True))
    for axes, (name, found) in zip(panels, results.items(), strict=True):
        names = [theft for theft in found["thefts"] if theft != "owner"]
        for row, theft in enumerate(names):
            values = found["thefts"][theft]["profile"]["scores"]
            axes.plot(values, [row] * len(values), "o", color="#c0392b", markersize=3, alpha=0.7, markeredgewidth=0)
        others = np.array(found["independents"]["profile"])
        axes.axvspan(others.min(), others.max(), color="#2c3e50", alpha=0.15, linewidth=0)
        axes.axvline(np.median(others), color="#2c3e50", linewidth=0.8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_title(name, fontsize=9)
        axes.set_xlim(-0.05, 1.05)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.supxlabel("profile similarity of copies (dots) and independents (grey)", fontsize=9)
    figure.savefig(path, metadata={"Date": None})


def report(results: dict[str, Any]) -> None:
    """AUC, AUC of the yardstick and copies found by the self-null test, with the aims that are missed."""
    table = Table("theft", *results, title="AUC (raw outputs) found by the self-null test, quality")
    for theft in next(iter(results.values()))["thefts"]:
        cells = []
        for found in results.values():
            one = found["thefts"][theft]
            value, yardstick, found_by_null = (
                one["profile"]["auc"][0],
                one["raw outputs"]["auc"][0],
                one["null"]["found"][0],
            )
            missed = "!" if theft.startswith(AIMED) and value < AIM else ""
            cells.append(
                f"{value:.3f}{missed} ({yardstick:.2f}) {100 * found_by_null:.0f}%, {np.median(one['quality']):.2f}"
            )
        table.add_row(theft, *cells)
    for row, name in ((found["self_null"], task) for task, found in results.items()):
        Console(width=200).print(name, row)
    table.add_row("FPR", *(f"{100 * found['fpr_at_threshold']['profile'][0]:.0f}%" for found in results.values()))
    Console(width=200).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--owners", type=int, default=6)
    parser.add_argument("--independents", type=int, default=40, help="half of them calibrate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", help="to measure; the others' results are kept")
    arguments = parser.parse_args()
    results = json.loads(RESULT.read_text())["tasks"] if arguments.tasks and RESULT.exists() else {}
    settings = {"owners": arguments.owners, "independents": arguments.independents}
    for number, task in enumerate(hinge_networks.tasks(arguments.seed)):
        if arguments.tasks and task.name not in arguments.tasks:
            continue
        seed = 1000 * arguments.seed + number
        results[task.name] = measure(task, arguments.owners, arguments.independents, seed)
        environment = machine.environment("scipy", "scikit-learn", seed=arguments.seed)
        whole = {"environment": environment, "settings": settings, "aim": AIM, "tasks": results}
        RESULT.write_text(json.dumps(whole, indent=1) + "\n")
        draw(results, RESULT.with_suffix(".svg"))
    report(json.loads(RESULT.read_text())["tasks"])


if __name__ == "__main__":
    main()
