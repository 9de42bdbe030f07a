"""A scan from what was named to rows of results; read from top to bottom."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from jaxguard.fleet import cluster, discovery
from jaxguard.fleet.chunks import is_given_up
from jaxguard.fleet.progress import State, Watch
from jaxguard.fleet.reading import Failure, Known
from jaxguard.fleet.scoring import Settings
from jaxguard.fleet.store import Row, Store, text
from jaxguard.fleet.stream import MEMORY, Scored, stream
from jaxguard.scores import weights


@dataclass(frozen=True)
class FleetScan:
    """What a scan saw.

    Attributes:
        rows: one per checkpoint, in the order of discovery.
        skipped: `(path, why)` of files nobody looked into.
        feature_names: by bucket.
        store: where the rows and their layers are kept.
        seconds: wall-clock time.
        bytes_read: of the checkpoints that were read.
        reused: checkpoints whose results an earlier scan had left.
    """

    rows: tuple[Row, ...]
    skipped: tuple[tuple[str, str], ...]
    feature_names: dict[str, tuple[str, ...]]
    store: Store
    seconds: float
    bytes_read: int
    reused: int


@contextlib.contextmanager
def scan(
    targets: Sequence[str],
    *,
    out: pathlib.Path | None = None,
    settings: Settings | None = None,
    shard: tuple[int, int] = (0, 1),
    memory: int = MEMORY,
    readers: int | None = None,
    address: str | None = None,
    watch: Watch | None = None,
) -> Iterator[FleetScan]:
    """Score every checkpoint that the targets mean, and that has not been scored before.

    Args:
        targets: files, folders, patterns, manifests, URLs; see `jaxguard.fleet.discovery`.
        out: folder of results, where a scan that was killed goes on; None for one that lasts as long as the context.
        settings: how checkpoints are scored.
        shard: `(i, n)`: the i-th of n parts.
        memory: bytes that stacks of checkpoints may take together, in each process.
        readers: threads that read, in each process.
        address: of the Ray cluster that does the work, see `jaxguard.fleet.cluster`; None for this process alone.
        watch: told how far the scan is.

    Yields:
        The scan.

    Raises:
        CheckpointError: a target cannot be listed. A bad checkpoint is a row with its error.
        FleetError: the results cannot be read or written.
    """
    settings = settings or Settings()
    with contextlib.ExitStack() as stack:
        folder = out or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxguard-")))
        yield _scanned(targets, Store(folder, fingerprint(settings)), settings, shard, memory, readers, address, watch)


def fingerprint(settings: Settings) -> str:
    """Name of the way checkpoints are scored: rows of equal ones can be compared."""
    told = json.dumps([weights.VERSION, asdict(settings)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _scanned(  # noqa: PLR0917  # the arguments of `scan`
    targets: Sequence[str],
    store: Store,
    settings: Settings,
    shard: tuple[int, int],
    memory: int,
    readers: int | None,
    address: str | None,
    watch: Watch | None,
) -> FleetScan:
    start = time.perf_counter()
    found = discovery.discover(targets, shard=shard, results=store.folder)
    before, names = store.rows(), {uri: text(uri) for uri in found.uris}
    known = {uri: before[name].stamp for uri, name in names.items() if name in before and not before[name].error}
    if address is None:
        results = stream(
            found.uris, settings, memory=memory, readers=readers, is_known=lambda uri, stamp: known.get(uri) == stamp
        )
    else:
        deadly = {
            uri: before[name].stamp for uri, name in names.items() if name in before and is_given_up(before[name].error)
        }
        results = cluster.stream(
            found.uris, settings, address=address, memory=memory, readers=readers, known=known | deadly
        )
    with contextlib.closing(results):
        state = keep(results, store, len(found.uris), watch, start=start)
    rows = store.rows()
    return FleetScan(
        rows=tuple(rows[name] for name in names.values()),
        skipped=found.skipped,
        feature_names=store.feature_names(),
        store=store,
        seconds=time.perf_counter() - start,
        bytes_read=state.bytes_read,
        reused=state.reused,
    )


def keep(
    results: Iterable[Scored | Known | Failure], store: Store, total: int, watch: Watch | None, *, start: float
) -> State:
    """Write results as they come.

    Args:
        results: of `stream`.
        store: where to.
        total: how many checkpoints there are.
        watch: told how far it is.
        start: `time.perf_counter()` when the scan began.

    Returns:
        The last state.
    """
    state = State(0, total, 0, 0, 0, 0.0)
    try:
        for result in results:
            count = len(result.files) if isinstance(result, Scored) else 1
            size = sum(file.stamp.size for file in result.files) if isinstance(result, Scored) else 0
            state = State(
                done=state.done + count,
                total=total,
                failed=state.failed + isinstance(result, Failure),
                reused=state.reused + isinstance(result, Known),
                bytes_read=state.bytes_read + size,
                seconds=time.perf_counter() - start,
            )
            if not isinstance(result, Known):
                store.add(result)
            if watch is not None:
                watch(state)
    finally:
        store.flush()
    return state
