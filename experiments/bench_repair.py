"""How long does a repair take, from first call to last, and what do more values of a sweep cost?

    python experiments/bench_repair.py
    python experiments/bench_repair.py --data npz:c10.npz     # with the third-party ResNet-20 for ShapPruning

Parts, each of which can be run alone with --parts:

    otbr      PreActResNet-18: 20 steps of unlearning noise at batch 256, then prune and fuse with one value of gamma
              and with all seven of the reference's sweep; random weights, since no step depends on their values
    shapley   ResNet-20, 10 images and defaults: inversion of ten classes, Shapley values of 688 channels, cuts,
              restoration. Its length depends on the network, so it takes akamaster's, which is clean, and CIFAR-10
              images where --data names a pack; it is told to suspect class 0, else it would have nothing to repair

Every part runs twice: the first time compiles. Hardware: whatever it runs on, named in the result.
Time: 20 minutes on two CPU cores.
Expected: see the README, "Speed".
Result: experiments/results/repair.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import machine
import numpy as np
from bench_shapley import random_variables
from third_party import RESULTS, SEED, open_case, stored

from jaxguard import data, defenses, models, weight_change
from jaxguard.defenses import Data
from jaxguard.defenses.otbr import SWEEP, repairs
from jaxguard.types import Batch, Network

OUT = RESULTS / "repair.json"
RESNET20 = "c10_clean_resnet20_aka"
STEPS = 20
IMAGE = jax.ShapeDtypeStruct((32, 32, 3), np.float32)
ROUNDS = 3


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    return time.perf_counter() - start, result


def otbr(_: str | None) -> dict[str, Any]:
    model = models.build("preactresnet18", num_classes=10, input_shape=(32, 32, 3))
    variables = random_variables(model)
    network = Network(variables, model.apply_fn, IMAGE, model.train_fn)

    def unlearn(steps: int) -> Any:
        return weight_change.unlearn_noise(network, jax.random.key(SEED), steps=steps).variables

    compiling, _ = timed(lambda: unlearn(1))
    unlearning, after = timed(lambda: unlearn(STEPS))
    ranking = weight_change.rank(network.graph, variables, after, layers="convolutions", exclude="shortcut")

    def fused(gammas: tuple[float, ...]) -> Any:
        return [repair.variables for repair in repairs(network, ranking, gammas)]

    first, _ = timed(lambda: fused(SWEEP))
    timed(lambda: fused((0.1,)))
    one, every = (
        statistics.median(timed(lambda gammas=gammas: fused(gammas))[0] for _ in range(ROUNDS))
        for gammas in ((0.1,), SWEEP)
    )
    return {
        "network": "preactresnet18",
        "seconds": {
            "first_step": round(compiling, 1),
            "unlearning": round(unlearning, 1),
            "first_fusion": round(first, 2),
            "fusion_one_gamma": round(one, 2),
            f"fusion_{len(SWEEP)}_gammas": round(every, 2),
            "end_to_end_compiled": round(unlearning + one, 1),
        },
    }


def shapley(pack: str | None) -> dict[str, Any]:
    if pack:
        network = open_case(RESNET20).suspect.require_network()
        variables, apply_fn = network.variables, network.apply_fn
        clean = data.load(pack, seed=SEED, clean_per_class=1).clean
    else:
        model = models.build("resnet20", num_classes=10, input_shape=(32, 32, 3))
        variables, apply_fn = random_variables(model), model.apply_fn
        images = np.random.default_rng(SEED).uniform(size=(10, 32, 32, 3)).astype(np.float32)
        clean = Batch(images, np.arange(10))
    assert apply_fn is not None
    network, given = Network(variables, apply_fn, IMAGE), Data(clean)
    runs = [timed(lambda: defenses.shapley(network, given, jax.random.key(SEED), target=0)[0])[0] for _ in range(2)]
    return {
        "network": RESNET20 if pack else "resnet20, random weights",
        "seconds": {"first": round(runs[0], 1), "again": round(runs[1], 1)},
    }


PARTS = {"otbr": otbr, "shapley": shapley}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="npz:PATH of a CIFAR-10 pack")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    arguments = parser.parse_args()
    results = stored(OUT)
    for part in arguments.parts:
        results[part] = PARTS[part](arguments.data) | {"environment": machine.environment(seed=SEED)}
        OUT.write_text(json.dumps(results, indent=2) + "\n")
        print(part, json.dumps(results[part], indent=1), flush=True)


if __name__ == "__main__":
    main()
