"""What does it cost to invert all ten classes in one program, beside one class at a time and beside a torch loop?

    python experiments/bench_inversion.py

WideResNet-16-1 with random weights, ten classes, 10 and 100 random images of 32x32x3, full batches. Ways:

    default          `invert` as it comes: on CPU a few classes in a step, and a worker per core
    all at once      one worker, ten classes in one step
    one at a time    one worker, one class in a step, the next when it is done: a tenth of the batch
    torch            one class after the other in eager torch, as BackdoorBench does: weights frozen, mask and pattern
                     by tanh, Adam, loss and rate read back in every step; skipped where torch is not installed

Two measurements, ways taking turns in one run. *Steps*: so many steps of every class and no early stop, which is the
same work for every way; median milliseconds per step and class. *Whole*: until every class has stopped, at 200 steps
at the latest, `invert` alone, at 10 images: there, all at once pays for classes that have stopped already.

Hardware: whatever it runs on, named in the result. Time: 8 minutes on two idle CPU cores.
Expected: see the README, "Speed". On CPU a class at a time costs no more than all at once, since there the work is
proportional to the images; an accelerator was not measured.
Result: experiments/results/inversion.json.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import machine
import numpy as np

from jaxguard import inversion, models
from jaxguard.models import Model
from jaxguard.types import Variables

torch: Any = importlib.import_module("torch") if importlib.util.find_spec("torch") else None

SEED = 0
CLASSES = 10
NETWORK = "wideresnet-16-1"
STEPS = {10: 24, 100: 6}
"""Images -> steps of one timing."""

MOST = 200
"""Steps of a whole inversion."""

ROUNDS = 5
RESULT = pathlib.Path(__file__).parent / "results" / "inversion.json"


def random_network() -> tuple[Model, Variables]:
    model = models.build(NETWORK, num_classes=CLASSES, input_shape=(32, 32, 3))
    return model, jax.tree.map(jnp.asarray, model.init(jax.random.key(SEED)))


def few_images(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(SEED)
    return rng.uniform(size=(number, 32, 32, 3)).astype(np.float32), np.arange(number) % CLASSES


def inverting(model: Model, variables: Variables, number: int, **options: Any) -> Callable[[], inversion.Inversion]:
    images, labels = few_images(number)
    options = {"batch_size": number, **options}
    return lambda: inversion.invert(model.apply_fn, variables, images, labels, jax.random.key(SEED), **options)


def torch_loop(variables: Variables, number: int, steps: int) -> Callable[[], None]:
    network = torch_network(variables)
    images, labels = few_images(number)
    images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(labels)

    def invert_one(target: int) -> None:
        others = labels != target
        wanted = torch.full((len(labels),), target)
        theta = [torch.randn(1, 32, 32, requires_grad=True), torch.randn(3, 32, 32, requires_grad=True)]
        adam = torch.optim.Adam(theta, lr=0.1, betas=(0.5, 0.9))
        curve = []
        for _ in range(steps):
            mask, pattern = (torch.tanh(part) / (2 + 1e-7) + 0.5 for part in theta)
            logits = network((1 - mask) * images + mask * pattern)
            entropy = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
            loss = entropy[others].mean() + 1e-3 * mask.sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
            curve.append((loss.item(), (logits.argmax(1) == wanted)[others].float().mean().item(), mask.sum().item()))

    def run() -> None:
        for target in range(CLASSES):
            invert_one(target)

    return run


class TorchLayers:
    """The Flax variables, applied by torch's functions."""

    def __init__(self, variables: Variables):
        self.leaves = {}
        for path, leaf in jax.tree.leaves_with_path(variables):
            _, name = jax.tree_util.keystr(path, simple=True, separator="/").split("/", 1)
            array = np.asarray(leaf)
            self.leaves[name] = torch.from_numpy(
                array.transpose(3, 2, 0, 1).copy() if array.ndim == 4 else array.copy()
            )

    def conv(self, name: str, x: Any, stride: int = 1) -> Any:
        """Square convolution, padded by half its size."""
        kernel = self.leaves[f"{name}/kernel"]
        return torch.nn.functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm_relu(self, name: str, x: Any) -> Any:
        """BatchNorm in evaluation mode and ReLU."""
        parts = (self.leaves[f"{name}/{part}"] for part in ("mean", "var", "scale", "bias"))
        return torch.relu(torch.nn.functional.batch_norm(x, *parts))

    def dense(self, name: str, x: Any) -> Any:
        """Product and bias."""
        return x @ self.leaves[f"{name}/kernel"] + self.leaves[f"{name}/bias"]


