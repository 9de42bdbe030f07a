"""How far a scan is: for a bar on a terminal, or a line of JSON every few seconds in a log."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple


class Progress(NamedTuple):
    """How far a scan is at one moment.

    Attributes:
        done: checkpoints that are finished, reused and failed ones included.
        total: checkpoints there are.
        failed: of those done.
        reused: of those done, results of an earlier scan.
        bytes_read: bytes of the checkpoints that were read.
        seconds: since the scan began.
    """

    done: int
    total: int
    failed: int
    reused: int
    bytes_read: int
    seconds: float

    @property
    def checkpoints_per_second(self) -> float:
        """Rate of those that were read, not reused."""
        return (self.done - self.reused) / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Rate of reading."""
        return self.bytes_read / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float:
        """At that speed; infinite before anything was read, unless nothing is left."""
        speed, left = self.checkpoints_per_second, self.total - self.done
        return left / speed if speed else float("inf") if left else 0.0


Watch = Callable[[Progress], None]
"""Called after every batch."""


@dataclass
class Heartbeat:
    """Prints a line of JSON every few seconds, and one at the end.

    Attributes:
        print_fn: takes a line.
        every: seconds between two lines.
    """

    print_fn: Callable[[str], None]
    every: float = 10.0
    _last: float = field(default_factory=time.monotonic)

    def __call__(self, state: Progress) -> None:
        """A `Watch`."""
        now = time.monotonic()
        if now - self._last < self.every and state.done < state.total:
            return
        self._last = now
        left = state.seconds_left
        self.print_fn(
            json.dumps(
                {
                    "done": state.done,
                    "total": state.total,
                    "failed": state.failed,
                    "reused": state.reused,
                    "seconds": round(state.seconds, 1),
                    "checkpoints_per_second": round(state.checkpoints_per_second, 2),
                    "bytes_per_second": round(state.bytes_per_second),
                    "seconds_left": None if left == float("inf") else round(left, 1),
                }
            )
        )
