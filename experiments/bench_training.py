"""Which drives training faster: steps called from Python, or a chunk of steps as one device program?

    python experiments/bench_training.py

Answers for the backend at hand, with the `cnn` demo network and ResNet-20 on 32x32x3 images, SGD with momentum; the
two modes take turns in one run, medians of three. `jaxguard.training.descend` decides by this figure.

Hardware: whatever it runs on, named in the result. Time: under 3 minutes on 2 CPU cores.
Expected on CPU: scanned steps 25-35 times slower. On 2 busy cores (AMD EPYC, jax 0.10.2) `cnn` took 0.34 s driven and
11.4 s scanned per step of 128, ResNet-20 0.27 s and 7.1 s per step of 32. Not measured on an accelerator yet.
Result: experiments/results/training.json.
"""

import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import machine
import numpy as np

from jaxguard import models, training
from jaxguard.types import Batch

SEED = 0
REPEATS = 3
SECONDS = 4.0  # per repeat, where one step takes less
CASES = (("cnn", 128), ("resnet20", 32))
RESULT = pathlib.Path(__file__).parent / "results" / "training.json"


def step_and_carry(spec: str, batch_size: int):
    model = models.build(spec, num_classes=10, input_shape=(32, 32, 3))
    rng = np.random.default_rng(SEED)
    images = rng.uniform(size=(batch_size, 32, 32, 3)).astype(np.float32)
    data = Batch(images, rng.integers(0, 10, batch_size).astype(np.int32))
    step = training.Step(training.CrossEntropyGradient(model.train_fn), training.sgd(0.01), batch_size)
    return step.on(data, jax.random.key(SEED)), step.init(model.init(jax.random.key(SEED)), data)


def seconds_of(step_fn, carry, num_steps: int, scan: bool) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(training.descend(step_fn, carry, num_steps, scan=scan))
    return time.perf_counter() - begun


def measure(spec: str, batch_size: int) -> list[dict]:
    step_fn, carry = step_and_carry(spec, batch_size)
    steps, compile_seconds = {}, {}
    for scan in (False, True):
        compile_seconds[scan] = seconds_of(step_fn, carry, 1, scan)
        steps[scan] = int(np.clip(SECONDS / seconds_of(step_fn, carry, 1, scan), 1, 1000))
    times = {False: [], True: []}
    for _ in range(REPEATS):
        for scan, num_steps in steps.items():
            times[scan].append(seconds_of(step_fn, carry, num_steps, scan) / num_steps)
    return [
        {
            "network": spec,
            "mode": "scanned" if scan else "driven from Python",
            "batch_size": batch_size,
            "steps_per_repeat": steps[scan],
            "milliseconds_per_step": round(1e3 * statistics.median(times[scan]), 2),
            "images_per_second": round(batch_size / statistics.median(times[scan]), 1),
            "first_step_seconds": round(compile_seconds[scan], 2),
        }
        for scan in times
    ]


def main() -> None:
    jnp.zeros(()).block_until_ready()
    rows = [row for case in CASES for row in measure(*case)]
    for row in rows:
        print(f"{row['network']:9} {row['mode']:19} {row['images_per_second']:9.1f} images/s")
    environment = machine.environment("optax", seed=SEED, repeats=REPEATS)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"environment": environment, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
