"""Is the trigger of a network that others backdoored recovered, and does its class stand out? From how many images?

    python ../shared/data/unpack.py cifar10 c10.npz
    python experiments/inversion_third_party.py --data npz:c10.npz

Neural Cleanse with jaxguard's defaults on NAD's and ABL's WideResNet-16-1 (BadNets, 3x3 grid, targets 5 and 0), on
NAD's fine-tuned teacher, whose backdoor no longer works, and on akamaster's clean ResNet-20: from 10, 50 and 100 clean
CIFAR-10 training images, and from 50 images synthesised from the network alone. A patch is judged on 2,000 test images
that are not of its class; nothing is chosen on these networks or images. Each row is stored when it is done, and
--checkpoints and --sources run a part.

Hardware: any. Time: 30 s for 10 images, 2 minutes for 50, on two idle CPU cores.
Expected: NAD's target ranks first and is flagged from ten images on; from 50 its patch turns 93.5 % of new images.
Result: experiments/results/inversion_third_party.json and .png.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import machine
import matplotlib.figure
import numpy as np
from third_party import CLEAN, RESULTS, SEED, Case, open_case, stored

from jaxguard import data, evaluation, inversion
from jaxguard.attacks import patch
from jaxguard.types import Batch, Dataset

CHECKPOINTS = (
    "c10_bd_wrn16_nad_student",
    "c10_bd_wrn16_abl_grid",
    "c10_clean_resnet20_aka",
    "c10_ft_wrn16_nad_teacher",
)
SOURCES = ("10 clean", "50 clean", "100 clean", "50 synthesised")
HELD_OUT = 2000
PATCHES = pathlib.Path(tempfile.gettempdir()) / "inversion_third_party_patches.npz"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Inverted(NamedTuple):
    """One inversion.

    Attributes:
        row: for JSON.
        patches: masks and patterns of all classes, for the picture.
    """

    row: dict[str, Any]
    patches: tuple[np.ndarray, np.ndarray]


def few(clean: Batch, per_class: int) -> Batch:
    """The first images of each class, class by class."""
    labels = np.asarray(clean.labels)
    chosen = np.concatenate([np.flatnonzero(labels == y)[:per_class] for y in range(len(CLASSES))])
    return Batch(np.asarray(clean.images)[chosen], labels[chosen])


def images_of(case: Case, source: str, dataset: Dataset, key: jax.Array) -> tuple[Batch, dict[str, Any]]:
    number, kind = source.split()
    per_class = int(number) // len(CLASSES)
    if kind == "clean":
        return few(dataset.clean, per_class), {}
    suspect = case.suspect
    network = suspect.require_network()
    labels = np.tile(np.arange(len(CLASSES)), per_class)
    made = inversion.synthesise(network.graph, network.variables, key, labels=labels)
    distances = [round(float(made.distances[k]), 5) for k in (0, -1)]
    return Batch(made.images, made.labels), {
        "synthesis": {"success": made.success, "batch_norms": made.norms, "distance_before_and_after": distances}
    }


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def run(case: Case, source: str, dataset: Dataset) -> Inverted:
    key_images, key_patches = jax.random.split(jax.random.key(SEED))
    wall, cpu = time.perf_counter(), cpu_seconds()
    batch, more = images_of(case, source, dataset, key_images)
    suspect = case.suspect
    network = suspect.require_network()
    found = inversion.invert(network.apply_fn, network.variables, *batch, key_patches)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    trigger = inversion.recovered_trigger(found, source=source)
    order = np.argsort(np.where(found.reached, found.norms, found.masks[0].size), kind="stable")
    flips = [flip_rate(case, found, y, dataset.test) for y in range(len(CLASSES))]
    row: dict[str, Any] = {
        "flagged": trigger.target,
        "smallest": int(order[0]),
        "largest_index": round(float(trigger.anomaly.max()), 3),
        "seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        **more,
        "norms": rounded(found.norms),
        "index": rounded(trigger.anomaly),
        "success": rounded(found.success),
        "flipped_held_out": rounded(flips),
        "reached": found.reached.tolist(),
        "steps": found.steps.tolist(),
    }
    if case.attack is not None and case.attack.target is not None:
        target = case.attack.target
        row = {
            "target": target,
            "rank": int(np.flatnonzero(order == target)[0]) + 1,
            "index_of_target": round(float(trigger.anomaly[target]), 3),
            "target_flipped_held_out": round(flips[target], 4),
            "mask_on_the_true_trigger": round(overlap(case, found.masks[target]), 4),
            **row,
        }
    return Inverted(row, (found.masks, found.patterns))


def flip_rate(case: Case, found: inversion.Inversion, target: int, test: Batch) -> float:
    others = np.flatnonzero(np.asarray(test.labels) != target)[:HELD_OUT]
    stamped = patch(found.masks[target], found.patterns[target], target=target).stamp(jnp.asarray(test.images[others]))
    network = case.suspect.require_network()
    return float((evaluation.predictions(network, stamped) == target).mean())


def overlap(case: Case, mask: np.ndarray) -> float:
    """Share of a mask that lies where the true trigger changes a grey image."""
    assert case.attack is not None
    grey = np.full((1, *mask.shape[:2], 3), 0.4, np.float32)
    changed = np.abs(np.asarray(case.attack.stamp(jnp.asarray(grey)))[0] - grey[0]).max(-1) > 1e-3
    return float(mask[changed].sum() / mask.sum())


def rounded(values: Any) -> list[float | None]:
    return [round(float(value), 4) if np.isfinite(value) else None for value in values]


def draw(pictures: dict[str, tuple[np.ndarray, np.ndarray]], results: dict[str, Any], path: pathlib.Path) -> None:
    """A row per inversion and a column per class: the patch on mid-grey, framed where its class is flagged."""
    measured = results["checkpoints"]
    names = [f"{name} {source}" for name in CHECKPOINTS for source in SOURCES if source in measured.get(name, ())]
    names = [name for name in names if name in pictures]
    figure = matplotlib.figure.Figure(figsize=(11, 1.15 * len(names) + 0.4), dpi=110, layout="constrained")
    grid = figure.subplots(len(names), len(CLASSES), squeeze=False)
    for cells, name in zip(grid, names, strict=True):
        checkpoint, source = name.split(" ", 1)
        row = measured[checkpoint][source]
        masks, patterns = pictures[name]
        for y, axes in enumerate(cells):
            axes.imshow(0.5 * (1 - masks[y]) + patterns[y] * masks[y], vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{row['norms'][y]:.1f} px, {row['index'][y]:.1f}", fontsize=6, pad=2)
            is_target, is_flagged = row.get("target") == y, row["flagged"] == y
            color, width = ("C3" if is_flagged else "C0", 2.5) if is_target or is_flagged else ("0.8", 0.5)
            for spine in axes.spines.values():
                spine.set(color=color, linewidth=width)
        cells[0].set_ylabel(f"{checkpoint.removeprefix('c10_')}\n{source}", fontsize=6)
    for y, axes in enumerate(grid[-1]):
        axes.set_xlabel(CLASSES[y], fontsize=7)
    figure.suptitle("Norm and anomaly index; red: flagged; blue: true target, not flagged", fontsize=8)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="npz:PATH of a CIFAR-10 pack")
    parser.add_argument("--checkpoints", nargs="+", choices=CHECKPOINTS, default=list(CHECKPOINTS))
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "inversion_third_party.json")
    parser.add_argument("--patches", type=pathlib.Path, default=PATCHES, help="for drawing")
    arguments = parser.parse_args()

    dataset = data.load(arguments.data, seed=SEED, clean=CLEAN)
    pictures = dict(np.load(arguments.patches)) if arguments.patches.exists() else {}
    for source in arguments.sources:
        for name in arguments.checkpoints:
            row, (masks, patterns) = run(open_case(name), source, dataset)
            print(name, source, row, flush=True)
            results = stored(arguments.out) or {"checkpoints": {}}
            results["environment"] = machine.environment("optax", seed=SEED, held_out=HELD_OUT)
            results["checkpoints"].setdefault(name, {})[source] = row
            arguments.out.parent.mkdir(exist_ok=True)
            arguments.out.write_text(json.dumps(ordered(results), indent=1, allow_nan=False) + "\n")
            pictures[f"{name} {source}"] = np.stack([np.broadcast_to(masks, patterns.shape), patterns])
            np.savez_compressed(arguments.patches, **pictures)
    shown = {name: (stack[0][..., :1], stack[1]) for name, stack in pictures.items()}
    draw(shown, stored(arguments.out), arguments.out.with_suffix(".png"))


def ordered(results: dict[str, Any]) -> dict[str, Any]:
    found = results["checkpoints"]
    rows = {
        name: {source: found[name][source] for source in SOURCES if source in found[name]}
        for name in CHECKPOINTS
        if name in found
    }
    return {"environment": results["environment"], "checkpoints": rows}


if __name__ == "__main__":
    main()