def torch_network(variables: Variables) -> Callable[[Any], Any]:
    layers = TorchLayers(variables)

    def network(x: Any) -> Any:
        x = layers.conv("conv1", x)
        for stage in (1, 2, 3):
            for i in (0, 1):
                block, stride = f"block{stage}_layer_{i}", 2 if stage > 1 and i == 0 else 1
                y = layers.norm_relu(f"{block}/bn1", x)
                out = layers.norm_relu(f"{block}/bn2", layers.conv(f"{block}/conv1", y, stride))
                out = layers.conv(f"{block}/conv2", out)
                x = out + (layers.conv(f"{block}/convShortcut", y, stride) if stride > 1 else x)
        return layers.dense("fc", layers.norm_relu("bn1", x).mean((2, 3)))

    return network


def check(model: Model, variables: Variables) -> float:
    """Largest difference of the torch network's logits from ours, in units of their size."""
    images, _ = few_images(10)
    network = torch_network(variables)
    theirs = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    ours = np.asarray(model.apply_fn(variables, jnp.asarray(images)))
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def timed(ways: dict[str, Callable[[], Any]], unit: float, rounds: int) -> dict[str, dict[str, float]]:
    """Each way's times in `unit`s of a second, after a call that compiles; ways take turns."""
    for call in ways.values():
        call()
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            wall, cpu = time.perf_counter(), cpu_seconds()
            call()
            rows[name].append(((time.perf_counter() - wall) / unit, (cpu_seconds() - cpu) / unit))
    return {
        name: {
            "median": round(statistics.median(wall for wall, _ in pairs), 3),
            "least": round(min(wall for wall, _ in pairs), 3),
            "median_cpu": round(statistics.median(cpu for _, cpu in pairs), 3),
        }
        for name, pairs in rows.items()
    }


def measure(rounds: int) -> dict[str, Any]:
    model, variables = random_network()
    found: dict[str, Any] = {}
    at_once: dict[str, dict[str, int]] = {
        "default": {},
        "all at once": {"classes_at_once": CLASSES, "workers": 1},
        "one at a time": {"classes_at_once": 1, "workers": 1},
    }
    for number, steps in STEPS.items():
        ways: dict[str, Callable[[], Any]] = {
            name: inverting(model, variables, number, steps=steps, **options) for name, options in at_once.items()
        }
        if torch is not None:
            found["torch_logits_differ_by"] = check(model, variables)
            ways["torch"] = torch_loop(variables, number, steps)
        title = f"milliseconds per step and class, {number} images"
        found[title] = timed(ways, 1e-3 * steps * CLASSES, rounds)
        print(title, json.dumps(found[title], indent=1), flush=True)
    ways = {name: inverting(model, variables, 10, steps=MOST, **options) for name, options in at_once.items()}
    found["steps until they stopped"] = inverting(model, variables, 10, steps=MOST)().steps.tolist()
    found["seconds until all have stopped, 10 images"] = timed(ways, 1.0, max(1, rounds // 2))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=pathlib.Path, default=RESULT)
    arguments = parser.parse_args()
    results = measure(arguments.rounds)
    print(json.dumps(results, indent=1))
    packages = ("optax",) if torch is None else ("optax", "torch")
    threads = {} if torch is None else {"torch_threads": torch.get_num_threads()}
    environment = machine.environment(
        *packages, network=NETWORK, seed=SEED, rounds=arguments.rounds, classes=CLASSES, **threads
    )
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps({"environment": environment, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
