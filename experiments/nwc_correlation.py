"""Do channels move under unlearning of noise and of clean images as they do under unlearning of the backdoor itself?

    python experiments/nwc_correlation.py [--seeds 0 1 2] [--out results/nwc_correlation.json]

The claim that TSBD and OTBR rest on: neuron weight changes (NWC) of random or clean unlearning, which a defender can
do, are like those of poison unlearning, which takes the trigger. The demo's networks, backdoored with BadNets and with
Blended, are unlearned in all three ways: noise for 20 steps as OTBR does, clean images down to chance and triggered
ones down to 5 % ASR as TSBD does. Compared over the channels of the hidden layers, by Spearman's rank correlation:
over all layers, and the mean over layers of that within one, since NWC grows with the size of a kernel and so agrees
between any two descents to some degree. Two controls: the kernels' own L1 norms, and a clean network given the same
triggered images. `shared` is the part of the top tenth by poison unlearning that is in the other's top tenth.

Hardware: any; about a minute per network on 2 CPU cores.
Expected: see the README, "TSBD and OTBR".
Result: experiments/results/nwc_correlation.json, .svg.
"""

import argparse
import json
import pathlib
from typing import Any

import demo_networks
import jax
import machine
import matplotlib.figure
import matplotlib.ticker
import numpy as np
from demo_networks import Network
from rich.console import Console
from rich.table import Table
from scipy import stats

from jaxguard import evaluation, weight_change
from jaxguard.types import Batch

RESULT = pathlib.Path(__file__).parent / "results" / "nwc_correlation.json"
RATE = 1e-3
"""Learning rate of clean and poison unlearning; the papers' 1e-4 counts on 2,500 images, here are 140."""

Scores = list[np.ndarray]


def weight_changes(network: Network) -> tuple[dict[str, Scores], list[str]]:
    """NWC of the hidden layers by each way of unlearning, and the L1 norms of the kernels; names of the layers."""
    _, graph, variables, digits, attack, key = network
    clean = digits.clean
    wanted = np.asarray(attack.relabel(clean.labels))
    changed = wanted != clean.labels
    triggered = Batch(np.asarray(attack.stamp(clean.images))[changed], wanted[changed])
    keys = jax.random.split(key, 3)
    unlearned = {
        "noise": weight_change.unlearn_noise(network.suspect, keys[0]),
        "clean": weight_change.unlearn(network.suspect, clean, keys[1], learning_rate=RATE, batch_size=64),
        "poison": weight_change.unlearn(
            network.suspect, triggered, keys[2],
            learning_rate=RATE, batch_size=64, stop_acc=0.05, epochs=300,
        ),
    }  # fmt: skip
    hidden = [k for k in range(len(graph.producers)) if k not in graph.outputs]
    found = {
        name: weight_change.neuron_weight_change(graph, variables, result.variables)
        for name, result in unlearned.items()
    }
    found["norm"] = weight_change.neuron_weight_change(graph, jax.tree.map(np.zeros_like, variables), variables)
    names = [graph.producers[k].name for k in hidden]
    return {name: [scores[k] for k in hidden] for name, scores in found.items()}, names


def agreement(ours: Scores, theirs: Scores) -> dict[str, float]:
    """How alike two rankings are."""
    tops = [np.concatenate(weight_change.highest(scores, 0.1)) for scores in (ours, theirs)]
    within = [stats.spearmanr(a, b).statistic for a, b in zip(ours, theirs, strict=True)]
    return {
        "all layers": round(float(stats.spearmanr(np.concatenate(ours), np.concatenate(theirs)).statistic), 3),
        "within layers": round(float(np.mean(within)), 3),
        "shared": round(float((tops[0] & tops[1]).sum() / tops[1].sum()), 3),
    }


def draw(found: dict[str, Scores], names: list[str], title: str, path: pathlib.Path) -> None:
    """NWC of poison unlearning against the two that need no trigger, channel by channel."""
    matplotlib.rcParams |= {"svg.hashsalt": path.name, "svg.fonttype": "none"}
    figure = matplotlib.figure.Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    for ax, way in zip(axes, ("noise", "clean"), strict=True):
        for name, colour, x, y in zip(names, colours, found[way], found["poison"], strict=True):
            ax.scatter(x, y, s=12, color=colour, label=name, linewidths=0)
        rates = agreement(found[way], found["poison"])
        ax.set(xscale="log", yscale="log", xlabel=f"weight change, unlearning {way}")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        ax.set_title(f"Spearman {rates['all layers']:.2f}, within layers {rates['within layers']:.2f}", fontsize=10)
    axes[0].set_ylabel("weight change, unlearning the backdoor")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, metadata={"Date": None})


def compare(seed: int, attack_name: str, backdoored: bool) -> tuple[dict[str, Any], dict[str, Scores], list[str]]:
    network = demo_networks.train(seed, attack_name, backdoored=backdoored)
    metrics = evaluation.evaluate(network.model.network(network.variables), network.digits.test, network.attack)
    found, names = weight_changes(network)
    pairs = (("noise", "poison"), ("clean", "poison"), ("noise", "clean"), ("norm", "poison"))
    row = {
        "seed": seed,
        "attack": attack_name,
        "network": "backdoored" if backdoored else "clean",
        "acc": round(metrics.acc, 4),
        "asr": round(metrics.asr or 0.0, 4),
        **{f"{a} - {b}": agreement(found[a], found[b]) for a, b in pairs},
    }
    return row, found, names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=pathlib.Path, default=RESULT)
    arguments = parser.parse_args()
    rows = []
    table = Table("network", "attack", "seed", "noise - poison", "clean - poison", "noise - clean", "norm - poison")
    for seed in arguments.seeds:
        for attack, backdoored in (("badnets", True), ("blended", True), ("badnets", False)):
            row, found, names = compare(seed, attack, backdoored)
            rows.append(row)
            cells = [
                "{all layers:.2f} / {within layers:.2f} / {shared:.0%}".format(**row[h.header])
                for h in table.columns[3:]
            ]
            table.add_row(row["network"], attack, str(seed), *cells)
            if len(rows) == 1:
                draw(found, names, f"{attack}, seed {seed}: one point per channel", arguments.out.with_suffix(".svg"))
    environment = machine.environment("scipy", seeds=arguments.seeds)
    arguments.out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
    Console().print(table)
    Console().print("Spearman over all layers / within layers / part of the top tenth that is shared")


if __name__ == "__main__":
    main()
