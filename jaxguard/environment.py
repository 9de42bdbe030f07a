"""What a report must name for its figures to be repeated."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from typing import Any


def environment(**more: Any) -> dict[str, str]:
    """Versions, backend, precision, machine, date.

    Args:
        **more: further entries, such as seeds.

    Returns:
        Name -> value.
    """
    import jax

    from jaxguard import programs

    packages = ("jaxguard", "jax", "flax", "numpy")
    device = jax.devices()[0]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "precision": programs.numerics().precision,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        **{name: str(value) for name, value in more.items()},
    }
