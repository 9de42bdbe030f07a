"""Fleets of clean and backdoored networks of one architecture: what detection is measured on.

    python experiments/detection_zoo.py digits fleets/digits
    python experiments/detection_zoo.py npz:fashion_mnist.npz fleets/fashion_mnist --images 6000 --steps 300

Every network has its own seed, initialisation, nine tenths of the training images, and every backdoored one its own
target, trigger and poison rate. `training.fit_many` trains them, `--together` so many at once: side by side on an
accelerator, on CPU one after another by one compiled step, as a batch of convolution weights costs five times as much
as a loop over them there. Start one process per core with `--shard i/n`; a network that is there already is not trained
again. Networks are numbered: `fleet_detection.py` calibrates on the even, judges on the
odd ones. A backdoored network whose trigger works on less than 80 % of the test images is kept aside as failed.

Hardware: any. Time: half an hour for the digits on two CPU cores.
Result: the folder, one checkpoint and one record (.json) per network.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

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


class Drawn(NamedTuple):
    """What is a network's own."""

    seed: list[int]
    attack: Attack | None
    rate: float
    rows: np.ndarray
    poisoned: Batch
    is_poisoned: np.ndarray
    key_init: jax.Array
    key_fit: jax.Array


def draw(train: Batch, number: int, group: str, seed: int, num_classes: int) -> Drawn:
    own = [seed, GROUPS.index(group), number]
    rng = np.random.default_rng(own)
    attack, rate = attack_of(group, rng, num_classes), float(rng.choice(RATES))
    rows = rng.permutation(len(train.labels))[: round(SHARE * len(train.labels))]
    batch, is_poisoned = (
        Batch(np.asarray(train.images)[rows], np.asarray(train.labels)[rows]),
        np.zeros(len(rows), bool),
    )
    key_init, key_poison, key_fit = jax.random.split(jax.random.key(int(rng.integers(2**31))), 3)
    if attack is not None:
        batch, is_poisoned = poison(attack, batch, rate, key_poison)
    return Drawn(own, attack, rate, rows, batch, np.asarray(is_poisoned), key_init, key_fit)


def together(train: Batch, drawn: Sequence[Drawn]) -> dict[str, Any]:
    """All images, with the poisoned ones of every network at the end; keys, and each network's rows."""
    images, labels, rows = [np.asarray(train.images)], [np.asarray(train.labels)], []
    for one in drawn:
        first = sum(map(len, labels))
        images.append(np.asarray(one.poisoned.images)[one.is_poisoned])
        labels.append(np.asarray(one.poisoned.labels)[one.is_poisoned])
        rows.append(one.rows.copy())
        rows[-1][one.is_poisoned] = first + np.arange(one.is_poisoned.sum())
    data = Batch(np.concatenate(images), np.concatenate(labels))
    return {"data": data, "keys": [one.key_fit for one in drawn], "rows": rows}


def path_of(folder: pathlib.Path, number: int, group: str) -> pathlib.Path:
    return folder / f"{group}-{number:03d}.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="digits or npz:PATH")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--arch", default="cnn")
    parser.add_argument("--images", type=int, help="training images at most")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--each", type=int, default=128, help="networks per group; half of them calibrate")
    parser.add_argument("--shard", default="0/1", help="i/n: this process's part")
    parser.add_argument("--together", type=int, default=32, help="networks that are trained together")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    index, count = map(int, arguments.shard.split("/"))
    arguments.folder.mkdir(parents=True, exist_ok=True)

    found = data.load(arguments.data, seed=arguments.seed, clean=0.05)
    train = Batch(found.train.images[: arguments.images], found.train.labels[: arguments.images])
    shape = tuple(train.images.shape[1:])
    model = models.build(arguments.arch, num_classes=found.num_classes, input_shape=shape)
    numbers = range(index, arguments.each, count)
    every = [(number, group) for number in numbers for group in GROUPS]
    todo = [one for one in every if not path_of(arguments.folder, *one).with_suffix(".json").exists()]
    groups = [todo[first : first + arguments.together] for first in range(0, len(todo), arguments.together)]
    for some in track(groups, f"training {arguments.shard}"):
        drawn = [draw(train, number, group, arguments.seed, found.num_classes) for number, group in some]
        start = time.perf_counter()
        trained = training.fit_many(
            model.train_fn,
            [model.init(one.key_init) for one in drawn],
            **together(train, drawn),
            steps=arguments.steps,
            batch_size=BATCH_SIZE,
        )
        seconds = (time.perf_counter() - start) / len(some)
        for (number, group), one, (variables, _) in zip(some, drawn, trained, strict=True):
            path = path_of(arguments.folder, number, group)
            metrics = evaluation.evaluate(model.network(variables), found.test, one.attack)
            leaves = checkpoints.flatten(variables)
            checkpoints.save(path, leaves, metadata=suspects.description(model), overwrite=True)
            record = {"file": path.name, "group": group, "number": number, "acc": round(metrics.acc, 4)}
            record |= {"seed": one.seed, "steps": arguments.steps, "architecture": model.spec, "data": found.name}
            if one.attack is not None and metrics.asr is not None:
                record |= {"asr": round(metrics.asr, 4), "target": one.attack.target, "rate": one.rate}
                record |= {"failed": metrics.asr < WORKS}
            record |= {"seconds": round(seconds, 1)}
            path.with_suffix(".json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
