"""The stream of results from a Ray cluster: workers on all its nodes, chunks of paths to them, results from them.

Paths and URLs travel, never tensors: every worker reads what it scores. A worker that dies, or its node, loses nothing:
its chunks are handed to others, and another worker takes its place while the node is there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from jaxguard import checkpoints
from jaxguard.errors import FleetError
from jaxguard.fleet.chunks import Chunk, Chunks
from jaxguard.fleet.reading import Failure, Known, Stamp, stamp_of
from jaxguard.fleet.scoring import Settings
from jaxguard.fleet.stream import MEMORY, Scored
from jaxguard.fleet.worker import Worker, version

LOCAL = "local"
"""Address of a cluster that is started on this machine and ends with the scan."""

_IN_FLIGHT = 2  # chunks of a worker: one is scored while the other waits at its door
_CPUS = 4  # cores of a worker where there is no accelerator
_STARTS = 3  # in vain, one after the other, after which a node is left alone
_STATS = 16  # threads that look whether files have changed
_LOOK_SECONDS, _PATIENCE_SECONDS = 2.0, 60.0  # between two looks at the nodes; without any worker
_OBJECTS = 100 * 2**20  # bytes for what travels, in a cluster of our own
_CACHE = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
_TPU_HOSTS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}  # how the chips of a host are arranged


@dataclass(eq=False)
class _Process:
    """A worker: until it has answered `ready`, it has no chunks."""

    actor: Any
    node: str
    ready: Any
    chunks: dict[Any, Chunk] = field(default_factory=dict)


def stream(
    uris: Sequence[str],
    settings: Settings,
    *,
    address: str,
    memory: int = MEMORY,
    readers: int | None = None,
    known: Mapping[str, Stamp] | None = None,
) -> Generator[Scored | Known | Failure, None, None]:
    """Score checkpoints on a cluster.

    Args:
        uris: paths that all nodes can read, and URLs.
        settings: how they are scored.
        address: `auto` for the cluster this machine belongs to, `local` for one of its own, `host:port`,
            `ray://host:port`. A program that is connected to Ray already stays with its cluster.
        memory: bytes that stacks may take together, per worker.
        readers: threads that read, per worker.
        known: state of checkpoints of which there are results.

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
        pool = _Pool(ray, (version(), os.getcwd(), settings, memory, readers))
        chunks = Chunks(fresh)
        try:
            while chunks or pool.is_busy:
                pool.grow()
                pool.hand_out(chunks, known)
                yield from pool.results(chunks)
        finally:
            pool.close()


def _is_unchanged(uri: str, known: Mapping[str, Stamp]) -> bool:
    """Whether a look at the file is enough to tell; a worker looks closer."""
    try:
        return uri in known and not checkpoints.is_url(uri) and stamp_of(uri) == known[uri]
    except OSError:
        return False


