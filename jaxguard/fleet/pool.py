"""The workers of a scan on a Ray cluster: started where there is room, given chunks, replaced when they die."""

from __future__ import annotations

import logging
import os
import textwrap
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxguard.errors import FleetError
from jaxguard.fleet.chunks import Chunk, Chunks
from jaxguard.fleet.reading import Failure, Known, Stamp
from jaxguard.fleet.stream import Scored
from jaxguard.fleet.worker import Worker

_IN_FLIGHT = 2  # chunks of a worker: one is scored while the other waits at its door
_CPUS = 4  # cores of a worker where there is no accelerator
_STARTS = 3  # in vain, one after the other, after which a node is left alone
_LOOK_SECONDS, _PATIENCE_SECONDS = 2.0, 60.0  # between two looks at the nodes; without any worker
_WHY = 240  # characters of what is reported about a loss
_CACHE = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
_TPU_HOSTS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}  # how the chips of a host are arranged


@dataclass(eq=False)
class _Process:
    """A worker: until it has answered `ready`, it has no chunks."""

    actor: Any
    node: str
    ready: Any
    chunks: dict[Any, Chunk] = field(default_factory=dict)


class Pool:
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
        self._why = "no node offers a CPU, GPU or TPU"
        self._looked, self._worked = -_LOOK_SECONDS, time.monotonic()

    @property
    def is_busy(self) -> bool:
        """Whether any chunk is out."""
        return any(process.chunks for process in self._processes)

    def grow(self) -> None:
        """Start workers where nodes have come, or workers have gone.

        Raises:
            FleetError: there has been no worker for a minute, or none can be started.
        """
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        shares = {node["NodeID"]: share(node["Resources"]) for node in self._ray.nodes() if node["Alive"]}
        nodes = [node for node, (_, count, _) in shares.items() if count]
        usable = [node for node in nodes if self._in_vain.get(node, 0) < _STARTS]
        for node in usable:
            options, count, environment = shares[node]
            there = sum(process.node == node for process in self._processes)
            self._processes += [self._started(node, options, environment) for _ in range(count - there)]
        waited = time.monotonic() - self._worked
        if any(process.ready is None for process in self._processes):
            self._worked = time.monotonic()
        elif self._processes and waited > _PATIENCE_SECONDS:
            logging.getLogger(__name__).warning(
                "no worker has answered yet from %d nodes, see `ray status`", len(nodes)
            )
            self._worked = time.monotonic()
        elif not self._processes and ((nodes and not usable) or waited > _PATIENCE_SECONDS):
            raise FleetError(
                f"expected a cluster that can run workers, got none on {len(nodes)} nodes: {self._why}; the results "
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
        """One chunk where the worker reported an error, all of its chunks where it died."""
        is_told = isinstance(error, self._ray.exceptions.RayTaskError)
        cause = error.cause if is_told else error
        lines = (str(cause).strip() or type(cause).__name__).splitlines()
        # Of a death Ray tells who died first, and why last.
        why = textwrap.shorten(" ".join(lines) if is_told else lines[-1], _WHY)
        if is_told and process.ready is None:
            lost = [process.chunks.pop(reference)]
        else:
            self._processes.remove(process)
            self._ray.kill(process.actor)
            lost = list(process.chunks.values())
            self._looked = -_LOOK_SECONDS
        if process.ready is not None:
            self._why = why
            self._in_vain[process.node] = self._in_vain.get(process.node, 0) + (_STARTS if is_told else 1)
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
        # Memory as it is needed: the process that started the scan may use the same GPU.
        return {"num_cpus": 0, "num_gpus": 1}, gpus, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | environment
    if chips:
        # Alone on its host, whatever slice that belongs to; it would wait for the other hosts of the slice.
        bounds = {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": _TPU_HOSTS.get(chips, f"{chips},1,1")}
        return {"num_cpus": 0, "resources": {"TPU": chips}}, 1, bounds | environment
    return {"num_cpus": min(cpus, _CPUS)}, max(cpus // _CPUS, min(cpus, 1)), environment
