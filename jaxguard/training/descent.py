"""Runs the steps of a gradient descent on the device.

On CPU, XLA runs the gradient of a convolution 30-50 times slower inside `lax.scan` or `while_loop` than
outside, so there Python calls the compiled step. On accelerators a chunk of steps is one program, so that
no step waits for the host. `experiments/bench_training.py` measures both.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from jaxguard import execution, programs
from jaxguard.errors import JaxguardError

Carry = TypeVar("Carry")
Metrics = Any
StepFn = Callable[[Carry, jax.Array], tuple[Carry, Metrics]]
"""`(carry, step index) -> (carry, pytree of scalars)`."""

Progress = Callable[[int, int, Mapping[str, Any]], None]
"""`(steps done, steps in all, metrics of the latest step)`."""

CHUNK = 64
"""Steps in one device program; progress is reported in between."""

PROGRESS_SECONDS = 0.2
"""Shortest time between two progress calls, each of which waits for the device."""


def _step(step_fn: StepFn[Carry], carry: Carry, index: jax.Array) -> tuple[Carry, Metrics]:
    new, metrics = step_fn(carry, index)
    chex.assert_trees_all_equal_shapes_and_dtypes(carry, new)
    # To jit, a weakly typed result is another type than the first carry: the second step would compile again.
    return jax.tree.map(lambda leaf: lax.convert_element_type(leaf, leaf.dtype), new), metrics


def _chunk(
    jitted_step: Any, step_fn: StepFn[Carry], carry: Carry, first: jax.Array, count: jax.Array
) -> tuple[Carry, Metrics]:
    """Takes `count <= CHUNK` steps; a traced count lets the last, shorter chunk share the program."""
    _, scalars = jax.eval_shape(jitted_step, step_fn, carry, first)
    # One row of metrics per step; rows from `count` on stay zero and are cut off on the host.
    rows = jax.tree.map(lambda scalar: jnp.zeros((CHUNK, *scalar.shape), scalar.dtype), scalars)

    def body(i, state):
        carry, rows = state
        carry, metrics = jitted_step(step_fn, carry, first + i)
        return carry, jax.tree.map(lambda row, value: row.at[i].set(value), rows, metrics)

    return lax.fori_loop(0, count, body, (carry, rows))


# At module level, so that the cache is shared: a step function equal to an earlier one is not compiled again. By
# whether they train a network: other descents, such as searches, become scores.
STEP = {trains: programs.jit(_step, trains=trains, donate_argnums=1) for trains in (False, True)}
CHUNK_OF_STEPS = {
    trains: programs.jit(partial(_chunk, step), trains=trains, donate_argnums=1) for trains, step in STEP.items()
}


def _own(leaf: Any) -> jax.Array:
    """Copies, so that donation never reaches the caller's array."""
    array = jnp.asarray(leaf)
    return jnp.array(array, dtype=array.dtype, copy=True)


class _Ticker:
    """Calls `progress` at most every `PROGRESS_SECONDS`, and at the end."""

    def __init__(self, progress: Progress | None, start: int, stop: int):
        self.progress, self.start, self.stop, self.last = progress, start, stop, time.monotonic()

    def __call__(self, done: int, metrics_fn: Callable[[], Metrics]) -> None:
        if self.progress is None:
            return
        if done == self.stop or time.monotonic() - self.last >= PROGRESS_SECONDS:
            latest = jax.device_get(metrics_fn())
            self.progress(done, self.stop, latest if isinstance(latest, Mapping) else {"metrics": latest})
            self.last = time.monotonic()


