"""A Ray cluster of several node processes on this machine that can be killed, and chunks that tell who has them."""

from __future__ import annotations

import os
import pathlib
import signal

from ray.cluster_utils import Cluster

from jaxguard.fleet.chunks import Chunk, Chunks

OBJECTS = 80 * 2**20


class Nodes:
    """A head that does no work, and nodes of one core each."""

    def __init__(self):
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": OBJECTS, "include_dashboard": False},
        )
        self.address = self.cluster.address

    def add(self, count: int = 1) -> None:
        for _ in range(count):
            self.cluster.add_node(num_cpus=1, object_store_memory=OBJECTS)

    def ensure(self, count: int) -> None:
        self.add(count - len(self.cluster.worker_nodes))

    def kill(self, node_id: str) -> None:
        """SIGKILL the node's daemon and its workers, as when a machine is gone."""
        (node,) = (node for node in self.cluster.worker_nodes if node.node_id == node_id)
        daemon = node.all_processes["raylet"][0].process.pid
        for pid in [*_children(daemon), daemon]:
            os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)


class Watched(Chunks):
    """Chunks that tell where they are, and which were lost."""

    def __init__(self, uris):
        super().__init__(uris)
        self.out: dict[Chunk, str] = {}
        self.losses: list[tuple[Chunk, str]] = []

    def take(self, node, nodes, *, is_idle):
        chunk = super().take(node, nodes, is_idle=is_idle)
        if chunk is not None:
            self.out[chunk] = node
        return chunk

    def finished(self, chunk, seconds):
        del self.out[chunk]
        super().finished(chunk, seconds)

    def lost(self, chunk, node, reason):
        assert self.out.pop(chunk) == node
        self.losses.append((chunk, node))
        return super().lost(chunk, node, reason)


def _children(pid: int) -> list[int]:
    lists = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for children in lists for child in children.read_text().split()]
