"""Fleets of clean and backdoored networks of one architecture: what detection is measured on.

    python experiments/detection_zoo.py digits fleets/digits
    python experiments/detection_zoo.py npz:fashion_mnist.npz fleets/fashion_mnist --images 6000 --steps 300

Every network has its own seed, initialisation, nine tenths of the training images, and every backdoored one its own
target, trigger and poison rate. They are trained one after another by one compiled step: on CPU a batch of convolution
weights costs five times as much as a loop over them. Start one process per core with `--shard i/n`; a network that is
there already is not trained again. Networks are numbered: `fleet_detection.py` calibrates on the even, judges on the
odd ones. A backdoored network whose trigger works on less than 80 % of the test images is kept aside as failed.

Hardware: any. Time: half an hour for the digits on two CPU cores.
Result: the folder, one checkpoint and one record (.json) per network.
"""

import argparse
import json
import pathlib
import time
from typing import get_args

import jax
import numpy as np
from rich.progress import track

from jaxguard import checkpoints, data, evaluation, models, suspects, training
from jaxguard.attacks import Attack, badnets, blended, poison
from jaxguard.attacks.badnets import Corner
from jaxguard.types import Batch

WORKS = 0.8
SHARE = 0.9
BATCH_SIZE = 128
RATES = (0.02, 0.05, 0.1)
GROUPS = ("clean", "badnets", "blended")


def attack_of(group: str, draw: np.random.Generator, num_classes: int) -> Attack | None:
    """A trigger and target of a network's own."""
    target = int(draw.integers(num_classes))
    if group == "badnets":
        return badnets(target=target, size=int(draw.integers(2, 5)), corner=get_args(Corner)[draw.integers(4)])
    if group == "blended":
        return blended(target=target, alpha=float(draw.choice([0.1, 0.2, 0.3])), seed=int(draw.integers(2**31)))
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="digits or npz:PATH")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--arch", default="cnn")
    parser.add_argument("--images", type=int, help="training images at most")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--each", type=int, default=128, help="networks per group; half of them calibrate")
    parser.add_argument("--shard", default="0/1", help="i/n: this process's part")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    index, count = map(int, arguments.shard.split("/"))
    arguments.folder.mkdir(parents=True, exist_ok=True)

    found = data.load(arguments.data, seed=arguments.seed, clean=0.05)
    train = Batch(found.train.images[: arguments.images], found.train.labels[: arguments.images])
    shape = tuple(train.images.shape[1:])
    model = models.build(arguments.arch, num_classes=found.num_classes, input_shape=shape)
    numbers = range(index, arguments.each, count)
    todo = [(number, group) for number in numbers for group in GROUPS]
    for number, group in track(todo, f"training {arguments.shard}"):
        path = arguments.folder / f"{group}-{number:03d}.safetensors"
        if path.with_suffix(".json").exists():
            continue
        seed = [arguments.seed, GROUPS.index(group), number]
        draw = np.random.default_rng(seed)
        attack, rate = attack_of(group, draw, found.num_classes), float(draw.choice(RATES))
        kept = draw.permutation(len(train.labels))[: round(SHARE * len(train.labels))]
        batch = Batch(np.asarray(train.images)[kept], np.asarray(train.labels)[kept])
        key_init, key_poison, key_fit = jax.random.split(jax.random.key(int(draw.integers(2**31))), 3)
        if attack is not None:
            batch, _ = poison(attack, batch, rate, key_poison)
        start = time.perf_counter()
        result = training.fit(
            model.train_fn, model.init(key_init), batch, key_fit, steps=arguments.steps, batch_size=BATCH_SIZE
        )
        metrics = evaluation.evaluate(model.network(result.variables), found.test, attack)
        leaves = checkpoints.flatten(result.variables)
        checkpoints.save(path, leaves, metadata=suspects.description(model), overwrite=True)
        record = {"file": path.name, "group": group, "number": number, "acc": round(metrics.acc, 4)}
        record |= {"seed": seed, "steps": arguments.steps, "architecture": model.spec, "data": found.name}
        if attack is not None and metrics.asr is not None:
            record |= {"asr": round(metrics.asr, 4), "target": attack.target, "rate": rate}
            record |= {"failed": metrics.asr < WORKS}
        record |= {"seconds": round(time.perf_counter() - start, 1)}
        path.with_suffix(".json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
