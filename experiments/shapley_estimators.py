"""Which Shapley estimator is nearest to the truth for the same number of evaluations, on a real backdoored network?

    python experiments/shapley_estimators.py

The game of ShapPruning on the demo's backdoored network (BadNets, seed 0): 224 channels, value = mean probability of
the target on nine test images with the true trigger. Single orders, antithetic pairs and rotations (stratified by
position) are run on the same budgets, over several seeds, and so are pairs that stop at a tenth of the whole value and
the truncated bandit of Neuron Shapley. The truth is the mean of antithetic pairs and rotations on a budget of their
own, many times as large.

Hardware: any. Time: 10 minutes on two CPU cores.
Expected: pairs and rotations ahead of single orders, pairs that discard as good as whole pairs at a fifth of the
evaluations; these are ShapPruning's default. (The committed result: --seeds 3 --truth 160.)
Result: experiments/results/shapley_estimators.json and .svg.
"""

import argparse
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import machine
import matplotlib.figure
import numpy as np
from jax.tree_util import Partial

from jaxguard import data, demo, models
from jaxguard.attacks import badnets, poison
from jaxguard.defenses.shapley import AttackValue
from jaxguard.graph import Coalitions, channel_graph
from jaxguard.kernels import shapley
from jaxguard.kernels.shapley.sampling import PASSES
from jaxguard.pruning.shapley_estimation import permutation_sampling
from jaxguard.types import Dataset

RESULTS = pathlib.Path(__file__).parent / "results"
TARGET, SEED = 0, 0
PASS_BUDGETS = (4, 8, 16, 32)
"""Passes through all channels."""
TOP = 3


def backdoored() -> tuple[models.Model, Any, Dataset]:
    """The demo's backdoored network."""
    digits = data.load("digits", seed=SEED, clean=demo.CLEAN)
    model = models.build(
        demo.ARCHITECTURE, num_classes=digits.num_classes, input_shape=tuple(digits.test.images.shape[1:])
    )
    key_poison, key_model, *_ = jax.random.split(jax.random.key(SEED), 4)
    poisoned, _ = poison(badnets(target=TARGET), digits.train, demo.POISON_RATE, key_poison)
    return model, demo.train(model, poisoned, key_model, None), digits


def game_of(model: models.Model, variables: Any, digits: Dataset) -> tuple[Partial, int]:
    labels = np.asarray(digits.test.labels)
    chosen = [int(np.flatnonzero(labels == label)[0]) for label in range(1, 10)]
    images = badnets(target=TARGET).stamp(jnp.asarray(digits.test.images)[np.array(chosen)])
    game = Coalitions(channel_graph(model.apply_fn, variables, images))
    return Partial(AttackValue(game, TARGET, "probability"), variables, game.start(variables, images)), game.players


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--truth", type=int, default=400, help="passes behind the truth")
    arguments = parser.parse_args()
    value, players = game_of(*backdoored())
    whole = float(value(jnp.ones((1, players)))[0])

    def sample(pairing: Any, passes: int, seed: int, threshold: float | None = None) -> shapley.Estimate:
        samples = passes // PASSES[pairing]
        return permutation_sampling(
            value, players, jax.random.key(seed), samples=samples, pairing=pairing, threshold=threshold
        )

    halves = [
        np.asarray(sample(pairing, arguments.truth // 2, 10_000).values) for pairing in ("antithetic", "rotations")
    ]
    truth = (halves[0] + halves[1]) / 2
    best = set(np.argsort(-truth)[:TOP].tolist())
    print("whole value", whole, "truth's own error", float(np.sqrt(np.mean((halves[0] - halves[1]) ** 2)) / 2))
    runs: dict[str, list[dict[str, float]]] = {}

    def record(name: str, estimates: list[shapley.Estimate]) -> None:
        values = np.stack([np.asarray(found.values) for found in estimates])
        runs.setdefault(name, []).append(
            {
                "evaluations": float(np.mean([int(found.evaluations) for found in estimates])),
                "rms_error": float(np.sqrt(np.mean((values - truth) ** 2))),
                "top_found": float(np.mean([len(best & set(np.argsort(-own)[:TOP].tolist())) / TOP for own in values])),
            }
        )
        print(name, runs[name][-1], flush=True)

    for passes in PASS_BUDGETS:
        for pairing in PASSES:
            record(pairing, [sample(pairing, passes, seed) for seed in range(arguments.seeds)])
        discarding = [sample("antithetic", passes, seed, 0.1 * whole) for seed in range(arguments.seeds)]
        record("antithetic, discarding", discarding)
        bandit = [
            shapley.top_k(value, players, jax.random.key(seed), k=TOP, samples=max(passes // 2, 2))
            for seed in range(arguments.seeds)
        ]
        record("bandit", bandit)
    result = {
        "environment": machine.environment(seeds=arguments.seeds),
        "players": players,
        "whole_value": whole,
        "truth_rms_uncertainty": float(np.sqrt(np.mean((halves[0] - halves[1]) ** 2)) / 2),
        "top": TOP,
        "runs": runs,
    }
    (RESULTS / "shapley_estimators.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(runs)


def draw(runs: dict[str, list[dict[str, float]]]) -> None:
    """Error against evaluations, both logarithmic."""
    figure = matplotlib.figure.Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for (name, points), marker in zip(runs.items(), "os^Dv", strict=True):
        axes.loglog(
            [point["evaluations"] for point in points],
            [point["rms_error"] for point in points],
            marker=marker,
            label={"none": "single orders", "antithetic": "antithetic pairs"}.get(name, name),
        )
    axes.set_xlabel("coalitions evaluated")
    axes.set_ylabel("RMS error of a Shapley value")
    axes.set_xticks(ticks := [200, 500, 1000, 2000, 5000], [f"{tick:,}" for tick in ticks])
    axes.set_yticks(ticks := [0.01, 0.02, 0.03], [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "shapley_estimators.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
