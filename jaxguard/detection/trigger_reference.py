"""The reference networks that ship with the package: how far one class leads in networks known to be clean.

`trigger_reference.json` beside this file was made by `experiments/universal_reference.py`; `jaxguard calibrate
--extend` writes another with a user's own networks added:

    {"schema": "jaxguard.trigger_reference/2",
     "source": {"experiment": "universal_reference.py", "jax": "0.10.1", "date": "2026-11-30", ...},
     "networks": [{"sha256": "...", "architecture": "resnet20", "data": "cifar10", "classes": 10,
                   "kinds": {"patch": {"version": 1, "gap": 0.39}, ...}}, ...],
     "rates": [{"alpha": 0.05, "kinds": {"patch": 1}, "false_alarms": {"found": 2, "of": 60},
                "power": {"badnets": {"found": 9, "of": 10}, ...}}, ...]}

Gaps compare with those of the same kind of trigger and version of its search alone. Kinds that allow no statement on a
network have no gap there, as such suspects get no verdict by them. `rates` are those of networks that no choice had
seen, by the kinds that were joined; they may be missing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxguard import checkpoints, conformal
from jaxguard.errors import DataError
from jaxguard.types.searches import KindResult, TriggerSearch

SCHEMA = "jaxguard.trigger_reference/2"

FILE = pathlib.Path(__file__).with_name("trigger_reference.json")
"""The one that ships with the package."""


@dataclass(frozen=True)
class ReferenceNetwork:
    """A network known to be clean.

    Attributes:
        sha256: content hash of its checkpoint.
        architecture: specification such as `resnet20`.
        gaps: `{kind: (version of its search, G)}`.
        about: what else its file says of it: data, classes, shape, regime.
    """

    sha256: str
    architecture: str
    gaps: Mapping[str, tuple[int, float]]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The architecture without its options."""
        return self.architecture.partition(":")[0]

    def gap_of(self, result: KindResult) -> float:
        """Its gap by the kind and version of a result; NaN where it has none."""
        version, gap = self.gaps.get(result.kind, (None, math.nan))
        return gap if version == result.version else math.nan


@dataclass(frozen=True)
class Rates:
    """What the rule did to networks that no choice had seen.

    Attributes:
        alpha: accepted error rate.
        kinds: `{kind: version}` that were joined.
        false_alarms: clean networks that were suspected, and how many there were.
        power: `{attack: (suspected, how many)}` of backdoored ones.
    """

    alpha: float
    kinds: Mapping[str, int]
    false_alarms: tuple[int, int]
    power: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Comparison:
    """A suspect among the references.

    Attributes:
        p_value: over all kinds; NaN where none compares.
        lead: the kind that stands out most; empty where none compares.
        height: how far it does: 0 is the median of the references, 1 their upper tenth; NaN where none compares.
        by_kind: `{kind: p-value}` of each alone.
        number: of the references, those of the suspect's family, and all.
        unknown: kinds with a gap to which no reference has one of the same version.
    """

    p_value: float
    lead: str
    height: float
    by_kind: Mapping[str, float]
    number: tuple[int, int]
    unknown: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TriggerReference:
    """Gaps of networks known to be clean.

    Attributes:
        networks: the references.
        rates: measured ones.
        source: where they are from, as the file says.
        digest: of the file, hexadecimal.
    """

    networks: tuple[ReferenceNetwork, ...]
    rates: tuple[Rates, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""

    def compare(self, results: Sequence[KindResult], sha256: str = "", architecture: str = "") -> Comparison:
        """How often one class of a clean network is as far ahead, by any kind of trigger.

        Args:
            results: of a suspect, one per kind.
            sha256: its content hash; it is not compared with itself.
            architecture: its specification, to count references that are alike.

        Returns:
            The p-value, see `jaxguard.conformal.joined`, and what it rests on.

        Example:
            >>> networks = [ReferenceNetwork(f"{k}", "mlp", {"patch": (1, k / 10)}) for k in range(9)]
            >>> TriggerReference(tuple(networks)).compare([KindResult("patch", 1, 0.75)]).p_value
            0.2
        """
        others = [one for one in self.networks if one.sha256 != sha256]
        stated = [one for one in results if not one.problem and math.isfinite(one.gap)]
        table = {one.kind: [other.gap_of(one) for other in others] for one in stated}
        known = {kind: gaps for kind, gaps in table.items() if not np.isnan(gaps).all()}
        unknown = tuple(kind for kind in table if kind not in known)
        if not known:
            return Comparison(math.nan, "", math.nan, {}, (0, 0), unknown)
        own = {one.kind: one.gap for one in stated if one.kind in known}
        gaps = np.array(list(known.values())).T
        p_value, heights = conformal.joined(list(own.values()), gaps)
        by_kind = {kind: conformal.joined([own[kind]], np.array([known[kind]]).T)[0] for kind in own}
        counted = [one for one, row in zip(others, gaps, strict=True) if not np.isnan(row).all()]
        alike = sum(one.family == architecture.partition(":")[0] for one in counted)
        lead = int(heights.argmax())
        return Comparison(p_value, list(own)[lead], float(heights[lead]), by_kind, (alike, len(counted)), unknown)

    def rates_of(self, results: Sequence[KindResult]) -> Rates | None:
        """Rates that were measured with the kinds of a search; None where they were not."""
        kinds = {one.kind: one.version for one in results}
        return next((one for one in self.rates if one.kinds == kinds), None)


def load(path: pathlib.Path | None = None) -> TriggerReference | None:
    """Read a reference file.

    Args:
        path: of the file; None for the one that ships with the package.

    Returns:
        The reference; None where there is no such file.

    Raises:
        DataError: no such file format.
    """
    path = FILE if path is None else path
    if not path.exists():
        return None
    text = checkpoints.text_of(path)
    try:
        return _parsed(json.loads(text), hashlib.sha256(text.encode()).hexdigest())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: expected a reference of schema {SCHEMA!r}, got {error!r}; make it with "
            "experiments/universal_reference.py or `jaxguard calibrate --extend`"
        ) from error


