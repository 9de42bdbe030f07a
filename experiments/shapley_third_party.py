"""Does ShapPruning take the backdoor out of networks that others trained, from how few images, and at what cost?

    python ../shared/data/unpack.py cifar10 c10.npz
    python experiments/shapley_third_party.py --data npz:c10.npz

NAD's and ABL's WideResNet-16-1 (BadNets, 3x3 grid) with 1, 5 and 10 clean CIFAR-10 training images per class, and with
none: images synthesised from the network. jaxguard's defaults, chosen on its own demo networks, but
for up to 100 images in place of 50. Measured on
the whole test set with the true trigger: before, with the channels cut, and restored. Rows are stored as they are done;
--checkpoints and --images run a part.

Hardware: any. Time: about 3 minutes a row on two CPU cores.
Expected: see the README, "Models trained by others".
Result: experiments/results/shapley_third_party.json.
"""

import argparse
import json
import time
from typing import Any

import jax
import machine
import numpy as np
from third_party import RESULTS, SEED, Case, open_case, stored

from jaxguard import data, evaluation
from jaxguard.defenses import Data, shapley
from jaxguard.graph import Coalitions
from jaxguard.pruning.path import cut
from jaxguard.types import Dataset, Metrics, Variables

CHECKPOINTS = ("c10_bd_wrn16_nad_student", "c10_bd_wrn16_abl_grid")
IMAGES = (1, 5, 10, 0)
OUT = RESULTS / "shapley_third_party.json"


def row(case: Case, dataset: Dataset, images_per_class: int) -> dict[str, Any]:
    """One repair, measured before, after the cuts and after restoration."""
    network = case.suspect.require_network()
    clean = dataset.clean if images_per_class else None
    start = time.perf_counter()
    result, report = shapley(network, Data(clean), jax.random.key(SEED), images=100)
    repaired = jax.block_until_ready(result.variables)
    seconds = time.perf_counter() - start
    trigger, path = report.trigger, report.path
    assert trigger is not None and path is not None

    def measure(variables: Variables) -> dict[str, float | None]:
        metrics: Metrics = evaluation.evaluate(network.with_variables(variables), dataset.test, case.attack)
        return {"acc": metrics.acc, "asr": metrics.asr}

    game = Coalitions(network.graph)
    names = {game.name(player): player for player in range(game.players)}
    chosen = np.array([names[name] for name in path.channels[: path.chosen]], int)
    assert case.attack is not None
    return {
        "images_per_class": images_per_class,
        "source": trigger.source,
        "target": case.attack.target,
        "suspected": int(trigger.shown[0]) if trigger.target is None else trigger.target,
        "flagged": trigger.target is not None,
        "anomaly_of_target": float(trigger.anomaly[case.attack.target]),
        "rank_of_target": int((trigger.norms < trigger.norms[case.attack.target]).sum()) + 1,
        "cut": len(chosen),
        "channels": game.players,
        "stop": path.stop,
        "before": measure(network.variables),
        "pruned": measure(cut(network.variables, game, chosen)),
        "restored": measure(repaired),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="npz:PATH of the CIFAR-10 pack")
    parser.add_argument("--checkpoints", nargs="*", default=CHECKPOINTS)
    parser.add_argument("--images", nargs="*", type=int, default=IMAGES, help="per class; 0 for none")
    arguments = parser.parse_args()
    results = stored(OUT)
    for images_per_class in arguments.images:
        dataset = data.load(arguments.data, seed=SEED, clean_per_class=max(images_per_class, 1))
        for name in arguments.checkpoints:
            found = row(open_case(name), dataset, images_per_class)
            results.setdefault(name, {})[str(images_per_class)] = found | {"date": time.strftime("%Y-%m-%d")}
            results["environment"] = machine.environment(seed=SEED)
            OUT.write_text(json.dumps(results, indent=2) + "\n")
            print(name, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
