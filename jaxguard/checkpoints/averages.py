"""Averages of a model's weights, and tensors that are the same memory: what stands for what."""

import collections
import re
from collections.abc import Hashable, Mapping, Sequence

from jaxguard.checkpoints import header, training_state
from jaxguard.checkpoints.training_state import Path
from jaxguard.errors import CheckpointError

RAW, EMA = "raw", "ema"
"""What may be asked for beside names."""


def mirrored(paths: Sequence[Path], prefix: Path, names: Mapping[Path, str]) -> dict[Path, str]:
    """Which of a group's arrays are averages of which leaf, by the names behind any number of wrappers."""
    wanted: dict[str, str] = {}
    for name in names.values():
        plain = re.sub(r"[^a-z0-9]", "", name.lower())
        wanted.setdefault(plain, name)
        head, _, rest = re.sub(r"[/.]", ".", name).partition(".")
        if head in ("params", "model", "module", "net", "network", "student", "online"):
            wanted.setdefault(re.sub(r"[^a-z0-9]", "", rest.lower()), name)
    best: dict[Path, str] = {}
    parts = {path: ".".join(path)[len(".".join(prefix)) + 1 :].split(".") for path in paths}
    for skipped in range(3):
        found = {}
        for path, rest in parts.items():
            plain = re.sub(r"[^a-z0-9]", "", "".join(rest[skipped:]).lower())
            if len(rest) > skipped and plain in wanted:
                found[path] = wanted[plain]
        if len(found) > len(best):
            best = found
    return best


def chosen(weights: str | None, averages: Mapping[str, object], root: Path, given: str) -> str:
    """The average that was asked for, or raw."""
    if weights in (None, RAW):
        return RAW
    if weights in averages:
        return str(weights)
    if weights == EMA and len(averages) == 1:
        return next(iter(averages))
    if weights == ".".join(root) or weights in root or (weights == EMA and any(map(training_state.is_average, root))):
        return RAW
    known = ", ".join([RAW, *map(header.shown, averages)])
    raise CheckpointError(
        f"{given}: expected weights that the file holds ({known}), got no {header.shown(weights)}; pass one of these "
        "as weights, or the name of a group of arrays"
    )


def aliases(places: Mapping[str, tuple[Hashable, ...]]) -> dict[str, tuple[str, ...]]:
    """Leaf and other names of it; a leaf goes by its name under the prefix that has the most leaves."""
    groups: dict[tuple[Hashable, ...], list[str]] = {}
    for name, place in places.items():
        groups.setdefault(place, []).append(name)
    if len(groups) == len(places):
        return {}
    covered = collections.Counter(
        prefix for group in groups.values() for prefix in {re.split(r"[./]", name, maxsplit=1)[0] for name in group}
    )

    order = {name: number for number, name in enumerate(places)}

    def rank(name: str) -> tuple[int, int]:
        return -covered[re.split(r"[./]", name, maxsplit=1)[0]], order[name]

    found = {}
    for group in groups.values():
        if len(group) > 1:
            first = min(group, key=rank)
            found[first] = tuple(name for name in group if name != first)
    return found
