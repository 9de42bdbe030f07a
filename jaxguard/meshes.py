"""Where arrays lie: one mesh of all devices, and work that is divided along it.

Divided are checkpoints of a fleet, networks that are trained or asked together, classes and candidates of a trigger
search, and images; samples of Shapley values are too, each by a program of its own. The mesh has one axis for all of
it: arrays of meshes whose axes have other names cannot meet in one program. Eight devices give the numbers of one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxguard import execution, programs

Tree = TypeVar("Tree")

DEVICES = "devices"
"""Axis of the mesh, whatever is divided along it."""


def device_mesh() -> Mesh:
    """All devices of this process along one axis."""
    return _mesh_of(execution.devices())


@functools.lru_cache(maxsize=4)
def _mesh_of(devices: tuple[Any, ...]) -> Mesh:
    return Mesh(np.array(devices), (DEVICES,))


def divisible(number: int) -> int:
    """The least multiple of the number of devices that is not below a number."""
    return -(-number // len(execution.devices())) * len(execution.devices())


def everywhere(tree: Tree) -> Tree:
    """Arrays on the device, or a copy of them on each of several."""
    if len(execution.devices()) == 1:
        return jax.tree.map(jnp.asarray, tree)
    return jax.device_put(tree, NamedSharding(device_mesh(), PartitionSpec()))


def spread(tree: Tree) -> Tree:
    """Arrays whose leading axis is divided among all devices; as they are where there is one.

    Args:
        tree: arrays with leading axes that are multiples of the number of devices; others go everywhere.

    Returns:
        The same values.
    """
    number = len(execution.devices())
    if number == 1:
        return tree

    def place(leaf: Any) -> jax.Array:
        is_divided = np.ndim(leaf) > 0 and np.shape(leaf)[0] % number == 0
        return jax.device_put(leaf, NamedSharding(device_mesh(), PartitionSpec(*[DEVICES] * is_divided)))

    return jax.tree.map(place, tree)


def filled_up(tree: Tree, number: int) -> Tree:
    """Arrays with a leading axis of that length, by repeating their last entry.

    Args:
        tree: arrays with equal leading axes, at most `number` long.
        number: length of the result's.

    Example:
        >>> filled_up(jnp.arange(3), 5).tolist()
        [0, 1, 2, 2, 2]
    """

    def fill(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        missing = number - len(leaf)
        return jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, axis=0)]) if missing else leaf

    return jax.tree.map(fill, tree)


def abreast(compute_fn: Callable[[Any, Any], Tree], stack: Any, shared: Any) -> Tree:
    """A function of several networks at once, each device with its share of them; traceable.

    Args:
        compute_fn: `(one of the stack, shared) -> arrays`.
        stack: arrays `[M, ...]`, M a multiple of the number of devices; see `filled_up`.
        shared: arrays that all of them read.

    Returns:
        The results, stacked in the same order.

    Example:
        >>> abreast(jnp.multiply, jnp.arange(2.0), jnp.float32(3)).tolist()
        [0.0, 3.0]
    """
    share_fn = jax.vmap(compute_fn, in_axes=(0, None))
    mesh = device_mesh()
    if mesh.size == 1:
        return share_fn(stack, shared)
    split = PartitionSpec(DEVICES)
    # Devices exchange nothing, so that there is nothing to check; the check refuses loops in a user's model that begin
    # with constants.
    return jax.shard_map(share_fn, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split, check_vma=False)(
        stack, shared
    )


def chunk_by_chunk(compute_fn: Callable[[Any, Any], Any], operand: Any, chunks: Any) -> Any:
    """Results of a function on every chunk; compiled once for equal functions and shapes.

    On CPU Python calls the compiled function: XLA brings convolutions into the layout that its fast kernels take only
    outside of loops, so that all but NHWC images with HWIO kernels are up to 30 times slower inside
    (`experiments/bench_layout.py`), and gradients of all convolutions are. Elsewhere one program on each device loops
    over its share of the chunks, and no chunk waits for the host.

    Args:
        compute_fn: `(operand, chunk) -> arrays`; hashable.
        operand: arrays, the same for every chunk, such as a network.
        chunks: arrays `[chunks, ...]`.

    Returns:
        NumPy arrays with a leading axis of chunks.

    Example:
        >>> chunk_by_chunk(jnp.multiply, jnp.float32(2), jnp.arange(4.0).reshape(2, 2)).tolist()
        [[0.0, 2.0], [4.0, 6.0]]
    """
    places, number = execution.devices(), len(jax.tree.leaves(chunks)[0])
    if not execution.is_cpu():
        spread_out = spread(filled_up(chunks, divisible(number)))
        rows = jax.device_get(_every_chunk(compute_fn, device_mesh(), everywhere(operand), spread_out))
        return jax.tree.map(lambda leaf: leaf[:number], rows)
    copies = [operand] if len(places) == 1 else [jax.device_put(operand, place) for place in places[:number]]
    rows = []
    for k in range(number):
        chunk = jax.tree.map(lambda leaf, k=k: leaf[k], chunks)
        chunk = chunk if len(places) == 1 else jax.device_put(chunk, places[k % len(places)])
        rows.append(_one_chunk(compute_fn, copies[k % len(copies)], chunk))
    return jax.tree.map(lambda *parts: np.stack(parts), *jax.device_get(rows))


@functools.partial(programs.jit, static_argnums=0)
def _one_chunk(compute_fn: Callable[[Any, Any], Tree], operand: Any, chunk: Any) -> Tree:
    return compute_fn(operand, chunk)


@functools.partial(programs.jit, static_argnums=(0, 1))
def _every_chunk(compute_fn: Callable[[Any, Any], Tree], mesh: Mesh, operand: Any, chunks: Any) -> Tree:
    def of_device(operand: Any, chunks: Any) -> Tree:
        return jax.lax.map(functools.partial(compute_fn, operand), chunks)

    if mesh.size == 1:
        return of_device(operand, chunks)
    split = PartitionSpec(DEVICES)
    return jax.shard_map(of_device, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False)(
        operand, chunks
    )
