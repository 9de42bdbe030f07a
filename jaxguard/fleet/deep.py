"""The second look: triggers are searched in the checkpoints that their weights leave in doubt, within a budget."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxguard import suspects
from jaxguard.detection import deep
from jaxguard.detection.judging import Judgements
from jaxguard.errors import JaxguardError
from jaxguard.fleet.progress import State, Watch
from jaxguard.fleet.scan import FleetScan
from jaxguard.fleet.scoring import Settings
from jaxguard.fleet.store import Row, Store


@dataclass(frozen=True, eq=False)
class Search:
    """How triggers are searched; references and suspects must be searched alike.

    Attributes:
        images: a few clean ones, `[N, H, W, C]` in [0, 1]; noise where None.
        seed: of the first patches.
    """

    images: np.ndarray | None = None
    seed: int = 0

    @functools.cached_property
    def source(self) -> str:
        """What the patches are sought on, in a word."""
        if self.images is None:
            return "noise"
        return f"images {hashlib.sha256(np.ascontiguousarray(self.images[: deep.IMAGES]).tobytes()).hexdigest()[:8]}"

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features; those of another search are called otherwise, so that the two are never compared."""
        return tuple(f"{name}, on {self.source}" for name in deep.NAMES)

    def store(self, scan: FleetScan) -> Store:
        """Where the results of this search are kept, beside those of the scan."""
        return Store(scan.store.folder, f"{scan.store.settings}, {self.source}, {self.seed}")


def found_before(search: Search, scan: FleetScan) -> dict[str, np.ndarray]:
    """Features of this search that are there already, by content hash."""
    return search.store(scan).deep()


def most_suspicious(scan: FleetScan, judgements: Judgements, budget: int) -> list[Row]:
    """The rows that a search should look at first.

    Args:
        scan: its rows.
        judgements: of those that were scored, in their order.
        budget: rows at most.

    Returns:
        Rows of known architecture, the smallest p-values first, the highest z-scores where there are none.
    """
    scored = [row for row in scan.rows if not row.error]

    def doubt(number: int) -> tuple[float, float]:
        p_value = judgements.p_values[number]
        return (np.inf if np.isnan(p_value) else p_value, -scored[number].z)

    ranked = [scored[number] for number in sorted(range(len(scored)), key=doubt)]
    return [row for row in ranked if row.architecture != suspects.UNKNOWN][:budget]


def search(
    rows: Sequence[Row],
    scan: FleetScan,
    search: Search,
    settings: Settings,
    *,
    watch: Watch | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Mapping[str, np.ndarray]:
    """Search triggers, all classes of a checkpoint at once; each content is searched once and for all.

    Args:
        rows: of the scan.
        scan: whose store keeps the results.
        search: how.
        settings: how the checkpoints were scored.
        watch: told how far it is.
        say: told why a checkpoint could not be searched.

    Returns:
        Features `[G]` by content hash, those found before included.
    """
    store, start = search.store(scan), time.perf_counter()
    found, failed = store.deep(), 0
    reused = sum(row.sha256 in found for row in rows)
    for done, row in enumerate(rows, 1):
        if row.sha256 not in found:
            try:
                suspect = suspects.load(row.uri, arch=settings.arch, input_shape=settings.input_shape)
                if suspect.graph is None:
                    raise JaxguardError(f"{row.uri}: expected a known architecture, found none; pass --arch")
                features = deep.deep_features(
                    suspect.graph, suspect.variables, jax.random.key(search.seed), images=search.images
                )
                store.add_deep({row.sha256: features})
                found[row.sha256] = features
            except JaxguardError as error:
                failed += 1
                say(f"not searched: {error}")
        if watch is not None:
            watch(State(done, len(rows), failed, min(reused, done), 0, time.perf_counter() - start))
    return found
