"""Several networks of one structure, descended with one compiled step.

On accelerators their states are stacked, and each device takes the steps of its share of them together, as many at a
time as its memory holds. On CPU, where stacked convolutions are slower, the networks follow one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxguard import execution, memory, meshes
from jaxguard.training import descent
from jaxguard.types import Batch, TrainFn, Variables

Carry = TypeVar("Carry")
StepOfOne = Callable[[Any, Any, Any, jax.Array], tuple[Any, Mapping[str, jax.Array]]]
"""`(shared, own, carry, step index) -> (carry, scalars)` of one network; a hashable value."""


@dataclass(frozen=True)
class _SideBySide:
    """A step of all networks of a stack; a value, so that equal ones share a compiled program."""

    step_fn: StepOfOne

    def __call__(self, shared: Any, own: Any, carry: Any, index: jax.Array) -> tuple[Any, Mapping[str, jax.Array]]:
        def of_one(one: Any, shared: Any) -> tuple[Any, Mapping[str, jax.Array]]:
            own, carry = one
            return self.step_fn(shared[0], own, carry, shared[1])

        return meshes.abreast(of_one, (own, carry), (shared, index))


def descend_all(
    step_fn: StepOfOne,
    shared: Any,
    own: Sequence[Any],
    carries: Sequence[Carry],
    num_steps: int,
    *,
    bytes_fn: Callable[[], int] = int,
    side_by_side: bool | None = None,
    progress: descent.Progress | None = None,
) -> list[tuple[Carry, dict[str, np.ndarray]]]:
    """Takes the same number of steps of every network.

    Args:
        step_fn: one step of one network.
        shared: arrays that all networks read, such as images.
        own: arrays of each network, of equal shapes, such as its key.
        carries: the state of each before its first step, of equal shapes; not modified.
        num_steps: steps to take, >= 0.
        bytes_fn: `() ->` bytes of one network's step; bounds how many are descended at once.
        side_by_side: whether networks take a step together; by default on every backend except CPU.
        progress: called with the steps of all networks together, and the mean of their metrics.

    Returns:
        Of each network the last carry, and the metrics, each `[num_steps]`.

    Example:
        >>> def step(rate, start, carry, index):
        ...     return carry - rate * (carry - start), {"loss": carry}
        >>> ends = descend_all(step, jnp.float32(0.5), [jnp.float32(0)] * 2, [jnp.float32(8), jnp.float32(4)], 2)
        >>> [(float(end), metrics["loss"].tolist()) for end, metrics in ends]
        [(2.0, [8.0, 4.0]), (1.0, [4.0, 2.0])]
    """
    if side_by_side is None:
        side_by_side = len(carries) > 1 and execution.models_abreast()
    shared, total = meshes.everywhere(shared), num_steps * len(carries)
    if not side_by_side:

        def alone(number: int) -> tuple[Carry, dict[str, np.ndarray]]:
            def told(done: int, _: int, scalars: Mapping[str, Any]) -> None:
                if progress:
                    progress(number * num_steps + done, total, scalars)

            one = Partial(step_fn, shared, own[number])
            return descent.descend(one, carries[number], num_steps, progress=told if progress else None, trains=True)

        return [alone(number) for number in range(len(carries))]

    at_once = min(meshes.divisible(len(carries)), execution.networks_at_once(bytes_fn()))

    def together(first: int) -> list[tuple[Carry, dict[str, np.ndarray]]]:
        some = list(zip(own, carries, strict=True))[first : first + at_once]
        # Places that the devices have too many repeat the last network; what they find is dropped.
        stacked = meshes.filled_up(jax.tree.map(lambda *leaves: jnp.stack(leaves), *some), at_once)
        theirs, carry = meshes.spread(stacked)

        def mean(done: int, _: int, scalars: Mapping[str, Any]) -> None:
            if progress:
                means = {name: row[: len(some)].mean() for name, row in scalars.items()}
                progress(first * num_steps + len(some) * done, total, means)

        step = Partial(_SideBySide(step_fn), shared, theirs)
        end, curves = descent.descend(step, carry, num_steps, progress=mean if progress else None, trains=True)
        return [
            (jax.tree.map(lambda leaf, k=k: leaf[k], end), {name: curve[:, k] for name, curve in curves.items()})
            for k in range(len(some))
        ]

    return [end for first in range(0, len(carries), at_once) for end in together(first)]


def bytes_of_step(train_fn: TrainFn, variables: Variables, data: Batch, batch_size: int) -> int:
    """What a training step of one network takes, about: intermediate arrays, gradient and optimizer."""
    leaves = jax.tree.leaves(variables)
    weights = sum(math.prod(np.shape(leaf)) * np.dtype(jnp.result_type(leaf)).itemsize for leaf in leaves)
    return batch_size * memory.of_gradient(train_fn, variables, np.shape(data.images)[1:]) + 4 * weights
