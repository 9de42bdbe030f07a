"""One owner, stolen in every way, and networks that have nothing to do with it: what fingerprints are judged on.

    python experiments/theft_zoo.py digits zoo/digits
    python experiments/theft_zoo.py npz:c10.npz zoo/cifar10 --images 6000 --epochs 20

The training images are split between owner and thief. Independents are trained on the thief's half with true labels, as
in SAC's protocol, in three architectures; the first half of them is for calibration, the other for judging. Recipes are
chosen so that copies classify about as well as the owner, and by nothing else. Each network is a file that `jaxguard`
opens without flags; `zoo.json` lists them with accuracy and seconds.

Hardware: any. Time: about ten minutes for the digits on two CPU cores.
Result: the folder; `fingerprint_benchmark.py` takes it.
"""

import argparse
import json
import pathlib
import time
from typing import Any

import jax
import machine
import numpy as np
from rich.progress import track

from jaxguard import checkpoints, data, evaluation, models, suspects
from jaxguard.models import Model
from jaxguard.theft import THEFTS, halves, independent
from jaxguard.types import Batch, Network

OWNER = "cnn:width=0.5"
ARCHITECTURES = ("cnn:width=0.5", "mlp:hidden=128x64", "wideresnet-16-1:width=0.5")
BATCH_SIZE = 64


def thefts(epochs: int, students: list[Model]) -> list[tuple[str, str, dict[str, Any]]]:
    """`(name, row of THEFTS, options)`; students take turns."""
    recipe = {"batch_size": BATCH_SIZE, "epochs": epochs, "learning_rate": 0.05}
    short = {"batch_size": BATCH_SIZE, "epochs": max(epochs // 3, 1), "learning_rate": 0.01}
    pruning = {"learning_rate": 0.05, "epochs": 3, "batch_size": BATCH_SIZE, "every": 6}
    rows: list[tuple[str, str, dict[str, Any]]] = [
        ("fine-tune-all", "fine-tune-all", short),
        ("fine-tune-last", "fine-tune-last", short),
        ("head-reset", "head-reset", recipe),
        ("fine-pruning-30", "fine-pruning", {"share": 0.3, **pruning}),
        ("fine-pruning-60", "fine-pruning", {"share": 0.6, **pruning}),
        ("permutation", "permutation", {}),
        ("rescaling", "rescaling", {}),
    ]
    for student in students:
        rows += [
            ("label-extraction", "label-extraction", {"student": student, **recipe}),
            ("distillation", "distillation", {"student": student, "temperature": 4.0, **recipe}),
        ]
    rows += [("adversarial-extraction", "adversarial-extraction", {"extraction": recipe, **short, "attack_steps": 10})]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="digits or npz:PATH")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--images", type=int, help="training images at most")
    parser.add_argument("--epochs", type=int, default=30, help="of a training from scratch")
    parser.add_argument("--independents", type=int, default=42)
    parser.add_argument("--seeds", type=int, default=5, help="copies by each theft")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    found = data.load(arguments.data, seed=arguments.seed, clean=0.05)
    train = Batch(found.train.images[: arguments.images], found.train.labels[: arguments.images])
    key_halves, key_owner, key_others, key_thefts = jax.random.split(jax.random.key(arguments.seed), 4)
    owners, thiefs = halves(train, key_halves)
    shape = tuple(train.images.shape[1:])
    built = {spec: models.build(spec, num_classes=found.num_classes, input_shape=shape) for spec in ARCHITECTURES}
    rows: list[dict[str, Any]] = []

    def keep(name: str, group: str, model: Model, make_fn: Any) -> Network:
        start = time.perf_counter()
        network = make_fn()
        seconds = time.perf_counter() - start
        path = arguments.folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        leaves = checkpoints.flatten(network.variables)
        checkpoints.save(path, leaves, metadata=suspects.description(model), overwrite=True)
        answers = evaluation.predictions(network, found.test.images)
        accuracy = float(np.mean(answers == np.asarray(found.test.labels)))
        row = {"file": path.name, "group": group, "model": model.spec}
        rows.append(row | {"accuracy": round(accuracy, 4), "seconds": round(seconds, 1)})
        return network

    recipe = {"epochs": arguments.epochs, "batch_size": BATCH_SIZE}
    owner = keep("owner", "owner", built[OWNER], lambda: independent(built[OWNER], owners, key_owner, **recipe)[0])
    keys = jax.random.split(key_others, arguments.independents)
    for k in track(range(arguments.independents), "independents"):
        model = built[ARCHITECTURES[k % len(ARCHITECTURES)]]
        keep(
            f"independent-{k}", "independent", model, lambda m=model, k=k: independent(m, thiefs, keys[k], **recipe)[0]
        )
    for k in track(range(arguments.seeds), "thefts"):
        for number, (name, row, options) in enumerate(thefts(arguments.epochs, [built[ARCHITECTURES[k % 3]]])):
            key = jax.random.fold_in(jax.random.fold_in(key_thefts, k), number)
            model = options.get("student", built[OWNER])
            keep(f"{name}-{k}", name, model, lambda r=row, o=options, key=key: THEFTS[r](owner, thiefs, key, **o)[0])
    for bits in (8, 4, 3):
        name = f"quantisation-{bits}"
        keep(name, name, built[OWNER], lambda b=bits: THEFTS["quantisation"](owner, None, key_thefts, bits=b)[0])
    settings = {name: str(value) for name, value in vars(arguments).items()}
    listing = {"environment": machine.environment(seed=arguments.seed), "settings": settings, "networks": rows}
    (arguments.folder / "zoo.json").write_text(json.dumps(listing, indent=1) + "\n")


if __name__ == "__main__":
    main()
