"""The table of all public kernels, and what `python kernel_contract.py` checks of it on eight forced host devices."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxguard.graph import channel_graph, pairing
from jaxguard.kernels import correlation, division, eigenvalues, lipschitz, shapley, spectrum, transport
from jaxguard.kernels.transport import entropic
from jaxguard.kernels.transport import problem as problems
from jaxguard.scores import channel_bounds, head, structural, weights

DEVICES = 8
PLAYERS = 6


class Row(NamedTuple):
    """A kernel under contract.

    Attributes:
        name: of the public function, from `jaxguard.kernels` or `jaxguard` on; what follows a blank tells rows of one
            apart.
        call: on arrays alone.
        args: seed -> arrays, always of the same shapes.
        split: axis of each argument that may be sharded within one call, None where it may not.
        grad: whether it has a gradient by its first argument.
        rtol: between ways to run it, relative to the largest number.
        on_host: whether it calls back to the host, so that no exported program holds it.
        foreign: whose loops it runs, if these start from constants: `shard_map` then takes `check_vma=False`, and
            sharding by type cannot be vmapped.
    """

    name: str
    call: Callable[..., Any]
    args: Callable[[int], tuple[Any, ...]]
    split: tuple[int | None, ...] | None = None
    grad: bool = False
    rtol: float = 1e-5
    on_host: bool = False
    foreign: str = ""


def normal(*shapes: tuple[int, ...]) -> Callable[[int], tuple[jax.Array, ...]]:
    def args(seed: int) -> tuple[jax.Array, ...]:
        rng = np.random.default_rng(seed)
        return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)

    return args


def positive(*shapes: tuple[int, ...]) -> Callable[[int], tuple[jax.Array, ...]]:
    return lambda seed: tuple(jnp.abs(array) + 0.1 for array in normal(*shapes)(seed))


def with_key(seed: int) -> tuple[jax.Array, jax.Array]:
    return *normal((PLAYERS,))(seed), jax.random.key(seed)


def game(worth: jax.Array) -> shapley.ValuesFn:
    return lambda gates: jax.nn.sigmoid(jnp.tanh(gates * worth[None]).sum(-1))


def unit(seed: int) -> tuple[jax.Array, jax.Array]:
    owner, suspects = normal((20, 5), (8, 20, 5))(seed)
    return correlation.unit_rows(owner), correlation.unit_rows(suspects)


def costs(seed: int) -> tuple[jax.Array, jax.Array]:
    source, target, masses = normal((12, 4), (12, 4), (12,))(seed)
    source = source.at[:3].set(target[:3]).at[4].set(source[5])
    return transport.distances(source, target), jnp.abs(masses) + 0.1


def solved(solver: transport.Solver, **settings: Any) -> Callable[..., Any]:
    def call(cost: jax.Array, masses: jax.Array) -> Any:
        plan = transport.solve(cost, target=masses, solver=solver, **settings)
        return plan.matrix, plan.columns, plan.converged

    return call


def costs_alone(seed: int) -> tuple[jax.Array]:
    return costs(seed)[:1]


def stack_of_one(cost: jax.Array, masses: jax.Array) -> problems.Problem:
    given = problems.problem(cost[None], None, masses, None, None)
    return problems.Problem(*map(jnp.asarray, given))


def sinkhorn(cost: jax.Array, masses: jax.Array) -> Any:
    return transport.sinkhorn(stack_of_one(cost, masses), epsilon=0.05)


def hungarian(cost: jax.Array) -> Any:
    return entropic.hungarian(stack_of_one(cost, jnp.ones(12)))


def scaled(kernel: jax.Array) -> lipschitz.Grams:
    return lipschitz.scaled_grams(kernel, is_channels_first=True)


def grams(kernel: jax.Array) -> list[jax.Array]:
    return lipschitz.norms_of([lipschitz.scaled_grams(kernel, is_channels_first=False)])


def psd(*shape: int) -> Callable[[int], tuple[jax.Array]]:
    return lambda seed: (lipschitz.gram_matrices(*normal(shape)(seed)),)


SHAPES = {"first": (8, 6), "scale": (6,), "var": (6,), "last": (6, 5)}
"""Leaves of a small network: dense, norm, dense."""


def leaves_of(*arrays: jax.Array) -> dict[str, jax.Array]:
    return dict(zip(SHAPES, arrays, strict=True))


def network(v: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    hidden = (x @ v["first"]) * jax.lax.rsqrt(v["var"])[None] * v["scale"][None]
    return jax.nn.relu(hidden) @ v["last"]


@functools.cache
def graph() -> Any:
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}
    return channel_graph(network, shapes, jax.ShapeDtypeStruct((1, 8), jnp.float32))


@functools.cache
def producers() -> Any:
    return structural.read({"a.weight": np.ones((6, 8)), "b.weight": np.ones((5, 6))}).producers


def bounds(*arrays: jax.Array) -> channel_bounds.ChannelBounds:
    return channel_bounds.channel_bounds(graph(), leaves_of(*arrays))


def layer_scores(*arrays: jax.Array) -> list[Any]:
    rows = channel_bounds.layer_scores(bounds(*arrays), 1.0)
    return [(row.scores, row.threshold, row.mask, row.undefined) for row in rows]


def structural_features(first: jax.Array, last: jax.Array) -> Any:
    return weights.structural_features(producers(), {"a.weight": first, "b.weight": last})


weights_of = positive(*SHAPES.values())

ROWS = (
    Row("lipschitz.gram_matrices", lipschitz.gram_matrices, normal((9, 16, 32)), split=(2,), grad=True),
    Row("lipschitz.gram_matrices slabs", lipschitz.gram_matrices, normal((9, 128, 256)), grad=True),
    Row("eigenvalues.largest", eigenvalues.largest, psd(5, 7, 16), split=(2,), grad=True),
    Row("eigenvalues.largest blocks", eigenvalues.largest, psd(3, 7, 2500), grad=True),
    Row("eigenvalues.trace", eigenvalues.trace, normal((5, 5, 16)), split=(2,), grad=True),
    Row("lipschitz.scaled_grams", scaled, normal((16, 9, 4)), split=(0,)),
    Row("lipschitz.norms_of", grams, normal((9, 4, 16)), split=(2,), grad=True),
    Row(
        "lipschitz.spectral_norms",
        lambda *kernels: lipschitz.spectral_norms(kernels),
        normal((16, 9, 4), (32, 9, 16), (8, 1, 5)),
        split=(0, 0, 0),
        grad=True,
    ),
    Row("division.or_one", division.or_one, normal((16,)), split=(0,), grad=True),
    Row("lipschitz.affine_scales", lipschitz.affine_scales, positive((16,), (16,)), split=(0, 0), grad=True),
    Row("lipschitz.thresholds", lipschitz.thresholds, positive((16,), (3,)), split=(0, None), grad=True),
    Row("lipschitz.z_scores", lipschitz.z_scores, positive((16,)), split=(0,), grad=True),
    Row("lipschitz.moments", lipschitz.moments, positive((16,)), split=(0,), grad=True),
    Row("spectrum.spectrum", spectrum.spectrum, positive((16,)), split=(0,)),
    Row("spectrum.distribution", spectrum.distribution, positive((8, 11)), split=(0,), grad=True),
    Row("correlation.unit_rows", correlation.unit_rows, normal((16, 5)), split=(0,), grad=True),
    Row(
        "correlation.label_rows",
        lambda labels: correlation.label_rows(labels, 5),
        lambda seed: (jnp.asarray(np.random.default_rng(seed).integers(-1, 6, 16)),),
        split=(0,),
    ),
    Row("correlation.matrix", correlation.matrix, lambda seed: unit(seed)[:1], grad=True),
    Row("correlation.matrix rbf", lambda rows: correlation.matrix(rows, kernel="rbf"), lambda seed: unit(seed)[:1]),
    Row("correlation.distances", correlation.distances, unit, grad=True),
    Row("correlation.distances rbf", lambda *rows: correlation.distances(*rows, kernel="rbf"), unit),
    Row(
        "correlation.distances tiles",
        lambda *rows: correlation.distances(*rows, tile=8, batch_size=3, halved=True),
        unit,
        grad=True,
    ),
    Row(
        "shapley.marginals",
        lambda worth, order: shapley.marginals(game(worth), order, full=0.7, threshold=0.45, chunk=2),
        lambda seed: (*normal((PLAYERS,))(seed), jnp.stack([np.random.default_rng(seed).permutation(PLAYERS)] * 2)),
    ),
    Row(
        "shapley.permutation_sampling",
        lambda worth, key: shapley.permutation_sampling(game(worth), PLAYERS, key, samples=9, tolerance=0.01, chunk=4),
        with_key,
    ),
    Row(
        "shapley.sample",
        lambda worth, key: shapley.sample(game(worth), PLAYERS, key, 3, full=0.7, chunk=4, pairing="rotations"),
        with_key,
    ),
    Row(
        "shapley.add",
        lambda values, more: shapley.add(shapley.add(shapley.Moments.none(PLAYERS), values, 0.1)[0], more, 0.1),
        normal((PLAYERS,), (PLAYERS,)),
    ),
    Row("shapley.greedy_order", lambda worth, key: shapley.greedy_order(key, worth), with_key),
    Row(
        "shapley.epsilon_greedy",
        lambda worth, key: shapley.epsilon_greedy(game(worth), PLAYERS, key, samples=9, warmup=2, chunk=4),
        with_key,
    ),
    Row(
        "shapley.top_k",
        lambda worth, key: shapley.top_k(game(worth), PLAYERS, key, k=2, samples=9, chunk=4),
        with_key,
    ),
    Row("transport.distances", transport.distances, normal((16, 4), (16, 4)), split=(0, None), grad=True),
    Row("transport.equal_rows", transport.equal_rows, lambda seed: (jnp.round(normal((16, 2))(seed)[0]),)),
    Row("transport.solve exact", solved("exact"), costs, on_host=True),
    Row("transport.solve sinkhorn", solved("sinkhorn", epsilon=0.05), costs, rtol=1e-3, foreign="OTT-JAX"),
    Row("transport.solve hungarian", lambda cost: solved("hungarian")(cost, None), costs_alone, foreign="optax"),
    Row(
        "transport.objective",
        lambda cost, masses: transport.objective(transport.solve(cost, target=masses), cost),
        costs,
        on_host=True,
        foreign="the host's, whose results have no mesh",
    ),
    Row("transport.sinkhorn", sinkhorn, costs, rtol=1e-3, foreign="OTT-JAX"),
    Row("transport.entropic.hungarian", hungarian, costs_alone, foreign="optax"),
    Row("scores.channel_bounds.channel_bounds", lambda *arrays: bounds(*arrays).scores, weights_of),
    Row(
        "scores.channel_bounds.bounds_of",
        lambda *arrays: channel_bounds.bounds_of(graph(), pairing.layers(graph()), 0.0, leaves_of(*arrays)),
        weights_of,
    ),
    Row("scores.channel_bounds.layer_scores", layer_scores, weights_of),
    Row("scores.head.asymmetry", head.asymmetry, normal((5, 6), (5,)), grad=True),
    Row(
        "scores.head.head_features",
        lambda *arrays: head.head_features(graph(), leaves_of(*arrays)),
        weights_of,
    ),
    Row("scores.weights.leaf_sums", lambda leaf: weights.leaf_sums({"": leaf}), normal((9, 6)), grad=True),
    Row(
        "scores.weights.reduce_kernel",
        lambda kernel: weights.reduce_kernel(kernel, is_channels_first=True),
        normal((16, 9, 4)),
    ),
    Row(
        "scores.weights.weight_features",
        lambda *arrays: weights.weight_features(graph(), pairing.layers(graph()), leaves_of(*arrays)),
        weights_of,
    ),
    Row("scores.weights.structural_features", structural_features, normal((6, 8), (5, 6))),
    Row("transport.plan.problem", lambda *one: problems.problem(one[0], None, one[1], None, None), costs),
)  # fmt: skip
"""Every public kernel; adding one is adding its row."""

NOT_KERNELS = {
    "scores.channel_bounds.require_finite": "refuses, on the host",
    "scores.responses.class_responses": "class by class from Python: gradients of convolutions are slow in CPU loops",
    "scores.responses.image_shape": "of a graph, without arrays",
    "scores.responses.noise_images": "NumPy, with no arguments but a shape",
    "scores.responses.response_features": "calls class_responses",
    "scores.weights.feature_names": "names",
    "scores.weights.largest_z": "NumPy, of results",
    "scores.weights.summary_of": "plain numbers, of results",
    "loops.fori_loop": "a part of the others",
    "loops.in_all": "a part of the others",
    "loops.scan": "a part of the others",
    "loops.while_loop": "a part of the others",
    "shapley.rows": "two numbers from two settings",
    "shapley.traced": "makes an argument of the others, from a function",
    "transport.exact.plan": "NumPy on the host; transport.solve calls it",
    "transport.exact.plans": "NumPy on the host; transport.solve calls it",
    "transport.exact.spread": "NumPy on the host; transport.solve calls it",
    "transport.plan.is_traced": "a question about values, not arrays",
}
"""Public functions that need not keep the contract, and why."""


def stacked(row: Row, count: int) -> tuple[Any, ...]:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(row.args(seed) for seed in range(count)))


@functools.cache
def in_loop(row: Row, count: int, *, compiled: bool = False) -> Any:
    call = jax.jit(row.call) if compiled else row.call
    results = [call(*row.args(seed)) for seed in range(count)]
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *results)


def require_close(found: Any, expected: Any, rtol: float) -> None:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for one, other in ((np.asarray(one), np.asarray(other)) for one, other in pairs):
        assert one.shape == other.shape, (one.shape, other.shape)
        scale = np.max(np.abs(other), initial=1, where=np.isfinite(other))
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * scale)


def check_shard_map(row: Row) -> None:
    """A stack of calls, one per device, with JAX's check of what varies over the mesh."""
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType.Auto,))

    def of_device(*args: Any) -> Any:
        result = row.call(*jax.tree.map(lambda arg: arg[0], args))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], result)

    check_vma = not row.foreign
    run = jax.jit(jax.shard_map(of_device, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=check_vma))
    require_close(run(*stacked(row, DEVICES)), in_loop(row, DEVICES, compiled=True), row.rtol)


