"""Which fingerprint finds which theft, and how often does it accuse an independent model?

    python experiments/theft_zoo.py digits zoo/digits
    python experiments/fingerprint_benchmark.py digits zoo/digits --name digits

For every method: probes are made of the owner's model (and of test images, which nobody trained on), every network of
the zoo is asked, and a threshold is set on one half of the independents at a nominal false positive rate of 5 %. The
other half and all copies are judged by it. `AUC` and `TPR at 5 % FPR` compare copies with that other half; `raw
outputs` is the yardstick, the mean cosine of outputs on the same test images. LiteGuard and MetaV make their own pools
from the owner's half of the training images.

Hardware: any. Time: some ten minutes on two CPU cores, most of it for making LiteGuard's and MetaV's pools.
Expected: see the README, "Ownership".
Result: experiments/results/fingerprint_benchmark_NAME.json, .svg.
"""

import argparse
import json
import pathlib
import time
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import machine
import matplotlib as mpl
import numpy as np
import ranking
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jaxguard import data, ownership, suspects
from jaxguard.errors import FingerprintError
from jaxguard.fingerprints import Fingerprint, Owner, Probes
from jaxguard.fingerprints.queries import outputs_of
from jaxguard.fingerprints.verification import ALPHA, NULL_ALPHA, compare
from jaxguard.suspects import Suspect
from jaxguard.theft import halves
from jaxguard.types import Batch

RESULTS = pathlib.Path(__file__).parent / "results"
PROBES = 300


