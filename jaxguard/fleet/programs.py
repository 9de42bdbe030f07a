"""One compiled program per structure: a stack of rows in, layers' summaries and features out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxguard import execution, meshes, programs
from jaxguard.fleet.local import Settings
from jaxguard.fleet.scoring import Recipe, Scope, Scores, recipe_of
from jaxguard.fleet.structure import Structure
from jaxguard.scores import weights
from jaxguard.scores.weights import Reduced


@dataclass(frozen=True, eq=False)
class Scorer:
    """What is scored in the checkpoints of a structure, and the program for it.

    Attributes:
        structure: of the checkpoints.
        recipe: what, and how.
        program: `(stacks [M, W] on the device, counts [devices]) -> (layers, features, finite)`.
    """

    structure: Structure
    recipe: Recipe
    program: programs.Jitted[Any]
    _compiled: dict[int, Callable[..., tuple[jax.Array, jax.Array, jax.Array]]] = field(default_factory=dict)

    @property
    def scope(self) -> Scope:
        """What is scored."""
        return self.recipe.scope

    @functools.cached_property
    def rest_program(self) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
        """`(leaves by name, reduced kernels by name) -> (layers, features, finite)` of one checkpoint."""
        return programs.jit(self.recipe.score)

    def compile(self, rows: int) -> None:
        """Compile for stacks of this many rows; `launch` compiles for other sizes as they occur."""
        sharding, width = _sharding(), self.structure.length
        stack = jax.ShapeDtypeStruct((rows, width), np.float32, sharding=sharding)
        counts = jax.ShapeDtypeStruct((meshes.device_mesh().size,), np.int32, sharding=sharding)
        self._compiled[rows] = self.program.lower(stack, counts).compile()

    def launch(self, rows: np.ndarray, count: int) -> Any:
        """Start scoring the first `count` rows; the rows must stay as they are until the result was collected.

        Args:
            rows: `[M, W]`, M a multiple of the number of local devices.
            count: rows that hold a checkpoint, the first ones.

        Returns:
            For `collect`.
        """
        mesh = meshes.device_mesh()
        share = len(rows) // mesh.size
        # How many of each device's rows hold a checkpoint; the padding is at the end, and its devices stop early.
        counts = np.clip(count - share * np.arange(mesh.size), 0, share).astype(np.int32)
        program = self._compiled.get(len(rows)) or self.program
        return program(jax.device_put(rows, _sharding()), jax.device_put(counts, _sharding())), count

    def collect(self, launched: Any) -> Scores:
        """Wait for what was launched."""
        (layers, features, finite), count = launched
        return Scores(np.asarray(layers)[:count], np.asarray(features)[:count], np.asarray(finite)[:count])


def _sharding() -> NamedSharding:
    return NamedSharding(meshes.device_mesh(), PartitionSpec(meshes.DEVICES))


def scorer(structure: Structure, settings: Settings) -> Scorer:
    """Prepare a structure's program; nothing is compiled yet.

    Args:
        structure: of the checkpoints.
        settings: how they are scored.

    Returns:
        The scorer.

    Raises:
        JaxguardError: as `jaxguard.fleet.scoring.recipe_of`.
    """
    recipe = recipe_of(structure, settings)
    return Scorer(structure, recipe, _program(structure, recipe))


def _program(structure: Structure, recipe: Recipe) -> programs.Jitted[Any]:
    """Compiled over a stack, sharded over the local devices; each runs through the rows that hold something."""
    # Decided here, not while the program is traced.
    most, plain = execution.checkpoints_at_once(), execution.cuts_plain_numbers()

    def some(rows: jax.Array, first: jax.Array, width: int) -> tuple[jax.Array, ...]:
        leaves = structure.unpack(rows, first, count=width, without=recipe.kernels, plain=plain)
        return _mapped(recipe.score, width)(leaves, _reduced(structure, recipe, rows, first, width=width, plain=plain))

    def of_device(rows: jax.Array, count: jax.Array) -> tuple[jax.Array, ...]:
        width = width_of(len(rows), most)
        shapes = jax.eval_shape(functools.partial(some, width=width), rows, 0)
        # Results of all rows, filled in one after the other: the loop's length is traced, its arrays are not.
        empty = tuple(jnp.zeros((len(rows), *shape.shape[1:]), shape.dtype) for shape in shapes)
        empty = jax.lax.pcast(empty, (meshes.DEVICES,), to="varying")

        def step(block: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            start = block * width
            return tuple(
                jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0)
                for whole, part in zip(found, some(rows, start, width), strict=True)
            )

        return jax.lax.fori_loop(0, -(-count[0] // width), step, empty)

    split = PartitionSpec(meshes.DEVICES)
    specs = {"in_specs": (split, split), "out_specs": (split, split, split)}
    return programs.jit(jax.shard_map(of_device, mesh=meshes.device_mesh(), **specs))


def width_of(rows: int, most: int) -> int:
    """Rows that are scored together: the largest divisor of a device's rows, so that none is left over.

    Args:
        rows: of one device.
        most: see `jaxguard.execution.checkpoints_at_once`.

    Example:
        >>> width_of(4, 8), width_of(32, 8), width_of(4, 1)
        (4, 8, 1)
    """
    return next(width for width in range(min(most, rows), 0, -1) if rows % width == 0)


def _mapped(score_fn: Callable[..., Any], width: int) -> Callable[..., Any]:
    """The function over leading axes of that length, which `vmap` would make slower where there is only one row."""
    if width > 1:
        return jax.vmap(score_fn)

    def of_one(*stacks: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[None], score_fn(*jax.tree.map(lambda leaf: leaf[0], stacks)))

    return of_one


def _reduced(
    structure: Structure, recipe: Recipe, rows: jax.Array, first: jax.Array, *, width: int, plain: bool
) -> dict[str, Reduced]:
    """The kernels in some rows of a stack, by name.

    Kernels of one shape are reduced in a loop: they share a program, and the memory of the one that is being read.
    """
    offsets = {name: offset for (name, *_), offset in zip(structure.leaves, structure.offsets, strict=True)}
    alike: dict[tuple[tuple[int, ...], bool], list[str]] = {}
    for name, kernel in recipe.kernels.items():
        alike.setdefault((kernel.shape, kernel.is_channels_first), []).append(name)
    found = {}
    for (shape, is_channels_first), names in alike.items():

        def reduce_at(offset: jax.Array, shape=shape, is_channels_first=is_channels_first) -> Reduced:
            reduce_fn = functools.partial(weights.reduce_kernel, is_channels_first=is_channels_first)
            return _mapped(reduce_fn, width)(structure.cut(rows, first, offset, shape, count=width, plain=plain))

        # Kernels of one shape share the code that reduces them: deep networks compile in the time of a shallow one.
        stacked = jax.lax.map(reduce_at, np.array([offsets[name] for name in names], np.int32))
        found |= {name: jax.tree.map(lambda array, k=k: array[k], stacked) for k, name in enumerate(names)}
    return {name: found[name] for name in recipe.kernels}
