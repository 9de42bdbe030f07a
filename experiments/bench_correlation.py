"""How fast are many suspects compared with one owner by sample correlation, outputs given?

    python experiments/bench_correlation.py

SAC's number of 1,000 suspects for one owner: 800 probes, ten classes, normalisation of the outputs included. The
reference computes, per suspect, both matrices whole, and their mean absolute difference; given as it does, with the
owner's matrix computed again every time, and with that computed once. In NumPy, and in torch where it is installed,
with all its threads and with one. A loop over suspects costs the same for each of them, so that the slow ones are timed
on fewer; `suspects_timed` says how many. `jaxguard` is `unit_rows` and `distances`, with its default number of workers
and with one. Suspects are the owner's outputs with noise of random strength. Ways take turns within every round.

Hardware: whatever it runs on, named in the result; least times of all rounds are given beside the medians, because
other work on the machine can only add to them. Time: 1 minute on 2 CPU cores.
Expected: 4 times as fast as the fastest of the others at least.
Result: experiments/results/correlation.json.
"""

import argparse
import importlib.util
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import machine
import numpy as np

from jaxguard import execution
from jaxguard.fingerprints import sac
from jaxguard.kernels import correlation

SEED, PROBES, CLASSES = 0, 800, 10
RESULT = pathlib.Path(__file__).parent / "results" / "correlation.json"


class Way(NamedTuple):
    """One implementation: `number of suspects -> distances`, and on how many of them it is timed."""

    call: Callable[[int], np.ndarray]
    share: float


def outputs(suspects: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(SEED)
    owner = rng.normal(size=(PROBES, CLASSES)).astype(np.float32)
    strength = rng.uniform(0.1, 3, size=(suspects, 1, 1)).astype(np.float32)
    return owner, owner + strength * rng.normal(size=(suspects, PROBES, CLASSES)).astype(np.float32)


def numpy_way(owner: np.ndarray, suspects: np.ndarray, *, again: bool) -> Callable[[int], np.ndarray]:
    def matrix(model: np.ndarray) -> np.ndarray:
        rows = model / np.maximum(np.linalg.norm(model, axis=1, keepdims=True), 1e-12)
        return (1 - rows @ rows.T) / 2

    def call(count: int) -> np.ndarray:
        found, expected = np.empty(count), matrix(owner)
        for number in range(count):
            expected = matrix(owner) if again else expected
            found[number] = np.mean(np.abs(matrix(suspects[number]) - expected))
        return found

    return call


def torch_way(owner: np.ndarray, suspects: np.ndarray, *, again: bool, threads: int) -> Callable[[int], np.ndarray]:
    import torch

    mine, theirs = torch.from_numpy(owner), torch.from_numpy(suspects)

    def matrix(model: torch.Tensor) -> torch.Tensor:
        rows = torch.nn.functional.normalize(model)
        return (1 - rows @ rows.T) / 2

    def call(count: int) -> np.ndarray:
        torch.set_num_threads(threads)
        found, expected = np.empty(count), matrix(mine)
        for number in range(count):
            expected = matrix(mine) if again else expected
            found[number] = torch.mean(torch.abs(matrix(theirs[number]) - expected)).item()
        return found

    return call


def jaxguard_way(owner: np.ndarray, suspects: np.ndarray, *, workers: int) -> Callable[[int], np.ndarray]:
    mine, theirs = jnp.asarray(owner), jnp.asarray(suspects)

    def call(count: int) -> np.ndarray:
        rows = correlation.unit_rows(theirs if count == len(theirs) else theirs[:count])
        found = sac.distances(correlation.unit_rows(mine), rows, halved=True, workers=workers)
        return np.asarray(jax.block_until_ready(found))

    return call


def ways(owner: np.ndarray, suspects: np.ndarray) -> dict[str, Way]:
    with_torch = importlib.util.find_spec("torch") is not None
    found = {
        "NumPy loop, owner's matrix every time": Way(numpy_way(owner, suspects, again=True), 0.05),
        "NumPy loop, owner's matrix once": Way(numpy_way(owner, suspects, again=False), 0.1),
    }
    if with_torch:
        for threads in sorted({1, execution.workers()}):
            for name, again, share in (("every time", True, 0.1), ("once", False, 0.3)):
                call = torch_way(owner, suspects, again=again, threads=threads)
                found[f"torch loop, owner's matrix {name}, threads: {threads}"] = Way(call, share)
    for workers in sorted({1, execution.workers()}):
        found[f"jaxguard, workers: {workers}"] = Way(jaxguard_way(owner, suspects, workers=workers), 1.0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--suspects", type=int, default=1000)
    args = parser.parse_args()
    owner, suspects = outputs(args.suspects)
    compared = ways(owner, suspects)
    counts = {name: max(1, round(way.share * args.suspects)) for name, way in compared.items()}
    found = {name: way.call(counts[name]) for name, way in compared.items()}  # and compiles
    best = next(reversed(found.values()))
    spent: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(args.rounds):
        for name, way in compared.items():
            start = time.perf_counter()
            way.call(counts[name])
            spent[name].append(1e3 * (time.perf_counter() - start) / counts[name])
    rows = {}
    for name, times in spent.items():
        apart = np.abs(found[name] / best[: counts[name]] - 1).max()
        rows[name] = {
            "median_ms_per_suspect": round(statistics.median(times), 4),
            "least_ms_per_suspect": round(min(times), 4),
            "suspects_timed": counts[name],
            "largest_relative_difference": float(f"{apart:.2g}"),
        }
        print(f"{name:50} {rows[name]}")
    ours = min((row for name, row in rows.items() if "jaxguard" in name), key=lambda row: row["median_ms_per_suspect"])
    times_as_fast = {
        name: {
            which: round(row[f"{which}_ms_per_suspect"] / ours[f"{which}_ms_per_suspect"], 2)
            for which in ("median", "least")
        }
        for name, row in rows.items()
    }
    print({name: row["median"] for name, row in times_as_fast.items()})
    packages = ("torch",) if importlib.util.find_spec("torch") is not None else ()
    environment = machine.environment(*packages, seed=SEED, rounds=args.rounds, probes=PROBES, classes=CLASSES)
    result = {"environment": environment, "results": rows, "jaxguard_times_as_fast": times_as_fast}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