def opened(reference: TriggerReference | str | os.PathLike[str] | None) -> TriggerReference | None:
    """A reference, the one of a file, or the one that ships with the package.

    Args:
        reference: itself, its path, or None for the one that ships.

    Raises:
        DataError: no such file, or no such format.
    """
    if isinstance(reference, TriggerReference):
        return reference
    if reference is None:
        return load()
    if (found := load(pathlib.Path(reference))) is None:
        raise DataError(
            f"{os.fspath(reference)}: expected a reference made by `jaxguard calibrate --extend`, got no such file; "
            "check the path"
        )
    return found


def _parsed(document: Mapping[str, Any], digest: str) -> TriggerReference:
    if document["schema"] != SCHEMA:
        raise ValueError(f"schema {document['schema']!r}")
    networks = []
    for one in document["networks"]:
        gaps = {str(kind): (int(known["version"]), float(known["gap"])) for kind, known in one["kinds"].items()}
        if not all(math.isfinite(gap) for _, gap in gaps.values()):
            raise ValueError(f"a gap that is no number in network {one['sha256']!r}")
        about = {name: value for name, value in one.items() if name not in ("sha256", "architecture", "kinds")}
        networks.append(ReferenceNetwork(str(one["sha256"]), str(one["architecture"]), gaps, about))
    rates = tuple(
        Rates(
            float(one["alpha"]),
            {str(kind): int(version) for kind, version in one["kinds"].items()},
            _counts(one["false_alarms"]),
            {str(attack): _counts(counts) for attack, counts in one["power"].items()},
        )
        for one in document.get("rates", ())
    )
    return TriggerReference(tuple(networks), rates, dict(document["source"]), digest)


def extended(reference: TriggerReference | None, searches: Mapping[str, tuple[str, TriggerSearch]]) -> TriggerReference:
    """A reference with a user's own clean networks.

    Args:
        reference: to add to; None for none.
        searches: content hash -> architecture and search of a network known to be clean. One that is there already is
            replaced.

    Returns:
        All of them; networks whose search allows no statement are left out. The rates stay those of the networks that
        were there: what more references of a user's own kind do to them was not measured.

    Example:
        >>> result = KindResult("patch", 2, gap=0.1)
        >>> more = extended(TriggerReference(()), {"ab": ("mlp", TriggerSearch(results=(result,)))})
        >>> more.networks[0].gaps
        {'patch': (2, 0.1)}
    """
    own = []
    for sha256, (architecture, found) in searches.items():
        stated = [] if found.problem else [one for one in found.results if not one.problem and math.isfinite(one.gap)]
        about = {"classes": found.num_classes, "shape": list(found.shape), "source": found.source}
        if stated:
            own.append(
                ReferenceNetwork(sha256, architecture, {one.kind: (one.version, one.gap) for one in stated}, about)
            )
    kept = [one for one in (reference.networks if reference else ()) if one.sha256 not in searches]
    source = dict(reference.source) if reference else {}
    source["own"] = source.get("own", 0) + len(own)
    return TriggerReference((*kept, *own), reference.rates if reference else (), source)


def to_json(reference: TriggerReference) -> str:
    """As `load` reads it, a network a line."""
    networks = [
        {
            "sha256": one.sha256,
            "architecture": one.architecture,
            **one.about,
            "kinds": {kind: {"version": version, "gap": gap} for kind, (version, gap) in one.gaps.items()},
        }
        for one in reference.networks
    ]
    rates = [
        {
            "alpha": one.alpha,
            "kinds": dict(one.kinds),
            "false_alarms": _named(one.false_alarms),
            "power": {attack: _named(counts) for attack, counts in one.power.items()},
        }
        for one in reference.rates
    ]
    document = {"schema": SCHEMA, "source": dict(reference.source), "rates": rates}
    lines = ",\n".join(json.dumps(one, allow_nan=False) for one in networks)
    return f'{json.dumps(document, allow_nan=False)[:-1]}, "networks": [\n{lines}\n]}}\n'


def _named(counts: tuple[int, int]) -> dict[str, int]:
    return {"found": counts[0], "of": counts[1]}


def _counts(found: Mapping[str, Any]) -> tuple[int, int]:
    return int(found["found"]), int(found["of"])
