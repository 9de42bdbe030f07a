"""What a `shard_map` computes, as a function of whole arrays on one device.

The function of one shard is mapped over a new axis for each axis of the mesh, so that every shard of every array is
there, and collectives are reductions, gathers and permutations along those axes. Kernels are whole, as they lie in the
checkpoint, whatever the mesh.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import source_info_util

from jaxguard.graph.program import Equation, Program, apply, interpret

Spec = tuple[tuple[str, ...], ...]
"""For each axis of an array, the axes of the mesh that it is sharded over, the slowest first."""


def spec_of(spec: Any, rank: int) -> Spec:
    """A `PartitionSpec` with an entry for every axis of an array."""
    entries = [() if one is None else one if isinstance(one, tuple) else (one,) for one in spec]
    return tuple(entries) + ((),) * (rank - len(entries))


def whole(program: Program, mesh: Mapping[str, int], ins: Sequence[Spec], outs: Sequence[Spec]) -> Callable[..., Any]:
    """The function of whole arrays that a program of one shard stands for.

    Args:
        program: of one shard; its leaves are the arguments, and `results` are what it returns.
        mesh: size of each axis that the program may name.
        ins: how each argument is sharded.
        outs: how each result is put together; it is the same on all shards along axes that it does not name.

    Returns:
        `(*arrays) -> list of arrays`; traceable.
    """
    names = tuple(mesh)

    def one_shard(_: Any, *arguments: jax.Array) -> list[Any]:
        facts = {**program.constants, **dict(zip(program.leaves, arguments, strict=True))}
        interpret(program.equations, facts, _apply)
        return [facts[value] for value in program.results]

    mapped = one_shard
    # The innermost map is over the last axis of the mesh; arguments have the axes that they are sharded over in front.
    for k, name in reversed(list(enumerate(names))):
        own_axes = tuple(0 if any(name in dim for dim in spec) else None for spec in ins)
        numbers = (None,) * k + (0,) + (None,) * (len(names) - k - 1)
        mapped = jax.vmap(mapped, in_axes=(numbers, *own_axes), out_axes=0, axis_name=name, axis_size=mesh[name])

    def function(*arrays: jax.Array) -> list[jax.Array]:
        shards = [_taken_apart(array, spec, mesh) for array, spec in zip(arrays, ins, strict=True)]
        results = mapped(tuple(jnp.arange(size) for size in mesh.values()), *shards)
        return [_put_together(array, spec, mesh) for array, spec in zip(results, outs, strict=True)]

    return function


def _taken_apart(array: jax.Array, spec: Spec, mesh: Mapping[str, int]) -> jax.Array:
    """`[shards along each named axis of the mesh, in its order, ..., the array of one shard]`."""
    shape, places = [], dict[str, int]()
    for size, dim in zip(array.shape, spec, strict=True):
        for name in dim:
            places[name] = len(shape)
            shape.append(mesh[name])
        shape.append(size // math.prod(mesh[name] for name in dim))
    front = [places[name] for name in mesh if name in places]
    rest = [k for k in range(len(shape)) if k not in front]
    return array.reshape(shape).transpose(*front, *rest)


def _put_together(array: jax.Array, spec: Spec, mesh: Mapping[str, int]) -> jax.Array:
    """The inverse for a result, which has every axis of the mesh in front."""
    named = [name for name in mesh if any(name in dim for dim in spec)]
    for k, name in reversed(list(enumerate(mesh))):
        if name not in named:
            array = lax.index_in_dim(array, 0, k, keepdims=False)
    sizes, order = array.shape[len(named) :], []
    for axis, dim in enumerate(spec):
        order += [*(named.index(name) for name in dim), len(named) + axis]
    shape = [size * math.prod(mesh[name] for name in dim) for size, dim in zip(sizes, spec, strict=True)]
    return array.transpose(order).reshape(shape)


def _apply(eqn: Equation, arguments: list[Any]) -> list[Any]:
    with source_info_util.user_context(eqn.sources[0].traceback):
        collective = getattr(_Collectives, eqn.name, None)
        return apply(eqn, arguments) if collective is None else collective(eqn.params, *arguments)


class _Collectives:
    """Primitives that name axes of the mesh, as functions that can be mapped; named as the primitives are."""

    @staticmethod
    def psum(params: Any, *arrays: Any) -> list[Any]:
        return [lax.psum(x, params["axes"], axis_index_groups=params.get("axis_index_groups")) for x in arrays]

    psum_invariant = psum

    @staticmethod
    def pmax(params: Any, *arrays: Any) -> list[Any]:
        return [lax.pmax(x, params["axes"], axis_index_groups=params.get("axis_index_groups")) for x in arrays]

    @staticmethod
    def pmin(params: Any, *arrays: Any) -> list[Any]:
        return [lax.pmin(x, params["axes"], axis_index_groups=params.get("axis_index_groups")) for x in arrays]

    @staticmethod
    def all_gather(params: Any, x: Any) -> list[Any]:
        axis, tiled = params["all_gather_dimension"], params["tiled"]
        return [lax.all_gather(x, params["axis_name"], axis=axis, tiled=tiled)]

    all_gather_invariant = all_gather

    @staticmethod
    def reduce_scatter(params: Any, x: Any) -> list[Any]:
        axis, tiled = params["scatter_dimension"], params["tiled"]
        return [lax.psum_scatter(x, params["axis_name"], scatter_dimension=axis, tiled=tiled)]

    @staticmethod
    def ppermute(params: Any, x: Any) -> list[Any]:
        return [lax.ppermute(x, params["axis_name"], params["perm"])]

    @staticmethod
    def all_to_all(params: Any, x: Any) -> list[Any]:
        split, concat, tiled = params["split_axis"], params["concat_axis"], params["tiled"]
        return [lax.all_to_all(x, params["axis_name"], split, concat, tiled=tiled)]

    @staticmethod
    def axis_index(params: Any) -> list[Any]:
        return [lax.axis_index(params["axis_name"])]

    @staticmethod
    def pvary(params: Any, *arrays: Any) -> list[Any]:
        return list(arrays)
