"""The reference networks that ship with the package: how far one class leads in networks known to be clean.

`trigger_reference.json` beside this file, if there is one, was made by `experiments/universal_reference.py`:

    {"schema": "jaxguard.trigger_reference/1",
     "search": 1,                      # version of the search for patches; others do not compare
     "networks": [{"sha256": "...", "architecture": "resnet20", "data": "cifar10", "classes": 10, "gap": 0.39}, ...],
     "power": {"found": 52, "of": 60}}  # backdoored networks that no choice had seen, at alpha = 0.05; may be missing

Networks whose search allowed no statement (`problem`) have no gap and are left out, as such suspects get no verdict.
The p-value of a suspect is conformal: the share of networks, itself included, whose gap is as large.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxguard import checkpoints, conformal
from jaxguard.errors import DataError
from jaxguard.inversion.kinds import KINDS

SCHEMA = "jaxguard.trigger_reference/1"

FILE = pathlib.Path(__file__).with_name("trigger_reference.json")
"""The one that ships with the package."""


@dataclass(frozen=True, eq=False)
class TriggerReference:
    """Gaps of networks known to be clean.

    Attributes:
        gaps: `{content hash: gap}`.
        power: backdoored networks found at alpha = 0.05, and how many there were; (0, 0) where it was not measured.
        digest: of the file, hexadecimal.
    """

    gaps: dict[str, float]
    power: tuple[int, int]
    digest: str

    def p_value(self, gap: float, sha256: str = "") -> tuple[float, int]:
        """How often a clean network's leading class is as far ahead.

        Args:
            gap: of a suspect.
            sha256: its content hash; it is not compared with itself.

        Returns:
            The p-value, and the number of networks it rests on.

        Example:
            >>> TriggerReference({"a": 0.1, "b": 0.9, "c": 0.4}, (0, 0), "").p_value(0.5)
            (0.5, 3)
        """
        others = [value for known, value in self.gaps.items() if known != sha256]
        return float(conformal.p_values([gap], others)[0]), len(others)


def load(path: pathlib.Path = FILE) -> TriggerReference | None:
    """Read a reference file.

    Args:
        path: of the file.

    Returns:
        The reference; None where there is no such file, or it was made by another version of the search.

    Raises:
        DataError: no such file format.
    """
    if not path.exists():
        return None
    text = checkpoints.text_of(path)
    try:
        found: dict[str, Any] = json.loads(text)
        if found["schema"] != SCHEMA:
            raise ValueError(f"schema {found['schema']!r}")
        gaps = {str(one["sha256"]): float(one["gap"]) for one in found["networks"] if one["gap"] is not None}
        power = found.get("power", {"found": 0, "of": 0})
        counts = int(power["found"]), int(power["of"])
        version = int(found["search"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected a reference of schema {SCHEMA!r}, got {error!r}; make it with "
            "experiments/universal_reference.py"
        ) from error
    if version != KINDS["patch"].version or not np.isfinite(list(gaps.values())).all():
        return None
    return TriggerReference(gaps, counts, hashlib.sha256(text.encode()).hexdigest())