class _Pool:
    """The workers of a scan, as many as the nodes have room for at any time.

    Args:
        ray: the library, connected.
        arguments: of every worker.
    """

    def __init__(self, ray: Any, arguments: tuple[Any, ...]):
        self._ray, self._arguments = ray, arguments
        self._worker = ray.remote(Worker)
        self._processes: list[_Process] = []
        self._in_vain: dict[str, int] = {}
        self._why = "no node has a CPU, GPU or TPU to offer"
        self._looked, self._worked = -_LOOK_SECONDS, time.monotonic()

    @property
    def is_busy(self) -> bool:
        return any(process.chunks for process in self._processes)

    def grow(self) -> None:
        """Start workers where nodes have come, or workers have gone.

        Raises:
            FleetError: there has been no worker for a minute, or none can be started.
        """
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        usable = [node for node in nodes if self._in_vain.get(node["NodeID"], 0) < _STARTS]
        for node in usable:
            options, count, environment = share(node["Resources"])
            there = sum(process.node == node["NodeID"] for process in self._processes)
            self._processes += [self._started(node["NodeID"], options, environment) for _ in range(count - there)]
        if self._processes:
            self._worked = time.monotonic()
        elif (nodes and not usable) or time.monotonic() - self._worked > _PATIENCE_SECONDS:
            raise FleetError(
                f"expected a cluster with room for workers, found none on {len(nodes)} nodes: {self._why}; the results "
                "so far are kept, the same command goes on"
            )

    def hand_out(self, chunks: Chunks, known: Mapping[str, Stamp]) -> None:
        """Give every worker something to do, and something to do next; the least busy ones first."""
        ready = [process for process in self._processes if process.ready is None]
        nodes = [process.node for process in ready]
        for depth in range(_IN_FLIGHT):
            for process in ready:
                if len(process.chunks) > depth or any(chunk.lost_on for chunk in process.chunks.values()):
                    continue
                chunk = chunks.take(process.node, nodes, is_idle=not process.chunks)
                if chunk is not None:
                    states = {uri: known[uri] for uri in chunk.uris if uri in known}
                    process.chunks[process.actor.score.remote(chunk.uris, states)] = chunk

    def results(self, chunks: Chunks) -> Iterator[Scored | Known | Failure]:
        """What has been finished, once something has, or it is time to look at the nodes again."""
        waiting = {process.ready: process for process in self._processes if process.ready is not None}
        waiting |= {reference: process for process in self._processes for reference in process.chunks}
        if not waiting:
            time.sleep(_LOOK_SECONDS / 4)
            return
        self._ray.wait(list(waiting), num_returns=1, timeout=_LOOK_SECONDS)
        for reference in self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0)[0]:
            process = waiting[reference]
            if process not in self._processes:
                continue
            try:
                answer = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                yield from self._lost(process, reference, error, chunks)
                continue
            if process.ready is not None:
                process.ready = None
                self._in_vain[process.node] = 0
            else:
                found, seconds = answer
                chunks.finished(process.chunks.pop(reference), seconds)
                yield from found

    def close(self) -> None:
        """End all workers."""
        for process in self._processes:
            self._ray.kill(process.actor)
        self._processes.clear()

    def _started(self, node: str, options: dict[str, Any], environment: dict[str, str]) -> _Process:
        there = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        actor = self._worker.options(scheduling_strategy=there, **options).remote(environment)
        return _Process(actor, node, actor.prepare.remote(*self._arguments))

    def _lost(self, process: _Process, reference: Any, error: Any, chunks: Chunks) -> Iterator[Failure]:
        """One chunk where the worker told an error, all of its chunks where it died."""
        why = str(getattr(error, "cause", None) or error).strip()
        if isinstance(error, self._ray.exceptions.RayTaskError) and process.ready is None:
            lost = [process.chunks.pop(reference)]
        else:
            self._processes.remove(process)
            self._ray.kill(process.actor)
            lost = list(process.chunks.values())
            self._looked = -_LOOK_SECONDS
        if process.ready is not None:
            self._why = why
            self._in_vain[process.node] = self._in_vain.get(process.node, 0) + 1
        for chunk in lost:
            failure = chunks.lost(chunk, process.node, why)
            if failure is not None:
                yield failure


def share(resources: Mapping[str, float]) -> tuple[dict[str, Any], int, dict[str, str]]:
    """What a worker takes of a node: a GPU, all chips of a TPU host, or some cores.

    Args:
        resources: of the node, as Ray counts them.

    Returns:
        Options of a worker's actor, how many of them the node has room for, and their environment.

    Example:
        >>> share({"CPU": 64, "GPU": 8})[:2]
        ({'num_cpus': 0, 'num_gpus': 1}, 8)
        >>> share({"CPU": 10})[:2]
        ({'num_cpus': 4}, 2)
    """
    gpus, chips, cpus = (int(resources.get(name, 0)) for name in ("GPU", "TPU", "CPU"))
    environment = {name: os.environ[name] for name in _CACHE if name in os.environ}
    if gpus:
        # Memory as it is needed: whoever started the scan may sit on the same GPU.
        return {"num_cpus": 0, "num_gpus": 1}, gpus, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | environment
    if chips:
        # Alone on its host, whatever slice that belongs to; it would wait for the other hosts of the slice.
        bounds = {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": _TPU_HOSTS.get(chips, f"{chips},1,1")}
        return {"num_cpus": 0, "resources": {"TPU": chips}}, 1, bounds | environment
    return {"num_cpus": min(cpus, _CPUS)}, max(cpus // _CPUS, min(cpus, 1)), environment


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster."""
    try:
        import ray
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise FleetError(f"--ray {address}: expected Ray, found {error}; pip install 'jaxguard[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    own: dict[str, Any] = {}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own = {"include_dashboard": False, "object_store_memory": _OBJECTS}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise FleetError(
            f"--ray {address}: expected a Ray cluster, found {error}; start one with `ray start --head`, or pass local"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()
