"""Loops whose carry may be distributed over devices.

Inside `jax.shard_map` a loop's carry must vary over the same mesh axes before and after a step, and under explicit
sharding it must keep its sharding. A carry that starts as plain zeros does neither. These loops adapt the start to the
result of a step, so that kernels need not know whether they are distributed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

Carry = TypeVar("Carry")


def while_loop(cond_fn: Callable[[Carry], Any], body_fn: Callable[[Carry], Carry], start: Carry) -> Carry:
    """`jax.lax.while_loop`."""
    return jax.lax.while_loop(cond_fn, body_fn, _aligned(body_fn, start))


def fori_loop(lower: int, upper: Any, body_fn: Callable[[Any, Carry], Carry], start: Carry) -> Carry:
    """`jax.lax.fori_loop`."""
    return jax.lax.fori_loop(lower, upper, body_fn, _aligned(lambda carry: body_fn(lower, carry), start))


def scan(step_fn: Callable[[Carry, Any], tuple[Carry, Any]], start: Carry, xs: Any) -> tuple[Carry, Any]:
    """`jax.lax.scan`."""

    def first(carry: Carry) -> Carry:
        return step_fn(carry, jax.tree.map(lambda x: x[0], xs))[0]

    return jax.lax.scan(step_fn, _aligned(first, start), xs)


@jax.custom_batching.custom_vmap
def in_all(is_so: jax.Array) -> jax.Array:
    """Whether it is so, under `vmap` in all of the batch: a condition on it stays a branch and is not a select.

    Args:
        is_so: bool.

    Returns:
        The same; of a batch one for all.
    """
    return is_so


@in_all.def_vmap
def _(axis_size: int, in_batched: list[bool], is_so: jax.Array) -> tuple[jax.Array, bool]:
    del axis_size, in_batched
    return in_all(is_so.all(0)), False


def _aligned(step_fn: Callable[[Carry], Carry], start: Carry) -> Carry:
    """The start, distributed as the result of a step."""
    if jax.sharding.get_abstract_mesh().empty:
        return start  # without a mesh nothing is distributed: save the extra trace of the step
    while True:
        leaves = jax.tree.leaves(start)
        wanted = jax.tree.leaves(jax.eval_shape(step_fn, start))
        aligned = [_like(leaf, shape) for leaf, shape in zip(leaves, wanted, strict=True)]
        if all(new is old for new, old in zip(aligned, leaves, strict=True)):
            return start
        # Repeat: a leaf that is now distributed may make others so.
        start = jax.tree.unflatten(jax.tree.structure(start), aligned)


def _like(leaf: Any, wanted: jax.ShapeDtypeStruct) -> Any:
    present = jax.typeof(leaf)
    missing = _varying(wanted) - _varying(present)
    if missing:
        leaf = jax.lax.pcast(leaf, tuple(sorted(missing)), to="varying")
    sharding = wanted.sharding
    if isinstance(sharding, NamedSharding) and sharding.spec != present.sharding.spec:
        return jax.sharding.reshard(leaf, sharding)
    if present.sharding.mesh.empty and _is_explicit(mesh := jax.sharding.get_abstract_mesh()):
        return jax.sharding.reshard(leaf, NamedSharding(mesh, PartitionSpec()))  # as scalars are made, on no mesh
    return leaf


def _is_explicit(mesh: AbstractMesh) -> bool:
    return all(kind == AxisType.Explicit for kind in mesh.axis_types)


def _varying(aval: Any) -> frozenset[str]:
    """Mesh axes over which a value varies; the attribute's name depends on JAX's version."""
    kind = getattr(aval, "manual_axis_type", None)
    return getattr(aval, "vma", frozenset()) if kind is None else kind.varying
