"""How long do the Lipschitz bounds of one checkpoint's channels take, beside the reference and beside plain NumPy?

    python experiments/bench_lipschitz.py

Every way scores the same pairs of kernel and BatchNorm, those of the reference code (`module_order`), from arrays in
memory: the reference's loop of one SVD per channel in NumPy and in torch, a few lines that batch a layer's Gram
matrices, and `channel_bounds` on variables that are on the device. The floor is reading all weights once. Ways take
turns in one run; scores are held against SVDs in float64. Torch is optional: without it its rows are left out.

Hardware: whatever it runs on, named in the result. Time: 2 minutes on 2 CPU cores.
Expected: on two idle CPU cores 12 to 18 times as fast as the reference's loop and 1.1 to 1.3 times as
fast as batched torch; 2 was the aim. Scores within 1e-5, here 5e-7, and no channel cut that the float64 scores would
not cut. Other work slows the ways that use both cores most.
Result: experiments/results/lipschitz.json.
"""

import functools
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

from jaxguard import models
from jaxguard.graph import ChannelGraph, channel_graph, pairing
from jaxguard.kernels import lipschitz
from jaxguard.scores.channel_bounds import bounds_of, channel_bounds
from jaxguard.types import Variables

try:
    import torch
except ImportError:
    torch = None

SEED = 0
ROUNDS = 15
PAUSE = 0.1  # seconds; BLAS threads keep a core busy for a while after their work, and the next way would pay for it
U = 3.0
NETWORKS = ("preactresnet18", "resnet18", "vgg19", "wideresnet-16-1")
RESULT = pathlib.Path(__file__).parent / "results" / "lipschitz.json"
OURS = "jaxguard channel_bounds"
DATAFLOW = "batched torch, dataflow pairing"
"""The kernels that `jaxguard, dataflow pairing` reads; without the maxima over residual sums."""


class Scored(NamedTuple):
    """One BatchNorm and the convolution before it, in torch's layout: `[C, D, H, W]`, `[C]`, `[C]`."""

    kernel: Any
    gamma: Any
    var: Any


def numpy_loop(layers: list[Scored]) -> list[np.ndarray]:
    scores = []
    for kernel, gamma, var in layers:
        channels = [kernel[c].reshape(len(kernel[c]), -1) * np.abs(gamma[c] / np.sqrt(var[c])) for c in range(len(var))]
        scores.append(np.array([np.linalg.svd(channel, compute_uv=False).max() for channel in channels]))
    return scores


def torch_loop(layers: list[Scored], *, values_only: bool = False) -> list[Any]:
    scores = []
    for kernel, gamma, var in layers:
        norms = []
        for c in range(len(var)):
            channel = kernel[c].reshape(len(kernel[c]), -1) * (gamma[c] / torch.sqrt(var[c])).abs()
            if values_only:
                norms.append(torch.linalg.svdvals(channel).max())
            else:
                norms.append(torch.linalg.svd(channel, full_matrices=False)[1].max())
        scores.append(torch.stack(norms))
    return scores


def numpy_batched(layers: list[Scored]) -> list[np.ndarray]:
    scores = []
    for kernel, gamma, var in layers:
        rows = kernel.reshape(*kernel.shape[:2], -1)
        columns = rows.swapaxes(1, 2)
        gram = columns @ rows if rows.shape[1] >= rows.shape[2] else rows @ columns
        scores.append(np.sqrt(np.linalg.eigvalsh(gram)[:, -1]) * np.abs(gamma) / np.sqrt(var))
    return scores


def torch_batched(layers: list[Scored]) -> list[Any]:
    scores = []
    for kernel, gamma, var in layers:
        rows = kernel.flatten(2)
        gram = rows.mT @ rows if rows.shape[1] >= rows.shape[2] else rows @ rows.mT
        scores.append(torch.linalg.eigvalsh(gram)[:, -1].sqrt() * gamma.abs() / var.sqrt())
    return scores


def random_network(spec: str) -> tuple[ChannelGraph, Variables]:
    """A network as initialised, but with scales and variances that differ from channel to channel."""
    model = models.build(spec, num_classes=10, input_shape=(32, 32, 3))
    rng = np.random.default_rng(SEED)

    def spread(path: Any, leaf: jax.Array) -> jax.Array:
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        return jnp.asarray(leaf)

    variables = jax.tree.map_with_path(spread, model.init(jax.random.key(SEED)))
    return channel_graph(model.apply_fn, variables, jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)), variables


def leaf_of(variables: Variables, path: str) -> np.ndarray:
    value: Any = variables
    for key in path.split("/"):
        value = value[key]
    return np.asarray(value)


def every_kernel(graph: ChannelGraph, variables: Variables) -> list[Scored]:
    """The convolutions of dataflow pairing, each with scales of one."""
    numbers = sorted({producer for layer in pairing.layers(graph, "dataflow") for producer, _ in layer.sources})
    kernels = [leaf_of(variables, graph.producers[k].kernel.path) for k in numbers]
    ones = [np.ones(kernel.shape[-1], np.float32) for kernel in kernels]
    return [
        Scored(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)), one, one)
        for kernel, one in zip(kernels, ones, strict=True)
    ]


