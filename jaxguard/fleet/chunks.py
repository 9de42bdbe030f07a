"""What is left to scan, cut into chunks that a worker scores in a few seconds; a chunk that is lost comes back."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from jaxguard import checkpoints
from jaxguard.fleet.reading import Failure, Stamp, stamp_of

LOSSES = 3
"""Workers lost with a checkpoint after which it is given up; with the last of them it was alone."""

_GIVEN_UP = f"expected a result, lost {LOSSES} workers with it, "
_SECONDS = 4.0  # that a chunk should take: long beside handing it over, short beside the whole scan
_FIRST, _MOST = 16, 1024


@dataclass(frozen=True, eq=False)
class Chunk:
    """Checkpoints that are handed out together.

    Attributes:
        uris: paths and URLs.
        lost_on: nodes where a worker did not come back with it. Such a chunk has its worker to itself, so that the
            next loss tells something about the chunk.
    """

    uris: tuple[str, ...]
    lost_on: tuple[str, ...] = ()


class Chunks:
    """Checkpoints that nobody works on yet; a chunk is taken, and is finished or comes back.

    Args:
        uris: paths and URLs.
    """

    def __init__(self, uris: Iterable[str]):
        self._fresh = deque(uris)
        self._lost = deque[Chunk]()
        self._size = _FIRST

    def __bool__(self) -> bool:
        return bool(self._fresh or self._lost)

    def take(self, node: str, nodes: Collection[str], *, is_idle: bool) -> Chunk | None:
        """The next chunk for a worker; smaller ones towards the end, so that all workers end together.

        Args:
            node: where the worker is.
            nodes: where there are workers, each as often as there are.
            is_idle: whether it has nothing else to do.

        Returns:
            The chunk; None where there is none, or none for a worker that is busy.
        """
        for lost in self._lost:
            # Another node first: the fault may be this one's.
            if node not in lost.lost_on or set(nodes) <= set(lost.lost_on):
                if not is_idle:
                    return None
                self._lost.remove(lost)
                return lost
        share = -(-len(self._fresh) // (2 * max(len(nodes), 1)))
        uris = tuple(self._fresh.popleft() for _ in range(min(self._size, share)))
        return Chunk(uris) if uris else None

    def finished(self, chunk: Chunk, seconds: float) -> None:
        """A chunk was scored; the next ones become larger or smaller by how long that took."""
        if seconds > 2 * _SECONDS:
            self._size = max(min(self._size, len(chunk.uris)) // 2, 1)
        elif seconds < _SECONDS / 2 and len(chunk.uris) >= self._size:
            self._size = min(2 * self._size, _MOST)

    def lost(self, chunk: Chunk, node: str, reason: str) -> Failure | None:
        """A worker did not come back with a chunk.

        Args:
            chunk: to be handed to another one, checkpoint by checkpoint where it was lost before.
            node: where that worker was.
            reason: what happened to it.

        Returns:
            The checkpoint that is given up, if it is one.
        """
        lost_on = (*chunk.lost_on, node)
        if len(chunk.uris) != 1:
            parts = [(uri,) for uri in chunk.uris] if chunk.lost_on else [chunk.uris]
            self._lost += [Chunk(part, lost_on[-1:]) for part in parts]
            return None
        if len(lost_on) < LOSSES:
            self._lost.append(Chunk(chunk.uris, lost_on))
            return None
        (uri,) = chunk.uris
        stamp = Stamp(0, 0)
        with contextlib.suppress(OSError):
            stamp = stamp if checkpoints.is_url(uri) else stamp_of(uri)
        why = f"{_GIVEN_UP}the last one so: {reason}"
        return Failure(uri, stamp, f"{uri}: {why}; --ray passes it over until it changes, scan it without")


def is_given_up(error: str) -> bool:
    """Whether that is the error of a checkpoint that workers were lost with.

    Unlike other failures it is not tried again on a cluster while the file is as it was: each time it would take
    workers with it.
    """
    return _GIVEN_UP in error