def methods(images: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Row of the table -> row of FINGERPRINTS and options; probes as many as there are images, `PROBES` at most."""
    count = min(images, PROBES)
    learned = {"model": "cnn:width=0.5", "epochs": 30, "batch_size": 64, "copies": 2, "independents": 4}
    return {
        "SAC, normal": ("sac", {"variant": "normal", "num_probes": count}),
        "SAC-w": ("sac", {"variant": "wrong", "num_probes": count, "least": 5}),
        "SAC-m": ("sac", {"variant": "cutmix", "num_probes": count}),
        "SAC-JC": ("sac", {"variant": "jc", "num_probes": count}),
        "SAC-JC, probabilities": ("sac", {"variant": "jc", "num_probes": count, "space": "probs"}),
        "SAC-JC, labels": ("sac", {"variant": "jc", "num_probes": count, "label_only": True}),
        "AKH": ("akh", {"least": 5}),
        "IPGuard": ("ipguard", {}),
        "ZEST": ("zest", {"references": min(count, 64)}),
        "LiteGuard": ("lite-guard", {"points": 50, **learned}),
        "MetaV": ("metav", {"points": 50, **learned}),
        "tafa_hinge, profile": ("tafa-hinge", {}),
        "tafa_hinge, CKA": ("tafa-hinge", {"statistic": "cka"}),
    }


def judge(method: Fingerprint, owner: Owner, models: list[Suspect], key: jax.Array) -> dict[str, Any]:
    """Scores of all models (the owner's first), seconds to make and to verify, null p-values."""
    start = time.perf_counter()
    probes = method.make(owner, key)
    made = time.perf_counter() - start
    outputs = outputs_of(models, probes.images)  # compiles
    start = time.perf_counter()
    outputs = outputs_of(models, probes.images)
    signature = method.signature_fn(probes, jnp.asarray(outputs[0])[None])[0]
    distances = compare(method, probes, signature, outputs[0].shape[1], outputs)
    verified = (time.perf_counter() - start) / len(models)
    null = None
    if method.null_fn is not None:
        null = [float(method.null_fn(probes, jnp.asarray(one)[None])[0]) for one in outputs]
    return {
        "scores": method.scores(distances),
        "null": null,
        "queries": len(probes.images),
        "seconds_to_make": round(made, 2),
        "milliseconds_per_suspect": round(1000 * verified, 2),
        "notes": list(probes.notes),
    }


def raw_outputs(images: np.ndarray) -> Fingerprint:
    """The yardstick: mean cosine of outputs on the same images."""

    def cosine(probes: Probes, owner: jax.Array, others: jax.Array) -> jax.Array:
        del probes
        lengths = jnp.linalg.norm(owner, axis=-1) * jnp.linalg.norm(others, axis=-1)
        return ((owner * others).sum(-1) / lengths).mean(-1)

    return Fingerprint(
        lambda owner, key, progress: Probes(images), lambda probes, outputs: outputs, cosine, stolen="high", sees="",
        blind="", name="raw outputs",
    )  # fmt: skip


def row(found: dict[str, Any], groups: list[str], calibration: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    """Figures of one method."""
    scores = found["scores"]
    threshold = ranking.calibrated_threshold(scores[calibration], ALPHA)
    thefts: dict[str, Any] = {}
    members = defaultdict(list)
    for k, group in enumerate(groups):
        if group not in ("owner", "independent"):
            members[group].append(k)
    for group, indices in members.items():
        copies = scores[indices]
        thefts[group] = {
            "copies": len(indices),
            "auc": ranking.roc_auc(copies, scores[held_out]),
            "tpr_at_5_fpr": ranking.tpr_at_fpr(copies, scores[held_out]),
            "found_at_threshold": ranking.rate_above(copies, threshold),
            "f1": round(ranking.f1(copies, scores[held_out], threshold), 4),
        }
        if found["null"] is not None:
            thefts[group]["null_p"] = [found["null"][k] for k in indices]
    result = {
        "fpr_at_threshold": ranking.rate_above(scores[held_out], threshold),
        "owner": float(scores[0]),
        "independents": [round(float(s), 5) for s in scores[np.concatenate([calibration, held_out])]],
        "thefts": thefts,
        **{name: value for name, value in found.items() if name not in ("scores", "null")},
    }
    if found["null"] is not None:
        null = np.array(found["null"])[np.concatenate([calibration, held_out])]
        result["smallest_null_p_of_independents"] = float(null.min())
        result["accused_by_null"] = int((null < NULL_ALPHA).sum())
    return result


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """AUC by method and theft."""
    mpl.rcParams |= {"svg.hashsalt": path.name, "svg.fonttype": "none"}
    names = list(results)
    thefts = list(results[names[0]]["thefts"])
    table = np.array([[results[name]["thefts"][theft]["auc"].value for theft in thefts] for name in names])
    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(table, cmap="RdYlBu", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(thefts)), thefts, rotation=35, ha="right")
    axes.set_yticks(range(len(names)), names)
    for (i, j), value in np.ndenumerate(table):
        axes.text(
            j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="black" if 0.2 < value < 0.85 else "white"
        )
    figure.colorbar(shown, ax=axes, label="AUC, copies against held-out independents")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="as the zoo's")
    parser.add_argument("zoo", type=pathlib.Path)
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--methods", nargs="+", help="rows to run; all by default")
    arguments = parser.parse_args()

    listing = json.loads((arguments.zoo / "zoo.json").read_text())
    networks = sorted(listing["networks"], key=lambda one: one["group"] != "owner")
    seed = int(listing["settings"]["seed"])
    found = data.load(arguments.data, seed=seed, clean=0.05)
    probed = Batch(found.test.images[:2000], found.test.labels[:2000])
    limit = None if listing["settings"]["images"] == "None" else int(listing["settings"]["images"])
    train = Batch(found.train.images[:limit], found.train.labels[:limit])
    owned, _ = halves(train, jax.random.split(jax.random.key(seed), 4)[0])
    models = [suspects.load(arguments.zoo / one["file"]) for one in networks]
    groups = [one["group"] for one in networks]
    independents = np.flatnonzero([group == "independent" for group in groups])
    calibration, held_out = independents[: len(independents) // 2], independents[len(independents) // 2 :]
    mine = models[0].require_network()

    path = RESULTS / f"fingerprint_benchmark_{arguments.name}.json"
    chosen = {
        "raw outputs": raw_outputs(np.asarray(probed.images[:PROBES], np.float32)),
        **{name: ownership.build(*spec) for name, spec in methods(len(probed.images)).items()},
    }
    results: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name, method in chosen.items():
        if arguments.methods and name not in arguments.methods:
            continue
        owner = Owner(mine, owned if method.name in ("lite-guard", "metav") else probed)
        try:
            judged = judge(method, owner, models, jax.random.key(seed))
        except FingerprintError as error:
            failed[name] = str(error)
            print(f"{name} is left out: {error}")
            continue
        results[name] = row(judged, groups, calibration, held_out)
        whole = {
            "environment": machine.environment("scipy", "scikit-learn", seed=seed),
            "zoo": {"settings": listing["settings"], "networks": networks},
            "calibration": len(calibration),
            "held_out": len(held_out),
            "methods": results,
            "not_made": failed,
        }
        path.write_text(json.dumps(whole, indent=1) + "\n")
        draw(results, path.with_suffix(".svg"))
    report(results)


def report(results: dict[str, Any]) -> None:
    """The table of AUC and of copies found at the threshold."""
    thefts = list(next(iter(results.values()))["thefts"])
    table = Table("theft", *results)
    for theft in thefts:
        cells = []
        for found in results.values():
            one = found["thefts"][theft]
            cells.append(f"{one['auc'].value:.2f} / {100 * one['found_at_threshold'].value:.0f}%")
        table.add_row(theft, *cells)
    table.add_row("FPR", *(f"{100 * found['fpr_at_threshold'].value:.0f}%" for found in results.values()))
    Console(width=220).print(table)


if __name__ == "__main__":
    main()