def scored_layers(graph: ChannelGraph, variables: Variables) -> list[Scored]:
    leaf, found = functools.partial(leaf_of, variables), []
    for layer in pairing.layers(graph, "module_order"):
        ((producer, _),), affine = layer.sources, graph.affines[layer.affine]
        kernel = leaf(graph.producers[producer].kernel.path).transpose(3, 2, 0, 1)
        found.append(Scored(np.ascontiguousarray(kernel), leaf(affine.scale.path), leaf(affine.var.path)))
    return found


def ways(graph: ChannelGraph, variables: Variables, layers: list[Scored]) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; each call returns when its result is there."""
    jitted = jax.jit(lambda v: bounds_of(graph, pairing.layers(graph, "module_order"), 0.0, v))
    grams = jax.jit(lambda v: [lipschitz.gram_matrices(jnp.moveaxis(k, 0, -1)) for k in graph.kernels(v)])
    total = jax.jit(lambda v: sum(leaf.sum() for leaf in jax.tree.leaves(v)))
    on_host = [np.asarray(leaf) for leaf in jax.tree.leaves(variables)]
    found: dict[str, Callable[[], Any]] = {"NumPy, SVD per channel": lambda: numpy_loop(layers)}
    if torch is not None:
        tensors = [Scored(*(torch.from_numpy(np.array(array)) for array in layer)) for layer in layers]
        all_tensors = [
            Scored(*(torch.from_numpy(np.array(array)) for array in layer)) for layer in every_kernel(graph, variables)
        ]
        found |= {
            "torch, SVD per channel": lambda: torch_loop(tensors),
            "torch, singular values per channel": lambda: torch_loop(tensors, values_only=True),
            "torch, batched Gram and eigvalsh": lambda: torch_batched(tensors),
            DATAFLOW: lambda: torch_batched(all_tensors),
        }
    return found | {
        "NumPy, batched Gram and eigvalsh": lambda: numpy_batched(layers),
        OURS: lambda: channel_bounds(graph, variables, pairing="module_order").scores,
        "jaxguard, its compiled part": lambda: jax.block_until_ready(jitted(variables)),
        "jaxguard, dataflow pairing": lambda: channel_bounds(graph, variables).scores,
        "jaxguard, Gram matrices alone": lambda: jax.block_until_ready(grams(variables)),
        "floor: jitted sum of all weights": lambda: jax.block_until_ready(total(variables)),
        "floor: NumPy sum of all weights": lambda: [array.sum() for array in on_host],
    }


def milliseconds(timed: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    for call in timed.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(ROUNDS):
        for name, call in timed.items():
            time.sleep(PAUSE)
            begun = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - begun))
    return times


def agreement(scores: list[Any], exact: list[np.ndarray]) -> dict[str, float]:
    error, differing = 0.0, 0
    for layer, truth in zip(scores, exact, strict=True):
        found = np.asarray(layer, np.float64)
        error = max(error, float(np.max(np.abs(found / truth - 1))))
        masks = [values > values.mean() + U * values.std(ddof=1) for values in (found, truth)]
        differing += int((masks[0] != masks[1]).sum())
    return {"largest_relative_error": float(f"{error:.2g}"), "masks_differing": differing}


def measure(spec: str) -> dict[str, Any]:
    graph, variables = random_network(spec)
    layers = scored_layers(graph, variables)
    exact = numpy_loop([Scored(*(np.asarray(array, np.float64) for array in layer)) for layer in layers])
    timed = ways(graph, variables, layers)
    scores = {name: agreement(call(), exact) for name, call in timed.items() if is_comparable(name)}
    times = milliseconds(timed)
    rows = {
        name: {"median_ms": round(statistics.median(t), 3), "least_ms": round(min(t), 3), **scores.get(name, {})}
        for name, t in times.items()
    }
    return {"channels": sum(len(layer.var) for layer in layers), "ways": rows}


def is_comparable(name: str) -> bool:
    return name == OURS or name.startswith(("NumPy", "torch"))


def main() -> None:
    results = {spec: measure(spec) for spec in NETWORKS}
    for spec, result in results.items():
        print(f"{spec}, {result['channels']} channels")
        for name, row in result["ways"].items():
            more = f"   error {row['largest_relative_error']:.1e}" if is_comparable(name) else ""
            print(f"  {name:36} {row['median_ms']:9.2f} ms   least {row['least_ms']:9.2f} ms{more}")
    packages = ("torch",) if torch is not None else ()
    threads = {} if torch is None else {"torch_threads": torch.get_num_threads()}
    environment = machine.environment(*packages, seed=SEED, rounds=ROUNDS, **threads)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"environment": environment, "results": results}, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
