"""Do exact and entropic plans fuse to the same accuracy, and how far above plain averaging?

    python ../shared/data/unpack.py mnist packs/mnist.npz
    python experiments/fusion_solvers.py npz:packs/mnist.npz

OTFusion's own two MNIST networks, averaged as they are and fused in both directions; and OTBR with its default options
on the demo's network of seed 0 (BadNets), whose plans are solved either way. Exact plans are what `auto` takes on a
CPU, Sinkhorn's what it takes on accelerators.

Hardware: any. Time: two minutes on two CPU cores.
Expected: see the README, "TSBD and OTBR".
Result: experiments/results/fusion_solvers.json.
"""

import argparse
import json
from typing import Any

import demo_networks
import jax
import machine
import third_party_networks as networks
from third_party import RESULTS, SHARED

from jaxguard import data, evaluation, fusion, suspects
from jaxguard.defenses import NO_DATA, otbr
from jaxguard.types import Network

OUT = RESULTS / "fusion_solvers.json"
SOLVERS = ("exact", "sinkhorn")


def otfusion(spec: str) -> dict[str, Any]:
    """Accuracies on MNIST's test images."""
    test = data.load(spec, seed=0).test
    folder = SHARED / "checkpoints"
    cards = [json.loads(path.read_text()) for path in sorted(folder.glob("*otfusion_?.json"))]
    apply_fn = networks.preprocessed(networks.NETWORKS[cards[0]["arch"]], **cards[0]["preprocess"])
    opened = (suspects.load(folder / card["file"], apply_fn=apply_fn, input_shape=(28, 28, 1)) for card in cards)
    a, b = (suspect.require_network() for suspect in opened)

    def accuracy(network: Network) -> float:
        return evaluation.accuracy(network, test)

    found = {"first": accuracy(a), "second": accuracy(b)}
    found["averaged"] = accuracy(jax.tree.map(lambda x, y: (x + y) / 2, a, b))
    for solver in SOLVERS:
        for name, one, other in (("first to second", a, b), ("second to first", b, a)):
            found[f"fused, {solver}, {name}"] = accuracy(fusion.fuse(one, other, solver=solver).network)
    return found


def demo_network() -> dict[str, Any]:
    """ACC and ASR of OTBR's repair."""
    network = demo_networks.train(0, "badnets")
    found = {}
    for solver in SOLVERS:
        repaired, report = otbr(network.suspect, NO_DATA, network.key, solver=solver)
        rates = evaluation.evaluate(network.model.network(repaired.variables), network.digits.test, network.attack)
        found[solver] = {"acc": rates.acc, "asr": rates.asr, "gamma": report.chosen["gamma"]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="npz:PATH of the MNIST pack")
    arguments = parser.parse_args()
    results = {
        "environment": machine.environment("ott-jax", seed=0),
        "otfusion": otfusion(arguments.data),
        "otbr": demo_network(),
    }
    OUT.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
