"""The stream of results from a Ray cluster: workers on all its nodes, chunks of paths to them, results from them.

Paths and URLs travel, never tensors: every worker reads what it scores. A worker that dies, or its node, loses nothing:
its chunks are handed to others, and another worker takes its place while the node is there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jaxguard import checkpoints
from jaxguard.checkpoints.hashing import Algorithm
from jaxguard.errors import FleetError
from jaxguard.fleet.chunks import Chunks
from jaxguard.fleet.local import Settings
from jaxguard.fleet.pool import Pool
from jaxguard.fleet.reading import Failure, Known, Stamp, stamp_of
from jaxguard.fleet.stream import Scored
from jaxguard.fleet.worker import version

LOCAL = "local"
"""Address of a cluster that is started on this machine and ends with the scan."""

_OBJECTS = 100 * 2**20  # bytes for what travels, in a cluster of our own
_STATS = 16  # threads that look whether files have changed
_CONNECT_SECONDS = 10.0


def stream(
    uris: Sequence[str],
    settings: Settings,
    *,
    address: str,
    memory: int | None = None,
    readers: int | None = None,
    known: Mapping[str, Stamp] | None = None,
    algorithm: Algorithm = "sha256",
) -> Generator[Scored | Known | Failure, None, None]:
    """Score checkpoints on a cluster.

    Args:
        uris: paths that all nodes can read, and URLs.
        settings: how they are scored.
        address: `auto` for the cluster this machine belongs to, `local` for one of its own, `host:port`,
            `ray://host:port`. A program that is connected to Ray already stays with its cluster.
        memory: bytes that stacks may take together, per worker; by default what suits its machine.
        readers: threads that read, per worker.
        known: state of checkpoints of which there are results, or that workers were lost with; zeros for a URL of the
            latter, which nobody downloads to see whether it has changed.
        algorithm: what contents are named by.

    Yields:
        Every checkpoint once, scored, known or failed, in an order of the cluster's own.

    Raises:
        FleetError: there is no such cluster, or none of its nodes can work.
    """
    known = known or {}
    fresh = []
    with ThreadPoolExecutor(_STATS, "stat") as threads:
        for uri, is_done in zip(uris, threads.map(lambda uri: _is_unchanged(uri, known), uris), strict=True):
            if is_done:
                yield Known(uri)
            else:
                fresh.append(uri)
    if not fresh:
        return
    with _connected(address) as ray:
        pool = Pool(ray, (version(), os.getcwd(), settings, memory, readers, algorithm))
        chunks = Chunks(fresh)
        try:
            while chunks or pool.is_busy:
                pool.grow()
                pool.hand_out(chunks, known)
                yield from pool.results(chunks)
        finally:
            pool.close()


def _is_unchanged(uri: str, known: Mapping[str, Stamp]) -> bool:
    """Whether the state of the file is enough to tell; a worker checks it again."""
    try:
        if checkpoints.is_url(uri):
            return known.get(uri) == Stamp(0, 0)
        return uri in known and stamp_of(uri) == known[uri]
    except OSError:
        return False


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster."""
    try:
        import ray
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise FleetError(f"--ray {address}: expected Ray, got {error}; pip install 'jaxguard[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    own: dict[str, Any] = {}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own = {"include_dashboard": False, "object_store_memory": _OBJECTS}
    try:
        _probe(address)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, RuntimeError, ValueError) as error:
        raise FleetError(
            f"--ray {address}: expected a Ray cluster, got {error}; start one with `ray start --head`, set "
            "RAY_AUTH_MODE=token where it wants a token, or pass local"
        ) from error
    try:
        yield ray
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise FleetError(
            f"--ray {address}: expected a cluster that answers, got {error}; the results so far are kept, the same "
            "command goes on"
        ) from error
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Raises OSError at once where nobody listens; Ray would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
