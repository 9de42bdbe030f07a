"""Does a network in torch's layout cost more than one in JAX's, and did it before?

    python experiments/bench_layout.py

One network of five convolutions, opened as a user's own (`load(path, apply_fn=...)`) in two layouts: `native`, NHWC
images and HWIO kernels, and `torch`, NCHW images and OIHW kernels, from the same numbers. `before` puts back what
jaxguard did until then: batches in a `lax.map` inside one program, and coalitions in loops with convolutions as the
model states them. XLA for CPU gives convolutions of other layouts to its fast kernels only outside of loops.

    evaluate      2000 images of 16x16x3
    repair        CLP, with those images before and after
    shapley       256 coalitions of one removal order, 20 images: what ShapPruning spends its time on
    fingerprint   four suspects asked 500 probes
    triggers      four steps of a trigger for each of ten classes, 32 images; its steps are no loop on CPU

Each is called once, which compiles; then rounds in which all ways take turns.

Hardware: any. Time: two minutes on two CPU cores.
Expected: torch as fast as native but for noise; before, 10 to 30 times slower.
Result: experiments/results/layout.json.
"""

import argparse
import contextlib
import itertools
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import machine
import numpy as np
from safetensors.numpy import save_file

from jaxguard import evaluation, inversion, meshes, repairs
from jaxguard.fingerprints import queries
from jaxguard.graph import Coalitions, coalitions, program
from jaxguard.suspects import Suspect, load
from jaxguard.types import Batch

OUT = pathlib.Path(__file__).parent / "results" / "layout.json"
WIDTHS, STRIDES = (3, 16, 32, 32, 64, 64), (1, 2, 1, 2, 1)
SHAPE, IMAGES, PROBES, SUSPECTS, COALITIONS, ROUNDS = (16, 16, 3), 2000, 500, 4, 256, 5


def forward(variables: Any, images: jax.Array, numbers: tuple[str, str, str]) -> jax.Array:
    x = images
    for k, stride in enumerate(STRIDES):
        kernel = variables[f"conv{k}.weight"]
        x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers)
        axis = numbers[2].index("C")
        x = jax.nn.relu(x + jnp.expand_dims(variables[f"conv{k}.bias"], [a for a in range(4) if a != axis]))
    return x.mean([numbers[2].index("H"), numbers[2].index("W")]) @ variables["fc.weight"]


def native(variables: Any, images: jax.Array) -> jax.Array:
    return forward(variables, images, ("NHWC", "HWIO", "NHWC"))


def torch(variables: Any, images: jax.Array) -> jax.Array:
    return forward(variables, images.transpose(0, 3, 1, 2), ("NCHW", "OIHW", "NCHW"))


LAYOUTS = {"native": native, "torch": torch}


def opened(folder: pathlib.Path, layout: str, seed: int) -> Suspect:
    rng, leaves = np.random.default_rng(seed), {}
    for k, (inputs, outputs) in enumerate(itertools.pairwise(WIDTHS)):
        kernel = rng.normal(size=(outputs, inputs, 3, 3)) * (2 / (9 * inputs)) ** 0.5
        leaves[f"conv{k}.weight"] = kernel if layout == "torch" else kernel.transpose(2, 3, 1, 0)
        leaves[f"conv{k}.bias"] = rng.uniform(0, 0.2, outputs)
    leaves["fc.weight"] = rng.normal(size=(WIDTHS[-1], 10)) / 8
    path = folder / f"{layout}{seed}.safetensors"
    save_file({name: np.ascontiguousarray(leaf, np.float32) for name, leaf in leaves.items()}, path)
    return load(path, apply_fn=LAYOUTS[layout], input_shape=SHAPE)


def in_a_loop(compute_fn: Callable, operand: Any, chunks: Any) -> Any:
    """`meshes.chunk_by_chunk` as it is on accelerators."""
    return jax.device_get(meshes._every_chunk(compute_fn, meshes.device_mesh(), operand, chunks))


@contextlib.contextmanager
def before():
    """The loops that jaxguard had."""
    with (
        mock.patch.object(meshes, "chunk_by_chunk", in_a_loop),
        mock.patch.object(coalitions.native_layout, "apply_in_loop", program.apply),
    ):
        yield


def tools(folder: pathlib.Path, layout: str) -> dict[str, Callable[[], np.ndarray]]:
    """Name -> what is timed, with numbers that must not depend on the way."""
    suspects = [opened(folder, layout, seed) for seed in range(SUSPECTS)]
    network = suspects[0].require_network()
    rng = np.random.default_rng(0)
    images = rng.random((IMAGES, *SHAPE), np.float32)
    labels = np.arange(IMAGES, dtype=np.int32) % 10
    games = {is_old: Coalitions(network.graph) for is_old in (False, True)}  # one jitted method each
    game = games[False]
    gates = np.ones((COALITIONS, game.players), np.float32)
    for step, player in enumerate(rng.permutation(game.players)[:COALITIONS]):
        gates[step:, player] = 0
    values = {is_old: jax.jit(one.logits) for is_old, one in games.items()}

    def shapley() -> np.ndarray:
        few = jnp.asarray(images[:20])
        run = values[coalitions.native_layout.apply_in_loop is program.apply]
        return np.asarray(run(network.variables, game.start(network.variables, few), jnp.asarray(gates)))

    def repair() -> np.ndarray:
        _, report = repairs.repair(suspects[0], "clp", jax.random.key(0), test=Batch(images, labels))
        assert report.before is not None and report.after is not None
        return np.array([report.before.acc, report.after.acc])

    def triggers() -> np.ndarray:
        found = inversion.invert(
            network.apply_fn, network.variables, images[:32], labels[:32], jax.random.key(0), steps=4, batch_size=32
        )
        return found.norms

    return {
        "evaluate": lambda: evaluation.predictions(network, images),
        "repair": repair,
        "shapley": shapley,
        "fingerprint": lambda: np.stack(queries.outputs_of(suspects, images[:PROBES])),
        "triggers": triggers,
    }


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(rounds: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        several = {layout: tools(pathlib.Path(folder), layout) for layout in LAYOUTS}
        for tool in several["native"]:
            ways: dict[str, tuple[Callable[[], np.ndarray], bool]] = {}
            for layout in LAYOUTS:
                ways[layout] = several[layout][tool], False
                ways[f"{layout}, before"] = several[layout][tool], True
            rows: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            found = {}
            for number in range(rounds + 1):
                for way, (run, is_old) in ways.items():
                    with before() if is_old else contextlib.nullcontext():
                        if number == 0:
                            found[way] = run()
                        else:
                            rows[way].append(timed(run))
            for layout in LAYOUTS:
                np.testing.assert_allclose(found[layout], found[f"{layout}, before"], rtol=1e-4, atol=1e-4)
            results[tool] = {way: _medians(pairs) for way, pairs in rows.items()}
            print(tool, json.dumps(results[tool], indent=1), flush=True)
    return results


def _medians(pairs: list[tuple[float, float]]) -> dict[str, float]:
    wall, cpu = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
    return {"ms": round(wall, 1), "cpu_ms": round(cpu, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    results = measure(arguments.rounds)
    sizes = {"images": IMAGES, "probes": PROBES, "suspects": SUSPECTS, "coalitions": COALITIONS}
    environment = machine.environment(rounds=arguments.rounds, **sizes)
    OUT.write_text(json.dumps({"environment": environment, "milliseconds": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