def check_explicit_stack(row: Row) -> None:
    """A stack of calls, sharded by type."""
    if row.foreign:
        return
    expected, args = in_loop(row, DEVICES, compiled=True), stacked(row, DEVICES)
    with jax.set_mesh(jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType.Explicit,))):
        run = jax.jit(jax.vmap(row.call))
        require_close(run(*jax.tree.map(lambda arg: jax.device_put(arg, P("d")), args)), expected, row.rtol)


def check_explicit_split(row: Row) -> None:
    """One call, its arguments sharded by type along axes of their own."""
    if row.split is None:
        return
    expected, args = jax.tree.map(lambda leaf: leaf[0], in_loop(row, DEVICES, compiled=True)), row.args(0)
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType.Explicit,))
    specs = [P() if axis is None else P(*(None,) * axis, "d") for axis in row.split]
    with jax.set_mesh(mesh):
        placed = [jax.device_put(arg, NamedSharding(mesh, spec)) for arg, spec in zip(args, specs, strict=True)]
        require_close(jax.jit(row.call)(*placed), expected, row.rtol)


CHECKS = (check_shard_map, check_explicit_stack, check_explicit_split)


def main() -> None:
    """Print the failures of each row, as JSON."""
    assert len(jax.devices()) == DEVICES
    failures: dict[str, list[str]] = {}
    for row in ROWS:
        failures[row.name] = []
        for check in CHECKS:
            try:
                check(row)
            except Exception as error:
                failures[row.name].append(f"{check.__name__}: {type(error).__name__}: {str(error)[:1500]}")
    print(json.dumps(failures))


if __name__ == "__main__":
    main()
