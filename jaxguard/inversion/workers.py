"""Descents of many classes, distributed over host threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxguard import execution, meshes, training
from jaxguard.errors import JaxguardError
from jaxguard.inversion.descent import State, where

CHUNK = 16
"""Steps between two checks which classes have stopped."""

FREE = -1
"""Index of an empty slot: no class is left for it."""


@dataclass(frozen=True)
class _Queue:
    """Classes that wait for a slot.

    Attributes:
        step_fn: `state, index -> state, metrics` of several classes, of a `Descent`.
        start: classes -> state before the first step.
        classes: all classes.
        waiting: indices of those that no worker has taken yet.
    """

    step_fn: Partial
    start: Callable[[Sequence[int]], State]
    classes: Sequence[int]
    waiting: deque[int]

    def work(self, slots: int, progress: training.Progress | None) -> dict[int, State]:
        """Descends classes until none waits; a slot whose class has stopped takes the next one.

        Returns:
            Index of each finished class -> its last state, in NumPy.
        """
        steps: int = self.step_fn.func.steps  # pyright: ignore[reportFunctionMemberAccess]
        held = np.array([self._next() for _ in range(slots)])
        state = self._started(held)._replace(stopped=meshes.spread(jnp.asarray(held == FREE)))
        rows: dict[int, State] = {}
        done, chunk = 0, min(CHUNK, steps)
        while (held != FREE).any():
            state, metrics = training.descend(self.step_fn, state, chunk, start=done, progress=progress)
            done += chunk
            if not np.isfinite(metrics["loss"]).all():
                raise JaxguardError(
                    f"expected finite logits of stamped images, got a loss of {metrics['loss'][-1]} in invert(); "
                    "check the model's variables for overflow, or lower learning_rate"
                )
            ended = np.asarray(state.stopped) & (held != FREE)
            last = jax.device_get(state) if ended.any() else state
            for slot in np.flatnonzero(ended):
                rows[int(held[slot])] = jax.tree.map(lambda leaf, slot=slot: np.array(leaf[slot]), last)
                held[slot] = self._next()
            renewed = ended & (held != FREE)
            if renewed.any():
                state = where(meshes.spread(jnp.asarray(renewed)), self._started(held), state)
        return rows

    def _next(self) -> int:
        try:
            return self.waiting.popleft()
        except IndexError:
            return FREE

    def _started(self, held: np.ndarray) -> State:
        return meshes.spread(self.start([self.classes[int(number)] for number in held]))


def run(
    step_fn: Partial,
    start: Callable[[Sequence[int]], State],
    classes: Sequence[int],
    *,
    slots: int,
    workers: int,
    progress: training.Progress | None,
) -> list[State]:
    """Descends every class to its end.

    Args:
        step_fn: one step of several classes, of a `Descent`.
        start: classes -> state before the first step.
        classes: at least one.
        slots: classes in one step of a worker.
        workers: host threads.
        progress: called with the steps of all workers together; the total is an upper bound.

    Returns:
        Last state of each class, in NumPy.

    Raises:
        JaxguardError: a loss that is not finite.
    """
    queue = _Queue(step_fn, start, classes, deque(range(len(classes))))
    most = -(-len(classes) // slots) * step_fn.func.steps  # pyright: ignore[reportFunctionMemberAccess]
    steps = [0] * workers

    def report(worker: int, now: int, _: int, metrics: Any) -> None:
        steps[worker] = now
        if progress:
            progress(min(sum(steps), most), most, metrics)

    rows: dict[int, State] = {}
    reports = [partial(report, worker) if progress else None for worker in range(workers)]
    for found in execution.in_threads(lambda callback: queue.work(slots, callback), reports, threads=workers):
        rows |= found
    return [rows[number] for number in range(len(classes))]
