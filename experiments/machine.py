"""What every result file names, so that its figures can be judged: machine, load, versions, date, command."""

import os
import pathlib
import platform
import shlex
import sys
from importlib import metadata
from typing import Any

from jaxguard.environment import environment as versions


def processor() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def environment(*packages: str, **more: Any) -> dict[str, Any]:
    """`jaxguard.environment` and what a timing needs besides.

    Args:
        *packages: whose versions matter here, besides jaxguard's, jax's, flax's and numpy's.
        **more: further entries, such as seeds.

    Returns:
        Name -> value, for JSON.
    """
    return {
        "command": shlex.join(["python", *map(_shown, sys.argv)]),
        **versions(),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "load_average": round(os.getloadavg()[0], 2),
        **{name: metadata.version(name) for name in packages},
        **more,
    }


def _shown(argument: str) -> str:
    """Folders of the machine at hand say nothing; the file in them does."""
    spec, colon, path = argument.rpartition(":")
    shown = pathlib.Path(path)
    if not shown.is_absolute():
        return argument
    return spec + colon + ("experiments/" if shown.suffix == ".py" else "") + shown.name
