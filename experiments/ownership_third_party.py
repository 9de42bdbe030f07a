"""Do fingerprints find the two true copies among networks that others trained, and whom do they accuse besides?

    python ../shared/data/unpack.py cifar10 packs/cifar10.npz
    python ../shared/data/unpack.py mnist packs/mnist.npz
    python experiments/ownership_third_party.py packs

NAD's erased network was made from NAD's backdoored student (weights' cosine 0.98), dunnkers' MNIST network from
shihao's (1.00). Each is looked for by a certificate of its original, the other networks of the data set being the
references: 17 and fewer, so that at 5 % no verdict is possible and the p-value is at best 1 / (R + 1). NAD's fine-
tuned teacher and ABL's network share an initialisation with the student, by their weights (0.16 to 0.23), and count as
independent.

Hardware: any. Time: five minutes on two CPU cores.
Expected: see the README, "Ownership".
Result: experiments/results/ownership_third_party.json.
"""

import argparse
import json
import pathlib
import time
from typing import Any

import jax
import machine
import numpy as np
import third_party_table as known
from rich.console import Console
from rich.table import Table
from third_party import RESULTS, SEED

from jaxguard import data, ownership
from jaxguard.errors import FingerprintError
from jaxguard.suspects import Suspect
from jaxguard.types import Batch

OUT = RESULTS / "ownership_third_party.json"
COPIES = {
    "c10_bd_wrn16_nad_student": ("cifar10", "c10_repaired_wrn16_nad_erased"),
    "mnist_bd_badnet_shihao": ("mnist", "mnist_bd_badnet_dunnkers"),
}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "SAC-JC": ("sac", {"variant": "jc"}),
    "SAC-JC, probabilities": ("sac", {"variant": "jc", "space": "probs"}),
    "SAC-w": ("sac", {"variant": "wrong", "num_probes": 100}),
    "AKH": ("akh", {}),
    "IPGuard": ("ipguard", {}),
    "ZEST": ("zest", {"references": 32}),
    "tafa_hinge": ("tafa-hinge", {}),
}
NUM_IMAGES = 5000


def networks(dataset: str) -> dict[str, Suspect]:
    """All networks of a data set, behind their authors' preprocessing."""
    found = {}
    for path in sorted(known.FOLDER.glob("*.json")):
        card = json.loads(path.read_text())
        if card["dataset"] == dataset and "file" in card:
            found[path.stem] = known.known_network(known.FOLDER / card["file"], card)
    return found


def row(owner: str, copy: str, models: dict[str, Suspect], method: str, images: Batch) -> dict[str, Any]:
    """The copy's p-value, and who else scores high."""
    name, options = METHODS[method]
    others = [one for one in models if one not in (owner, copy)]
    start = time.perf_counter()
    made = ownership.certify(
        models[owner],
        name,
        jax.random.key(SEED),
        data=images,
        independents=[models[one] for one in others],
        options=options,
    )
    (found,) = ownership.verify(made, [models[copy]]).verifications
    scores = dict(zip(others, (reference.score for reference in made.references), strict=True))
    return {
        "copy": found.score,
        "p": found.p_value,
        "null_p": found.null_p_value,
        "independents": dict(sorted(scores.items(), key=lambda item: -item[1])),
        "probes": len(made.probes.images),
        "seconds": round(time.perf_counter() - start, 1),
        "notes": list(made.probes.notes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", type=pathlib.Path, help="folder of cifar10.npz and mnist.npz")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"environment": machine.environment(seed=SEED)}
    table = Table("owner", "method", "copy", "highest independent", "p", "null p")
    for owner, (dataset, copy) in COPIES.items():
        models = networks(dataset)
        test = data.load(f"npz:{arguments.packs / dataset}.npz", seed=SEED).test
        images = Batch(np.asarray(test.images[:NUM_IMAGES]), np.asarray(test.labels[:NUM_IMAGES]))
        results[owner] = {}
        for method in METHODS:
            try:
                found = row(owner, copy, models, method, images)
            except FingerprintError as error:
                results[owner][method] = {"error": str(error)}
                table.add_row(owner, method, "-", str(error)[:60], "-", "-")
                continue
            results[owner][method] = found
            first, score = next(iter(found["independents"].items()))
            null = "-" if found["null_p"] is None else f"{found['null_p']:.1e}"
            table.add_row(owner, method, f"{found['copy']:.3f}", f"{score:.3f} {first}", f"{found['p']:.3f}", null)
            OUT.write_text(json.dumps(results, indent=1) + "\n")
    OUT.write_text(json.dumps(results, indent=1) + "\n")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
