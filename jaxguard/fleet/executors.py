"""Executors for many checkpoints: a stream that reads ahead, and a Ray cluster. Their records are those of `Local`.

    with executor.run(models, settings) as results:
        results.records

Only `Local` keeps the score of every channel.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxguard.fleet.local import Local, Results, Settings
from jaxguard.fleet.progress import Progress, Watch

if TYPE_CHECKING:
    from jaxguard.checkpoints.hashing import Algorithm
    from jaxguard.fleet.reading import Failure, Known, Stamp
    from jaxguard.fleet.store import Store
    from jaxguard.fleet.stream import Scored


@dataclass(frozen=True)
class Stream:
    """This process, reading ahead: checkpoints of one structure are scored together by one program.

    Attributes:
        out: folder of results, from which a stopped scan resumes; None for one that lasts as long as the scan.
        shard: `(i, n)`: the i-th of n parts, so that several processes divide a store.
        memory: bytes that stacks of checkpoints may take together, in each process; by default
            `jaxguard.execution.staging_bytes()`.
        readers: threads that read, in each process; four per core by default.
        verify_content: read every checkpoint, also those whose results are in `out` and whose size and time of change
            are the same, by which an unchanged one is recognised otherwise.
    """

    out: str | os.PathLike[str] | None = None
    shard: tuple[int, int] = (0, 1)
    memory: int | None = None
    readers: int | None = None
    verify_content: bool = False

    @contextlib.contextmanager
    def run(
        self,
        models: Sequence[str],
        settings: Settings,
        *,
        watch: Watch | None = None,
        known: Collection[str] = (),
        compares: bool = True,
    ) -> Iterator[Results]:
        """Score checkpoints that the folder holds no results of.

        Args:
            models: paths and URLs.
            settings: how they are scored.
            watch: called with the progress.
            known: cohorts of the profile that will judge them; makes no difference to checkpoints.
            compares: whether contents are compared with those of other scans, which name them by SHA-256.

        Yields:
            The results; a checkpoint that cannot be read or scored is a record with its error.

        Raises:
            FleetError: the results cannot be read or written.
        """
        from jaxguard.checkpoints import hashing
        from jaxguard.fleet.reading import Stamp
        from jaxguard.fleet.store import Store, text

        start = time.perf_counter()
        with contextlib.ExitStack() as stack:
            folder = self.out or stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxguard-"))
            store = Store(pathlib.Path(folder), settings.key)
            before, names = store.records(), {uri: text(uri) for uri in models}
            earlier = {uri: before[name] for uri, name in names.items() if name in before and not self.verify_content}
            # BLAKE3 takes a quarter of the time; a folder that has the other goes on with it.
            present: list[Algorithm] = [hashing.algorithm_of(one.content) for one in earlier.values() if one.content]
            algorithm: Algorithm = "sha256" if compares else present[0] if present else "blake3"
            # Results under another hash are not used again: their contents could not be compared with the new ones.
            earlier = {
                uri: one for uri, one in earlier.items() if one.error or hashing.algorithm_of(one.content) == algorithm
            }
            states = {uri: Stamp(one.provenance.size, one.modified) for uri, one in earlier.items()}
            errors = {uri: one.error for uri, one in earlier.items()}
            with contextlib.closing(self._results(models, settings, states, errors, algorithm)) as results:
                last = keep(results, store, len(models), watch, start=start)
            records = store.records()
            ordered = [records[name] for name in names.values()]
            yield Results(ordered, last.bytes_read, last.reused, store, isinstance(self, Ray))

    def _results(
        self,
        models: Sequence[str],
        settings: Settings,
        states: Mapping[str, Stamp],
        errors: Mapping[str, str],
        algorithm: Algorithm,
    ) -> Generator[Scored | Known | Failure, None, None]:
        """Every checkpoint once, those of unchanged state and without an error only by name."""
        from jaxguard.fleet.stream import stream

        return stream(
            models,
            settings,
            memory=self.memory,
            readers=self.readers,
            is_known=lambda uri, stamp: not errors.get(uri, "unknown") and states[uri] == stamp,
            algorithm=algorithm,
        )


@dataclass(frozen=True)
class Ray(Stream):
    """A Ray cluster, whose nodes must be able to read the checkpoints.

    Attributes:
        address: see `jaxguard.fleet.cluster.stream`.
    """

    address: str = "auto"

    def _results(
        self,
        models: Sequence[str],
        settings: Settings,
        states: Mapping[str, Stamp],
        errors: Mapping[str, str],
        algorithm: Algorithm,
    ) -> Generator[Scored | Known | Failure, None, None]:
        from jaxguard.fleet import cluster
        from jaxguard.fleet.chunks import is_given_up

        known = {uri: state for uri, state in states.items() if not errors[uri] or is_given_up(errors[uri])}
        return cluster.stream(
            models,
            settings,
            address=self.address,
            memory=self.memory,
            readers=self.readers,
            known=known,
            algorithm=algorithm,
        )


Executor = Local | Stream
"""Whatever scores the weights."""


def keep(
    results: Iterable[Scored | Known | Failure], store: Store, total: int, watch: Watch | None, *, start: float
) -> Progress:
    """Write results as they arrive.

    Args:
        results: of a stream.
        store: where to.
        total: how many checkpoints there are.
        watch: called with the progress.
        start: `time.perf_counter()` when the scan began.

    Returns:
        The last progress.
    """
    from jaxguard.fleet.reading import Failure, Known
    from jaxguard.fleet.stream import Scored

    state = Progress(0, total, 0, 0, 0, 0.0)
    try:
        for result in results:
            files = result.files if isinstance(result, Scored) else ()
            state = Progress(
                done=state.done + (len(files) or 1),
                total=total,
                failed=state.failed + isinstance(result, Failure),
                reused=state.reused + isinstance(result, Known),
                bytes_read=state.bytes_read + sum(file.stamp.size for file in files),
                seconds=time.perf_counter() - start,
            )
            if not isinstance(result, Known):
                store.add(result)
            if watch is not None:
                watch(state)
    finally:
        store.flush()
    return state
