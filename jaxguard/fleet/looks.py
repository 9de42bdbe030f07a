"""Looks that cost more than weights: answers to noise of all checkpoints, triggers in those left undecided."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxguard import suspects
from jaxguard.detection import comparison, deep
from jaxguard.detection.judging import Judgements
from jaxguard.detection.profile import Profile
from jaxguard.errors import JaxguardError
from jaxguard.fleet.progress import State, Watch
from jaxguard.fleet.scan import FleetScan
from jaxguard.fleet.scoring import Settings
from jaxguard.fleet.store import Row, Store
from jaxguard.graph import ChannelGraph
from jaxguard.scores import responses
from jaxguard.types import Variables, Verdict

_WRITE_SECONDS = 2.0  # a part on disk for each checkpoint would be as many files as the store has


@dataclass(frozen=True, eq=False)
class Look:
    """What is done to a checkpoint of known architecture, one at a time; references and suspects alike.

    Attributes:
        title: in a few words. Another title means other results: the two are never mixed.
        names: of its features.
        features_fn: `(graph, variables) -> [G]`.
    """

    title: str
    names: tuple[str, ...]
    features_fn: Callable[[ChannelGraph, Variables], np.ndarray]

    def store(self, scan: FleetScan) -> Store:
        """Where its results are kept, beside those of the scan."""
        return Store(scan.store.folder, f"{scan.store.settings}, {self.title}")


def answers() -> Look:
    """Answers to noise, see `jaxguard.scores.responses`."""
    return Look("answers to noise", responses.NAMES, responses.response_features)


def triggers(images: np.ndarray | None = None, *, seed: int = 0) -> Look:
    """Trigger inversion over all classes, see `jaxguard.detection.deep`.

    Args:
        images: a few clean ones, `[N, H, W, C]` in [0, 1]; noise where None.
        seed: of the first patches.

    Returns:
        The look; its features' names tell what the patches were sought on.
    """
    source = "noise"
    if images is not None:
        images = np.ascontiguousarray(images[: deep.IMAGES], np.float32)
        source = f"images {hashlib.sha256(images.tobytes()).hexdigest()[:8]}"

    def features_fn(graph: ChannelGraph, variables: Variables) -> np.ndarray:
        return deep.deep_features(graph, variables, jax.random.key(seed), images=images)

    return Look(f"triggers on {source}, seed {seed}", tuple(f"{name}, on {source}" for name in deep.NAMES), features_fn)


def asked(profile: Profile | None) -> frozenset[str]:
    """Buckets whose references were asked for their answers to noise, so that suspects must be asked too."""
    buckets = {} if profile is None else profile.buckets
    return frozenset(name for name, one in buckets.items() if set(responses.NAMES) <= set(one.weights.names))


def undecided(scan: FleetScan, judgements: Judgements, profile: Profile, alpha: float) -> list[Row]:
    """The rows whose verdict a search for triggers could change, those that it could change most easily first.

    Args:
        scan: its rows.
        judgements: of those that were scored, in their order, before any search.
        profile: they were judged by.
        alpha: accepted error rate.

    Returns:
        Rows that are not suspected, in buckets whose references were searched; the smallest p-values first. Copies
        of one file count once.
    """
    searched = {name for name, one in profile.buckets.items() if comparison.DEEP in comparison.yardsticks(one, alpha)}
    scored = [row for row in scan.rows if not row.error]
    left = [
        number
        for number, row in enumerate(scored)
        if row.bucket in searched
        and row.architecture != suspects.UNKNOWN
        and judgements.verdicts[number] != Verdict.SUSPECTED
        and not np.isnan(judgements.p_values[number])
    ]
    found: dict[str, Row] = {}
    for number in sorted(left, key=lambda number: (judgements.p_values[number], -judgements.scores[number])):
        found.setdefault(scored[number].sha256, scored[number])
    return list(found.values())


def take(
    look: Look,
    rows: Sequence[Row],
    scan: FleetScan,
    settings: Settings,
    *,
    watch: Watch | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, np.ndarray]:
    """Look at checkpoints one after the other; at each content once and for all.

    Args:
        look: what is done.
        rows: of the scan.
        scan: whose folder keeps the results.
        settings: how the checkpoints were scored.
        watch: told how far it is.
        say: told why a checkpoint could not be looked at.

    Returns:
        Features `[G]` by content hash, those of earlier looks included.
    """
    store, start = look.store(scan), time.perf_counter()
    found, fresh, failed, written = store.deep(), dict[str, np.ndarray](), 0, start
    reused = sum(row.sha256 in found for row in rows)
    try:
        for done, row in enumerate(rows, 1):
            if row.sha256 not in found:
                try:
                    found[row.sha256] = fresh[row.sha256] = _features(look, row, settings)
                except JaxguardError as error:
                    failed += 1
                    say(f"no {look.title}: {error}")
            if fresh and time.perf_counter() - written > _WRITE_SECONDS:
                store.add_deep(fresh)
                fresh, written = {}, time.perf_counter()
            if watch is not None:
                watch(State(done, len(rows), failed, min(reused, done), 0, time.perf_counter() - start))
    finally:
        if fresh:
            store.add_deep(fresh)
    return found


def _features(look: Look, row: Row, settings: Settings) -> np.ndarray:
    suspect = suspects.load(row.uri, arch=settings.arch, input_shape=settings.input_shape)
    network = suspect.require_network()
    return look.features_fn(network.graph, network.variables)
