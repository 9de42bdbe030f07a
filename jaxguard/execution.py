"""What depends on the machine: host threads, devices, and how much work goes into one program.

Nothing else in jaxguard asks JAX for its backend. All of this is decided before anything is traced; a kernel that needs
another program on another platform says so with `jax.lax.platform_dependent`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import pathlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Aim(NamedTuple):
    devices: tuple[Any, ...]
    memory: int


_aims: list[_Aim] = []
"""Devices that are decided for instead of those at hand: the last ones."""

UNKNOWN_MEMORY = 16 * 10**9
"""Bytes of a device that does not say how much memory it has: those of a TPU v5e, the smallest in use."""


@contextlib.contextmanager
def aimed_at(devices: Sequence[Any], *, memory: int = UNKNOWN_MEMORY) -> Iterator[None]:
    """Decide for devices that are not at hand, so that programs can be compiled for them ahead of time.

    Programs that were traced before stay as they are: aim first, and at one kind of device in a process.

    Args:
        devices: of one process, such as those of `jax.experimental.topologies.get_topology_desc`; at least one.
        memory: bytes of each.

    Yields:
        Nothing; within the context nothing can be run.
    """
    _aims.append(_Aim(tuple(devices), memory))
    try:
        yield
    finally:
        _aims.pop()


_own: contextvars.ContextVar[Any] = contextvars.ContextVar("jaxguard.device", default=None)


@contextlib.contextmanager
def confined_to(device: Any) -> Iterator[None]:
    """Run on one device alone, in this thread and those that it starts; others may run on the others meanwhile.

    Args:
        device: one of `devices()`.

    Yields:
        Nothing; it holds within the context.
    """
    with held(_own, device), jax.default_device(device):
        yield


@contextlib.contextmanager
def held(variable: contextvars.ContextVar[Item], value: Item) -> Iterator[None]:
    """A context variable has a value within the context, in this thread and those that `in_threads` starts."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def devices() -> tuple[Any, ...]:
    """The devices of this process, or those that are aimed at, or the one that this thread is confined to."""
    if _own.get() is not None:
        return (_own.get(),)
    return _aims[-1].devices if _aims else tuple(jax.local_devices())


def is_cpu() -> bool:
    """Whether programs run on the host's own cores."""
    return platform() == "cpu"


def platform() -> str:
    """What programs run on: `cpu`, `gpu` or `tpu`."""
    return _aims[-1].devices[0].platform if _aims else jax.default_backend()


# ---------------------------------------------------------------- memory


def device_bytes() -> int:
    """Memory of one device; the host's on CPU."""
    if _aims:
        return _aims[-1].memory
    if is_cpu():
        return host_bytes()
    return int((jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", UNKNOWN_MEMORY))


@functools.cache
def host_bytes() -> int:
    """Memory of the machine, or of the container that this process runs in."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in map(pathlib.Path, ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(path.read_text()))
    return min(limits)


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
    """A function for another thread, to be run once, in the context of this one: its precision, and its device."""
    # JAX's own settings do not follow to other threads.
    confined = function if _own.get() is None else jax.default_device(_own.get())(function)
    return functools.partial(contextvars.copy_context().run, confined)


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
    """What intermediate arrays of a search, of coalitions or of training may take: on CPU in all, else on each device.

    A quarter of the memory, as what is counted beforehand is less than what a compiled program takes: coalitions of
    PreActResNet-18 take 14 GB of a TPU that has 16 (`experiments/results/tpu.json`). On CPU no more than 4 GiB.
    """
    return min(2**32, device_bytes() // 4) if is_cpu() else device_bytes() // 4


def checkpoints_at_once() -> int:
    """Rows of a stack that are scored together: one on CPU, where large networks are bound by memory."""
    return 1 if is_cpu() else 8


def cuts_plain_numbers() -> bool:
    """Whether a leaf is cut out of a row as plain numbers, and shaped only where it is used.

    A TPU pads the shapes of small kernels to many times their size; on CPU shapes cost nothing.
    """
    return not is_cpu()


def stack_bytes() -> int:
    """Size of a stack of checkpoints, in bytes: on an accelerator a small share of each device's memory."""
    return 2**27 if is_cpu() else len(devices()) * min(device_bytes() // 64, 2**29)


def staging_bytes() -> int:
    """What stacks of checkpoints may take together on the host: three for each of the devices, or 768 MiB.

    Never more than a quarter of the host's memory.
    """
    return min(max(3 * 2**28, 0 if is_cpu() else 3 * stack_bytes()), host_bytes() // 4)


def transfers() -> bool:
    """Whether arrays are copied to a device; if not, memory of a stack that is never written costs nothing."""
    return not is_cpu()
