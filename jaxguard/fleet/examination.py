"""One look after the other at models: the weights of all by an executor, then further looks at some."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxguard import execution
from jaxguard.detection.looks import Look
from jaxguard.detection.profile import Profile
from jaxguard.detection.records import Features, Record
from jaxguard.errors import DataError, JaxguardError
from jaxguard.fleet.discovery import Model
from jaxguard.fleet.executors import Executor, Stream
from jaxguard.fleet.local import Local, Results, Settings
from jaxguard.fleet.progress import Progress, Watch
from jaxguard.graph.pairing import Pairing
from jaxguard.suspects import UNKNOWN, ModelOptions
from jaxguard.types import Finding, LayerSummary

if TYPE_CHECKING:
    from jaxguard.training import Progress as Descending

FEW = 16
"""Checkpoints up to which a scan stays in this process, one after the other, and keeps the scores of all channels."""

_WRITE_SECONDS = 2.0  # a Parquet part for each checkpoint would be as many files as the store has


@dataclass(frozen=True)
class Listener:
    """Receives the progress of a scan.

    Attributes:
        watch: `title -> context manager` of what is called with the progress.
        say: called with remarks.
        steps: `title -> context manager` of the progress of one long step, or None.
        look: called with the findings of the cheap looks, before triggers are searched.
    """

    watch: Callable[[str], AbstractContextManager[Watch]] = lambda _: contextlib.nullcontext(lambda _: None)
    say: Callable[[str], Any] = lambda _: None
    steps: Callable[[str], AbstractContextManager[Descending | None]] = lambda _: contextlib.nullcontext()
    look: Callable[[Sequence[Finding]], Any] = lambda _: None


@dataclass(eq=False)
class Examination:
    """Models, and what is known of each so far.

    Attributes:
        models: in the order they were named or found.
        records: one for each.
        owners: whose result each record is, and where further looks are kept.
        listener: receives the progress.
    """

    models: Sequence[Model]
    records: list[Record]
    owners: list[Results]
    listener: Listener

    @property
    def results(self) -> list[Results]:
        """The distinct owners."""
        return list(dict.fromkeys(self.owners))

    def layers(self, hashes: Collection[str]) -> dict[str, tuple[LayerSummary, ...]]:
        """Layers by content hash, where records do not hold them."""
        return {content: layers for one in self.results for content, layers in one.layers(hashes).items()}

    def runnable(self) -> list[int]:
        """Models that were scored and whose function is known, so that other looks are possible."""
        return [k for k, one in enumerate(self.records) if not one.error and one.provenance.architecture != UNKNOWN]

    def take(self, look: Look, numbers: Sequence[int]) -> None:
        """Look at some models, one after the other, and at each content once and for all.

        Args:
            look: what is done. One that fails leaves undefined features and a remark.
            numbers: which models.
        """
        if not numbers or look.features_fn is None:
            return
        start = written = time.perf_counter()
        found = {one: one.look(look.title) for one in self.results}
        reused, failed = sum(self.records[k].content in found[self.owners[k]] for k in numbers), 0
        fresh: dict[Results, dict[str, np.ndarray]] = {one: {} for one in self.results}
        try:
            with self.listener.watch(look.title) as watch:
                for done, k in enumerate(numbers, 1):
                    content, owner = self.records[k].content, self.owners[k]
                    if content not in found[owner]:
                        try:
                            values = look.features_fn(self.models[k].load().require_network())
                            found[owner][content] = fresh[owner][content] = values
                        except JaxguardError as error:
                            failed += 1
                            self.listener.say(f"no {look.title}: {error}")
                    values = found[owner].get(content, np.full(len(look.names), np.nan, np.float32))
                    self.records[k] = self.records[k].with_features(look.name, Features(look.names, values))
                    if time.perf_counter() - written > _WRITE_SECONDS:
                        _write(look, fresh)
                        written = time.perf_counter()
                    watch(Progress(done, len(numbers), failed, min(reused, done), 0, time.perf_counter() - start))
        finally:
            _write(look, fresh)


def compared(content_hash: str | None, profile: Profile | None, *, few: bool) -> bool:
    """Whether contents are named by SHA-256, so that they can be compared with those of other scans.

    Args:
        content_hash: what was asked for, `sha256` or `blake3`, which takes a quarter of the time.
        profile: whose references they are compared with; those may be known by SHA-256 alone.
        few: whether they are few, or triggers are searched in some: searches are compared by SHA-256.

    Returns:
        Whether they are.

    Raises:
        DataError: they will be compared, and BLAKE3 was asked for, or another hash.
    """
    if content_hash not in (None, "sha256", "blake3"):
        raise DataError(f"expected sha256 or blake3, got {content_hash!r} in scan(content_hash=...)")
    is_needed = few or (profile is not None and profile.needs_sha256)
    if is_needed and content_hash == "blake3":
        raise DataError(
            f"expected contents named by sha256 in trigger searches, of up to {FEW} checkpoints, and with a profile "
            "that has no BLAKE3 of its references, got blake3 in scan(content_hash=...); leave it out (--hash)"
        )
    return is_needed or content_hash == "sha256"


@contextlib.contextmanager
def examined(
    models: Sequence[Model],
    executor: Executor | None,
    *,
    pairing: Pairing,
    listener: Listener,
    known: Collection[str] = (),
    compares: bool = True,
    title: str = "scanning",
) -> Iterator[Examination]:
    """Examine models by their weights; those that are opened alike are scored together.

    Args:
        models: what is scored.
        executor: who scores checkpoints; None for what suits their number and size. Live networks are always scored in
            this process.
        pairing: see `jaxguard.graph.pairing.layers`.
        listener: receives the progress.
        known: cohorts of the profile that will judge them.
        compares: whether contents are compared with those of other scans, which name them by SHA-256.
        title: of the progress.

    Yields:
        The examination; its results last as long as the context.
    """
    places: dict[tuple[bool, ModelOptions], list[int]] = {}
    for k, model in enumerate(models):
        places.setdefault((model.suspect is not None, model.options), []).append(k)
    records: dict[int, Record] = {}
    owners: dict[int, Results] = {}
    with contextlib.ExitStack() as stack:
        for (is_live, options), numbers in places.items():
            chosen = Local() if is_live else executor or _suitable([models[k].name for k in numbers])
            members: list[Any] = [models[k].suspect or models[k].name for k in numbers]
            with listener.watch(title) as watch:
                run = chosen.run(members, Settings(options, pairing), watch=watch, known=known, compares=compares)
                results = stack.enter_context(run)
            records |= dict(zip(numbers, results.records, strict=True))
            owners |= dict.fromkeys(numbers, results)
        order = range(len(models))
        yield Examination(models, [records[k] for k in order], [owners[k] for k in order], listener)


def _suitable(names: Sequence[str]) -> Executor:
    """One after the other where there are few and they fit the memory."""
    size = sum(os.path.getsize(name) for name in names[:FEW] if os.path.isfile(name))
    return Local() if len(names) <= FEW and size <= execution.staging_bytes() else Stream()


def _write(look: Look, fresh: dict[Results, dict[str, np.ndarray]]) -> None:
    for one, features in fresh.items():
        if features:
            one.add_look(look.title, features)
            fresh[one] = {}
