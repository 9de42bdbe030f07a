"""What depends on the machine: host threads, devices, and how much work goes into one program.

Nothing else in jaxguard asks JAX for its backend. All of this is decided before anything is traced; a kernel that needs
another program on another platform says so with `jax.lax.platform_dependent`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np

Item = TypeVar("Item")
Result = TypeVar("Result")

_aims: list[tuple[Any, ...]] = []
"""Devices that are decided for instead of those at hand: the last ones."""


@contextlib.contextmanager
def aimed_at(devices: Sequence[Any]) -> Iterator[None]:
    """Decide for devices that are not at hand, so that programs can be compiled for them ahead of time.

    Programs that were traced before stay as they are: aim first, and at one kind of device in a process.

    Args:
        devices: of one process, such as those of `jax.experimental.topologies.get_topology_desc`; at least one.

    Yields:
        Nothing; within the context nothing can be run.
    """
    _aims.append(tuple(devices))
    try:
        yield
    finally:
        _aims.pop()


def devices() -> tuple[Any, ...]:
    """The devices of this process, or those that are aimed at."""
    return _aims[-1] if _aims else tuple(jax.local_devices())


def is_cpu() -> bool:
    """Whether programs run on the host's own cores."""
    return platform() == "cpu"


def platform() -> str:
    """What programs run on: `cpu`, `gpu` or `tpu`."""
    return _aims[-1][0].platform if _aims else jax.default_backend()


# ---------------------------------------------------------------- host threads


def workers() -> int:
    """Compiled programs to run at once, each from a host thread of its own.

    On CPU the loops inside a program, and small operations, run on one core, so several programs keep several cores
    busy; memory grows with their number. An accelerator runs them one after the other anyway.

    Returns:
        The cores this process may use on CPU, else 1.
    """
    if not is_cpu():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def carried(function: Callable[..., Result]) -> Callable[..., Result]:
    """A function for another thread, to be run once, in the context of this one: with its precision."""
    return functools.partial(contextvars.copy_context().run, function)


def in_threads(
    compute_fn: Callable[[Item], Result], items: Iterable[Item], *, threads: int | None = None
) -> Generator[Result, None, None]:
    """Compute several items at once.

    Closing the iterator, or an error, drops the items that have not begun.

    Args:
        compute_fn: runs in the threads; it waits for its arrays where they are to be computed there.
        items: its arguments.
        threads: how many, >= 1; by default `workers()`.

    Yields:
        The results, in the order of the items.

    Raises:
        ValueError: fewer than one thread.

    Example:
        >>> list(in_threads(lambda number: number**2, range(4), threads=2))
        [0, 1, 4, 9]
    """
    threads = workers() if threads is None else threads
    if threads < 1:
        raise ValueError(f"expected workers >= 1, got {threads}; leave it out for one per core")
    pool = ThreadPoolExecutor(threads)
    try:
        for future in [pool.submit(carried(compute_fn), item) for item in items]:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------- sizes of programs


def steps_in_one_program() -> bool:
    """Whether a descent's steps are scanned inside one program.

    Not on CPU, where XLA's gradients of convolutions inside a loop take up to 50 times as long.
    """
    return not is_cpu()


def models_abreast() -> bool:
    """Whether models of one structure take a training step, or answer images, in one program.

    Not on CPU, where stacked convolutions are slower than one after the other.
    """
    return not is_cpu()


def networks_at_once(bytes_each: int = 0) -> int:
    """Networks of one structure that take a training step together.

    Args:
        bytes_each: of intermediate arrays of one network's step.

    Returns:
        As many for each device as fit into a share of its memory, at least one.
    """
    return len(devices()) * max(1, search_bytes() // max(bytes_each, 1))


def coalitions_abreast() -> int:
    """Versions of a gated model in one batch, at most.

    On CPU two of them leave a core's cache and are slower together than one after the other: 1.5 to 2 times for
    ResNet-20 at 10 and at 100 images, whichever layers are folded (`experiments/bench_shapley.py --fold`).
    """
    return 1 if is_cpu() else np.iinfo(np.int32).max


def stamped_images_at_once(bytes_each: int = 0) -> int:
    """Stamped images in one step of one worker of a trigger search.

    On CPU a step's time is proportional to its images from a few on, and places left empty by classes that have stopped
    are wasted, so few classes at a time are best; on an accelerator the number bounds memory.

    Args:
        bytes_each: of intermediate arrays per image; 0 for little.

    Returns:
        As many for each device as fit into a share of its memory, at most 32 on CPU and 1024 elsewhere.
    """
    most, room = (32, search_bytes() // workers()) if is_cpu() else (1024, search_bytes())
    return len(devices()) * max(1, min(most, room // max(bytes_each, 1)))


def searches_at_once(program_bytes: int = 0) -> int:
    """Programs of a trigger search to run at once, each from a host thread of its own.

    Args:
        program_bytes: of one of them.

    Returns:
        On CPU as many as there are cores and room for, else 1; also 1 where a program runs on several devices, whose
        exchanges must come in one order.
    """
    if len(devices()) > 1:
        return 1
    return max(1, min(workers(), search_bytes() // max(program_bytes, 1)))


def search_bytes() -> int:
    """What intermediate arrays of a trigger search or of coalitions may take: on CPU in all, else on each device."""
    return 2**32


def checkpoints_at_once() -> int:
    """Rows of a stack that are scored together: one on CPU, where large networks are bound by memory."""
    return 1 if is_cpu() else 8


def stack_bytes() -> int:
    """Size of a stack of checkpoints, in bytes."""
    return 2**27 if is_cpu() else 2**28


def transfers() -> bool:
    """Whether arrays are copied to a device; if not, memory of a stack that is never written costs nothing."""
    return not is_cpu()