def descend(
    step_fn: StepFn[Carry],
    carry: Carry,
    num_steps: int,
    *,
    start: int = 0,
    progress: Progress | None = None,
    scan: bool | None = None,
    trains: bool = False,
) -> tuple[Carry, Metrics]:
    """Takes `num_steps` steps of `step_fn`, compiled once.

    Pass large arrays as arguments of a `jax.tree_util.Partial`, which traces them; a closure would compile
    them in as constants. A `Partial` whose function equals an earlier one (a module-level function, a frozen
    dataclass) reuses its program.

    Args:
        step_fn: `(carry, step index int32 []) -> (carry, metrics)`, a traceable function or a `Partial` of
            one; the carry keeps its structure, shapes and dtypes, metrics are a pytree of scalars.
        carry: pytree of arrays; not modified.
        num_steps: steps to take, >= 0; 0 returns the carry and empty metrics.
        start: index of the first step.
        progress: called a few times per second.
        scan: whether a chunk of steps is one device program; by default on every backend except CPU.
        trains: whether it trains a network, rather than searches what becomes a score; see `jaxguard.programs.jit`.

    Returns:
        The last carry, and the metrics as NumPy arrays, each `[num_steps, ...]`.

    Raises:
        ValueError: `num_steps` is negative.

    Example:
        >>> halve = lambda carry, step: (carry / 2, {"loss": carry})
        >>> last, metrics = descend(halve, jnp.float32(8), 3)
        >>> float(last), metrics["loss"].tolist()
        (1.0, [8.0, 4.0, 2.0])
    """
    if num_steps < 0:
        raise ValueError(f"expected num_steps >= 0, got {num_steps} in descend(); pass 0 to take no step")
    scan = execution.steps_in_one_program() if scan is None else scan
    step_fn = jax.tree.map(jnp.asarray, step_fn if isinstance(step_fn, Partial) else Partial(step_fn))
    carry = jax.tree.map(_own, carry)
    if num_steps == 0:
        _, scalars = jax.eval_shape(STEP[trains], step_fn, carry, np.int32(start))
        return carry, jax.tree.map(lambda scalar: np.zeros((0, *scalar.shape), scalar.dtype), scalars)

    stop = start + num_steps
    tick = _Ticker(progress, start, stop)
    history = []
    if scan:
        for first in range(start, stop, CHUNK):
            count = min(CHUNK, stop - first)
            carry, rows = CHUNK_OF_STEPS[trains](step_fn, carry, np.int32(first), np.int32(count))
            history.append((rows, count))
            tick(first + count, lambda rows=rows, count=count: jax.tree.map(lambda row: row[count - 1], rows))
        rows = [jax.tree.map(lambda row, n=n: row[:n], jax.device_get(rows)) for rows, n in history]
        return carry, jax.tree.map(lambda *parts: np.concatenate(parts), *rows)

    for index in range(start, stop):
        carry, metrics = STEP[trains](step_fn, carry, np.int32(index))
        history.append(metrics)
        tick(index + 1, lambda metrics=metrics: metrics)
    return carry, jax.tree.map(lambda *values: np.stack(values), *jax.device_get(history))


def staged(progress: Progress | None, stage: str) -> Progress | None:
    """Progress that also names the stage of a method that is running.

    Args:
        progress: called as the work proceeds.
        stage: what the descent is for.

    Returns:
        Progress whose metrics hold `stage`; None for None.
    """
    return progress and (lambda done, total, metrics: progress(done, total, {**metrics, "stage": stage}))


def require_finite_loss(
    losses: np.ndarray, where: str, remedy: str, error: type[JaxguardError], *, total: int | None = None
) -> None:
    """Refuses the result of a descent that diverged.

    Args:
        losses: `[steps]` so far.
        where: what descended.
        remedy: what to do about it.
        error: class of the error.
        total: steps in all, where they are more.

    Raises:
        JaxguardError: a loss is NaN or infinite; of the class given.
    """
    finite = np.isfinite(losses)
    if not finite.all():
        at = int(np.argmin(finite))
        raise error(
            f"expected a finite loss, got {losses[at]} at step {at} of {total or len(losses)} in {where}; {remedy}, or "
            "check the model and the images for NaN"
        )
