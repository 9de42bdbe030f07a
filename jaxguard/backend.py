"""What depends on the backend that JAX found."""

import os

import jax


def workers() -> int:
    """Compiled programs to run at once, each from a host thread of its own, where there is a choice.

    On CPU the loops inside a program, and small operations, run on one core, so that several programs keep several
    cores busy; memory grows with their number. An accelerator runs one after the other anyway.

    Returns:
        The cores this process may use on CPU, else 1.
    """
    if jax.default_backend() != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
