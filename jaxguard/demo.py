"""The main job on a laptop, with no download: train a backdoored and a clean network, scan both, repair the first."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax

from jaxguard import checkpoints, data, models, repairs, scanning, suspects, training
from jaxguard.attacks import Attack, badnets, poison
from jaxguard.environment import environment
from jaxguard.fleet.progress import Watch
from jaxguard.models import Model
from jaxguard.training import CropFlip, Progress
from jaxguard.types import Batch, Report, Variables

ARCHITECTURE = "cnn"
STEPS = 300
BATCH_SIZE = 128
POISON_RATE = 0.1
CLEAN = 0.1
AUGMENT = CropFlip(padding=1, flip=False)
METHODS = ("clp", "otbr", "ft-sam", "shapley", "tsbd")
"""Rows of the DEFENSES table to try; the other baselines have no settings chosen for these data."""

OPTIONS: dict[str, dict[str, Any]] = {
    "otbr": {"learning_rate": 0.03, "factor": 1.6, "weight": 1.0, "statistics": "synthesised"},
    "ft-sam": {"epochs": 60, "batch_size": 64, "learning_rate": 0.075, "augment": AUGMENT},
    "tsbd": {
        "unlearn_rate": 1e-3,
        "epochs": 30,
        "batch_size": 64,
        "learning_rate": 0.1,
        "schedule": "cosine",
        "augment": AUGMENT,
    },
}
"""Hyper-parameters other than a method's defaults, which are made for thousands of clean images and wide networks.

They were chosen on seeds 10-14; `experiments/demo_seeds.py` measures them on others.
"""

Stage = Callable[[str], AbstractContextManager[Progress | None]]
"""`title -> context`, in which the stage of that title is under way."""


def run(
    folder: pathlib.Path,
    *,
    seed: int = 0,
    attack: Attack | None = None,
    stage: Stage = lambda _: nullcontext(),
    command: str = "",
) -> Report:
    """Run the demo; about four minutes on two cores.

    Args:
        folder: checkpoints are written here: `backdoored`, `clean` and one `repaired-METHOD` for each of `METHODS`.
        seed: of data split, initialisation, poisoning and training.
        attack: what the first network is poisoned with, BadNets by default.
        stage: called with a line on what is going on.
        command: how it was called, for the report.

    Returns:
        A finding for both networks and one repair per method.

    Raises:
        JaxguardError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digits = data.load("digits", seed=seed, clean=CLEAN)
    attack = attack or badnets(target=0)
    model = models.build(ARCHITECTURE, num_classes=digits.num_classes, input_shape=tuple(digits.test.images.shape[1:]))
    key_poison, key_backdoored, key_clean, key_repair = jax.random.split(jax.random.key(seed), 4)
    poisoned, _ = poison(attack, digits.train, POISON_RATE, key_poison)
    paths = {}
    for name, batch, key in (("backdoored", poisoned, key_backdoored), ("clean", digits.train, key_clean)):
        with stage(f"training a {name} network") as progress:
            paths[name] = folder / f"{name}.safetensors"
            _save(model, train(model, batch, key, progress), paths[name])
    listener = scanning.Listener(watch=lambda _: _shown(stage("scanning both")), steps=stage)
    report = scanning.scan(paths.values(), test=digits.test, attack=attack, listener=listener)
    made = []
    for method in METHODS:
        with stage(f"repairing with {method}") as progress:
            repaired, of_method = repairs.repair(
                suspects.load(paths["backdoored"]),
                method,
                key_repair,
                clean=digits.clean,
                test=digits.test,
                attack=attack,
                progress=progress,
                options=OPTIONS.get(method),
            )
            suspects.save(repaired, folder / f"repaired-{method}.safetensors", overwrite=True)
            made.append(of_method)
    return dataclasses.replace(
        report,
        title="Demo: a backdoored and a clean network on handwritten digits",
        command=command,
        repairs=tuple(made),
        environment=environment(seed=seed, clean_images=len(digits.clean.labels)),
    )


@contextmanager
def _shown(stage: AbstractContextManager[Progress | None]) -> Iterator[Watch]:
    """A stage whose progress is not counted."""
    with stage:
        yield lambda _: None


def train(model: Model, batch: Batch, key: jax.Array, progress: Progress | None) -> Variables:
    """Train a network as the demo does.

    Args:
        model: its architecture.
        batch: training images, poisoned or not.
        key: of initialisation and batches.
        progress: called as the work proceeds.

    Returns:
        Its variables.
    """
    key_init, key_fit = jax.random.split(key)
    result = training.fit(
        model.train_fn,
        model.init(key_init),
        batch,
        key_fit,
        steps=STEPS,
        batch_size=BATCH_SIZE,
        augment=AUGMENT,
        progress=progress,
    )
    return result.variables


def _save(model: Model, variables: Variables, path: pathlib.Path) -> None:
    leaves = checkpoints.flatten(variables)
    checkpoints.save(path, leaves, metadata=suspects.description(model), overwrite=True)
