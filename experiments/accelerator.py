"""What does an accelerator gain: fleets, Shapley values, trigger searches, training, and many networks at once?

    python experiments/accelerator.py            # on a GPU or TPU
    python experiments/accelerator.py --tiny     # every part at toy size, on any machine: it runs, and says nothing

Five figures, every program compiled and run once before it is timed, medians of three:

    fleet       bytes of weights scored per second, from stacks on the host and from stacks on the device
    shapley     coalitions of one permutation a second, beside full forward passes one at a time
    inversion   Neural Cleanse of ten classes at once, beside one class after the other
    training    images a second, float32 and bfloat16
    population  64 small networks by `training.fit_many`, side by side and one by one

Hardware: what it runs on, named in the result. Time: under ten minutes on a recent GPU, compilation included.
Expected: Shapley at least 20 times the loop, inversion at least 5 times; not measured on an accelerator yet.
Result: results/accelerator.json, one entry for each kind of device.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import machine
import numpy as np
import tpu_programs

from jaxguard import execution, inversion, models, training
from jaxguard.fleet import programs, stream
from jaxguard.fleet.local import Settings
from jaxguard.graph import Coalitions
from jaxguard.programs import jit
from jaxguard.types import Batch

RESULT = pathlib.Path(__file__).parent / "results" / "accelerator.json"
ROUNDS = 3
SHAPE, CLASSES = (32, 32, 3), 10


class Sizes(NamedTuple):
    """Of all parts."""

    large: str = "preactresnet18"
    small: str = "resnet20"
    tiny: str = "cnn"
    images: int = 100
    players: int = 640
    loop: int = 100
    steps: int = 50
    inverted: int = 1000
    trained: int = 128
    batch: int = 128
    networks: int = 64
    population: int = 200


TINY = Sizes(
    *["cnn:width=0.25"] * 3,
    images=4,
    players=32,
    loop=2,
    steps=2,
    inverted=16,
    trained=2,
    batch=8,
    networks=3,
    population=2,
)


def seconds_of(run: Callable[[], Any]) -> float:
    """Median of some runs, after one that compiles."""
    jax.block_until_ready(run())
    taken = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def built(name: str, *, dtype: str | None = None) -> tuple[models.Model, Any]:
    """An architecture with weights at which no activation dies."""
    model, rng = models.build(name, num_classes=CLASSES, input_shape=SHAPE, dtype=dtype), np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if len(leaf.shape) < 2:
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        return jnp.asarray(rng.normal(size=leaf.shape) * (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.dtype)

    return model, jax.tree.map(draw, model.shapes())


def pictures(number: int) -> Batch:
    rng = np.random.default_rng(0)
    return Batch(rng.random((number, *SHAPE), np.float32), rng.integers(0, CLASSES, number).astype(np.int32))


def fleet(name: str) -> dict[str, Any]:
    structure = tpu_programs.stored(name)
    scorer = programs.scorer(structure, Settings())
    rows = stream._most_rows(structure, execution.staging_bytes())
    stack = np.random.default_rng(0).uniform(0.1, 1.0, (rows, structure.length)).astype(np.float32)
    whole = seconds_of(lambda: scorer.collect(scorer.launch(stack, rows)).layers)
    placed = jax.device_put(stack, programs._sharding())
    counts = jax.device_put(np.full(len(execution.devices()), rows // len(execution.devices()), np.int32))
    counts = jax.device_put(counts, programs._sharding())
    scored = seconds_of(lambda: scorer.program(placed, counts))
    size = rows * structure.nbytes
    return {
        "checkpoints": rows,
        "megabytes_each": round(structure.nbytes / 1e6, 1),
        "gigabytes_per_second": round(size / whole / 1e9, 2),
        "gigabytes_per_second_on_device": round(size / scored / 1e9, 2),
    }


def shapley(size: Sizes) -> dict[str, Any]:
    """The first channels of one permutation leave one by one."""
    model, variables = built(size.large)
    network = model.network(variables)
    game, batch = Coalitions(network.graph), jnp.asarray(pictures(size.images).images)
    number = min(size.players, game.players)
    order = np.random.default_rng(0).permutation(game.players)
    gates = np.ones((number, game.players), np.float32)
    for row, player in enumerate(order[:number]):
        gates[row:, player] = 0
    begin = jit(game.start)(variables, batch)
    chunks = gates[: number // 32 * 32].reshape(-1, 32, game.players)

    def of_chunk(gates: jax.Array) -> jax.Array:
        return game.logits(variables, begin, gates).argmax(-1)

    @jit
    def all_at_once(chunks: jax.Array) -> jax.Array:
        return jax.lax.map(of_chunk, chunks)

    # A loop computes the gated network from the start; gates change no amount of work, so that it runs without.
    forward = jit(network.apply_fn)

    def one_at_a_time() -> list[jax.Array]:
        return [jax.block_until_ready(forward(variables, batch)) for _ in range(size.loop)]

    ours, theirs = seconds_of(lambda: all_at_once(chunks)) / len(chunks) / 32, seconds_of(one_at_a_time) / size.loop
    return {
        "images": size.images,
        "coalitions": chunks.shape[0] * 32,
        "coalitions_per_second": round(1 / ours, 1),
        "loop_per_second": round(1 / theirs, 1),
        "ratio": round(theirs / ours, 2),
    }


def neural_cleanse(size: Sizes) -> dict[str, Any]:
    model, variables = built(size.large)
    batch, key = pictures(size.inverted), jax.random.key(0)

    def invert(classes: list[int]) -> np.ndarray:
        # No early stop: the same work both ways.
        found = inversion.invert(
            model.apply_fn, variables, batch.images, None, key, classes=classes, steps=size.steps, stop_patience=10**6
        )
        return found.norms

    together = seconds_of(lambda: invert(list(range(CLASSES))))
    apart = seconds_of(lambda: [invert([label]) for label in range(CLASSES)])
    return {"steps": size.steps, **beside(together, apart)}


def beside(together: float, apart: float) -> dict[str, float]:
    return {"seconds": round(together, 2), "one_by_one": round(apart, 2), "ratio": round(apart / together, 2)}


def images_per_second(size: Sizes, dtype: str | None) -> dict[str, Any]:
    model, variables = built(size.large, dtype=dtype)
    data, settings = pictures(size.batch * 8), {"steps": size.trained, "batch_size": size.batch, "learning_rate": 1e-3}

    def train() -> Any:
        return training.fit(model.train_fn, variables, data, jax.random.key(0), **settings).variables

    return {"dtype": dtype or "float32", "images_per_second": round(size.trained * size.batch / seconds_of(train))}


def population(size: Sizes) -> dict[str, Any]:
    model, _ = built(size.tiny)
    keys = list(jax.random.split(jax.random.key(0), size.networks))
    starts, data = [model.init(key) for key in keys], pictures(512)
    settings = {"steps": size.population, "batch_size": 64, "learning_rate": 1e-2}

    def train(*, side_by_side: bool) -> Any:
        found = training.fit_many(model.train_fn, starts, data, keys, side_by_side=side_by_side, **settings)
        return [losses for _, losses in found]

    together, apart = (seconds_of(lambda way=way: train(side_by_side=way)) for way in (True, False))
    return {"networks": size.networks, "steps": size.population, **beside(together, apart)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="toy sizes; nothing is recorded")
    tiny = parser.parse_args().tiny
    size = TINY if tiny else Sizes()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        f"fleet, {size.small}": lambda: fleet(size.small),
        f"fleet, {size.large}": lambda: fleet(size.large),
        f"shapley, {size.large}": lambda: shapley(size),
        f"inversion, {size.large}": lambda: neural_cleanse(size),
        f"training, {size.large}": lambda: images_per_second(size, None),
        f"training, {size.large}, bfloat16": lambda: images_per_second(size, "bfloat16"),
        f"population, {size.tiny}": lambda: population(size),
    }
    kind, rows = jax.devices()[0].device_kind, {}
    for name, part in parts.items():
        start = time.perf_counter()
        rows[name] = part()
        rows[name]["part_seconds"] = round(time.perf_counter() - start, 1)
        print(name, json.dumps(rows[name]), flush=True)
        if not tiny:  # after each part: a machine that is lent may be taken away
            known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
            known[kind] = {"environment": machine.environment(devices=len(jax.devices())), "parts": rows}
            RESULT.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
