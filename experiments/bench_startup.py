"""How long until `jaxguard scan FILE --quick` says what it found, start-up included?

    python experiments/bench_startup.py
    python experiments/bench_startup.py --against OTHER_CHECKOUT

A process of its own each time, as a user starts it, on a checkpoint with random weights of a known architecture. The
first one of each network compiles; the others find the compiled program in the cache, as every later scan of that
architecture does. Beside it `jaxguard --help` and `import jaxguard`. CPU seconds are what the process and its threads
took; they vary less than the wall clock where other work runs. With `--against` the same commands of another checkout
take turns with these, and ratios are of neighbours.

Hardware: whatever it runs on, named in the result. Time: 2 minutes on 2 CPU cores.
Expected: under 2 s of CPU time was the aim; 2.5 to 4 s on a busy machine. Half is imports: jax 0.5 s, flax 0.2 s.
Result: experiments/results/startup.json.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import machine
import numpy as np
import safetensors.numpy

import jaxguard
from jaxguard import checkpoints, models

NETWORKS = ("resnet20", "preactresnet18")
ROUNDS = 7
HERE = pathlib.Path(__file__).resolve().parents[1]
RESULT = pathlib.Path(__file__).parent / "results" / "startup.json"


def checkpoint(spec: str, folder: pathlib.Path) -> pathlib.Path:
    model, path = models.build(spec, num_classes=10, input_shape=(32, 32, 3)), folder / f"{spec}.safetensors"
    leaves = checkpoints.flatten(model.init(jax.random.key(0)))
    safetensors.numpy.save_file({name: np.asarray(leaf) for name, leaf in leaves.items()}, path)
    return path


def seconds(arguments: list[str], checkout: pathlib.Path, cache: pathlib.Path) -> tuple[float, float]:
    """CPU and wall seconds of a command."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(cache)}
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=cache
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    message = process.stderr.read().decode()
    if process.returncode not in (0, 1, 3):
        raise RuntimeError(message)
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - begun


def summary(times: list[tuple[float, float]]) -> dict[str, float]:
    cpu, wall = zip(*times, strict=True)
    values = {"cpu_s": statistics.median(cpu), "least_cpu_s": min(cpu), "wall_s": statistics.median(wall)}
    return {name: round(value, 3) for name, value in values.items()}


def measure(checkouts: dict[str, pathlib.Path], folder: pathlib.Path) -> dict[str, Any]:
    commands = {
        f"scan --quick, {spec}": ["-m", "jaxguard", "scan", str(checkpoint(spec, folder)), "--quick"]
        for spec in NETWORKS
    }
    commands |= {
        "--help": ["-m", "jaxguard", "--help"],
        "import jaxguard": ["-c", "import jaxguard"],
        "python": ["-c", ""],
    }
    rows: dict[str, Any] = {}
    for name, arguments in commands.items():
        caches = {which: folder / which for which in checkouts}
        for cache in caches.values():
            cache.mkdir(exist_ok=True)
        first = {which: seconds(arguments, path, caches[which]) for which, path in checkouts.items()}
        times: dict[str, list[tuple[float, float]]] = {which: [] for which in checkouts}
        for _ in range(ROUNDS):
            for which, path in checkouts.items():
                times[which].append(seconds(arguments, path, caches[which]))
        rows[name] = {which: {"first_cpu_s": round(first[which][0], 3), **summary(times[which])} for which in checkouts}
        if len(checkouts) > 1:
            ratios = [mine[0] / other[0] for mine, other in zip(times["jaxguard"], times["before"], strict=True)]
            rows[name]["cpu_ratio"] = round(statistics.median(ratios), 3)
        print(name, json.dumps(rows[name]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--against", type=pathlib.Path, help="another checkout of jaxguard, to compare with")
    against = parser.parse_args().against
    checkouts = {"jaxguard": HERE} | ({"before": against.resolve()} if against else {})
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(checkouts, pathlib.Path(folder))
    environment = machine.environment(rounds=ROUNDS, version=jaxguard.__version__)
    RESULT.write_text(json.dumps({"environment": environment, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
