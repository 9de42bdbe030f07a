"""How fast are coalitions evaluated, channel by channel, against one full forward pass for each?

    python experiments/bench_shapley.py

One whole permutation: all channels of a network leave one by one in a random order, and the logits of 100 images are
wanted after each. jaxguard computes what differs from the coalition before (`jaxguard.graph.Coalitions`), on as many
host threads as the estimator has (`jaxguard.execution.workers`; `one_worker` is one of them alone); the
references compute the masked network from the start: a compiled JAX function of the gates, one at a time as a loop
does and from as many threads (`jax_loop_threads`), and torch with forward hooks where torch is importable. ResNet-20
goes through whole permutations. Of PreActResNet-18 every thirtieth chunk is evaluated, evenly spread over the
permutation, since its loop would take an hour; figures are per coalition.

Hardware: any; the figures in the README are of two CPU cores. Time: 5 minutes.
Expected: at least 4 times as fast as the JAX loop on CPU.
Result: experiments/results/shapley.json.
"""

import argparse
import importlib.util
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import machine
import numpy as np

from jaxguard import execution, models
from jaxguard.graph import Coalitions, channel_graph

OUT = pathlib.Path(__file__).parent / "results" / "shapley.json"
NETWORKS = {"resnet20": 1, "preactresnet18": 30}
"""Architecture -> every how many-th chunk of a permutation is evaluated."""
IMAGES = 100
ROUNDS = 3
REFERENCE = 10
"""Full forward passes per round."""


def random_variables(model: models.Model) -> Any:
    """Weights at which no activation dies, so that no work is trivially small."""
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        scale = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if len(leaf.shape) > 1 else 1.0
        values = rng.normal(size=leaf.shape) * scale if len(leaf.shape) > 1 else rng.uniform(0.5, 1.5, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map(draw, model.shapes())


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_threads(run: Callable[[Any], Any], inputs: Iterable[Any], workers: int) -> None:
    list(execution.in_threads(run, inputs, threads=workers))


def bench(arch: str, stride: int, chunk: int, fold: int | None) -> dict[str, Any]:
    model = models.build(arch, num_classes=10, input_shape=(32, 32, 3))
    variables = random_variables(model)
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(IMAGES, 32, 32, 3)), jnp.float32)
    game = Coalitions(channel_graph(model.apply_fn, variables, images), fold=fold)
    start = jax.jit(game.start)(variables, images)
    logits = jax.jit(game.logits)
    rank = np.argsort(np.random.default_rng(2).permutation(game.players))
    blocks = range(0, game.players // chunk, stride)

    def gates(block: int) -> jax.Array:
        return jnp.asarray(rank[None] >= (block * chunk + 1 + np.arange(chunk))[:, None], jnp.float32)

    @jax.jit
    def masked(variables: Any, images: jax.Array, row: jax.Array) -> jax.Array:
        return game.graph.run(variables, images, dict(zip(names, game.split(row), strict=True)))

    names = [producer.name for producer in game.producers]
    loops: dict[str, Callable[[jax.Array], Any]] = {
        "jax_loop": lambda row: masked(variables, images, row).block_until_ready()
    }
    if arch == "resnet20" and importlib.util.find_spec("torch"):
        import bench_shapley_torch

        loops["torch_hooks"] = bench_shapley_torch.masked_resnet20(IMAGES, [p.channels for p in game.producers])
    first = gates(0)
    compile_seconds = seconds(lambda: logits(variables, start, first).block_until_ready())
    expected = np.stack([masked(variables, images, row) for row in first])
    error = float(np.abs(np.asarray(logits(variables, start, first)) - expected).max() / np.abs(expected).max())
    workers = execution.workers()

    def evaluate(block: int) -> None:
        logits(variables, start, gates(block)).block_until_ready()

    runs: dict[str, tuple[Callable[[], None], int]] = {
        "jaxguard": (lambda: in_threads(evaluate, blocks, workers), len(blocks) * chunk),
        "one_worker": (lambda: in_threads(evaluate, blocks, 1), len(blocks) * chunk),
        "jax_loop_threads": (lambda: in_threads(loops["jax_loop"], first[:REFERENCE], workers), REFERENCE),
    } | {name: (lambda run=run: [run(row) for row in first[:REFERENCE]], REFERENCE) for name, run in loops.items()}
    for run in loops.values():
        run(first[0])
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, (run, coalitions) in runs.items():
            times[name].append(seconds(run) / coalitions)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "channels": game.players,
        "images": IMAGES,
        "chunk": chunk,
        "workers": workers,
        "folds": list(game.folds(chunk, start.images)),
        "coalitions_timed": len(blocks) * chunk,
        "milliseconds_per_coalition": {name: round(1e3 * value, 2) for name, value in medians.items()},
        "all_rounds": {name: [round(1e3 * value, 2) for value in values] for name, values in times.items()},
        "times_as_fast_as": {
            name: round(medians[name] / medians["jaxguard"], 2) for name in runs if name != "jaxguard"
        },
        "largest_relative_error": error,
        "compile_seconds": round(compile_seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--chunk", type=int, default=32, help="coalitions evaluated together")
    parser.add_argument("--fold", type=int, help="versions in one batch; the backend's default otherwise")
    arguments = parser.parse_args()
    results = {"environment": machine.environment(), "networks": {}}
    for arch in arguments.networks:
        results["networks"][arch] = bench(arch, NETWORKS[arch], arguments.chunk, arguments.fold)
        print(arch, json.dumps(results["networks"][arch], indent=1), flush=True)
        OUT.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
