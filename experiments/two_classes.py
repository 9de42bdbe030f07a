"""Networks of two classes: does expected transferability tell a backdoor, with and without images?

    python experiments/two_classes.py

Pairs of digits, drawn by the seed (16x16 grey, scikit-learn's), one small CNN clean and one backdoored each: BadNets,
a white 3x3 square in a random corner, 10 % of the training images, target 1. Searched with no data, and on 100 clean
training images. Nothing was chosen on these networks: the threshold of one half is the method's (Xiang, Miller,
Kesidis, ICLR 2022), the level of 5 % the scan's.

Hardware: any. Time: about 20 CPU seconds a network. Result: results/two_classes.json.
"""

import argparse
import json
import pathlib
from typing import Any

import jax
import machine
import numpy as np

from jaxguard import data, evaluation, inversion, models, training
from jaxguard.attacks import badnets, poison
from jaxguard.types import Batch, TriggerSearch

RESULT = pathlib.Path(__file__).parent / "results" / "two_classes.json"
CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")
ALPHA = 0.05


def pair(batch: Batch, digits: tuple[int, int]) -> Batch:
    chosen = np.isin(batch.labels, digits)
    return Batch(np.asarray(batch.images)[chosen], (np.asarray(batch.labels)[chosen] == digits[1]).astype(np.int32))


def told(found: TriggerSearch) -> dict[str, Any]:
    is_suspected = not found.problem and found.p_class <= ALPHA and found.interval[0] > 0.5
    row = {"suspected": bool(is_suspected), "problem": found.problem, "class": found.target}
    numbers = {"transferability": found.gap, "p": found.p_class, "success": found.success}
    return row | {name: None if np.isnan(value) else round(value, 4) for name, value in numbers.items()}


def measured(seed: int, *, is_backdoored: bool) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    first, second = (int(digit) for digit in draw.permutation(10)[:2])
    dataset = data.load("digits", seed=seed, clean=0)
    train, test = (pair(batch, (first, second)) for batch in (dataset.train, dataset.test))
    attack = badnets(target=1, corner=CORNERS[draw.integers(4)])
    key_poison, key_init, key_fit = jax.random.split(jax.random.key(seed), 3)
    if is_backdoored:
        train, _ = poison(attack, train, 0.1, key_poison)
    model = models.build("cnn:width=0.25", num_classes=2, input_shape=(16, 16, 1))
    fitted = training.fit(model.train_fn, model.init(key_init), train, key_fit, steps=150, batch_size=64)
    network = model.network(fitted.variables)
    metrics = evaluation.evaluate(network, test, attack)
    clean = pair(dataset.train, (first, second))
    return {
        "seed": seed,
        "digits": [first, second],
        "backdoored": is_backdoored,
        "acc": round(metrics.acc, 4),
        "asr": round(metrics.asr or 0.0, 4),
        "no data": told(inversion.search(network)),
        "100 images": told(inversion.search(network, images=clean.images[:100], labels=clean.labels[:100])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.pairs):
        for is_backdoored in (True, False):
            rows.append(measured(seed, is_backdoored=is_backdoored))
            print(json.dumps(rows[-1]), flush=True)
            counts = {
                f"{name}, {mode}": [sum(row[mode]["suspected"] for row in some), len(some)]
                for name, some in {
                    "backdoored": [row for row in rows if row["backdoored"]],
                    "clean": [row for row in rows if not row["backdoored"]],
                }.items()
                for mode in ("no data", "100 images")
            }
            written = {"environment": machine.environment(), "suspected": counts, "networks": rows}
            RESULT.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
