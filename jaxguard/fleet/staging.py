"""Host memory that batches are read into: bounded, and used again, so that no page is ever faulted in twice."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxguard.errors import FleetError

_PAGE = 4096


class Stack(NamedTuple):
    """Memory of a batch.

    Attributes:
        rows: `[M, W]` float32.
        buffer: the bytes behind it, and perhaps some more.
    """

    rows: np.ndarray
    buffer: np.ndarray


class Staging:
    """Buffers within a budget; not for several threads at once.

    Args:
        budget: bytes of all buffers together.
    """

    def __init__(self, budget: int):
        self.budget = budget
        self.allocated = 0
        self._free: list[np.ndarray] = []

    def take(self, rows: int, length: int) -> Stack | None:
        """A stack of rows, its content undefined.

        Args:
            rows: `M`.
            length: `W`.

        Returns:
            The stack, beginning on a page, or None where the budget has no room until others are given back.

        Raises:
            FleetError: it would not fit into an empty budget either.
        """
        needed = rows * length * 4
        if needed > self.budget:
            raise FleetError(
                f"expected a stack within the memory of {self.budget} bytes, got {rows} rows of {length * 4}; "
                "raise --memory"
            )
        fitting = [buffer for buffer in self._free if needed <= buffer.nbytes <= 2 * needed]
        if fitting:
            buffer = min(fitting, key=lambda buffer: buffer.nbytes)
            self._forget(buffer)
        else:
            while self._free and self.allocated + needed > self.budget:
                oldest = self._free[0]
                self._forget(oldest)
                self.allocated -= oldest.nbytes
            if self.allocated + needed > self.budget:
                return None
            buffer = _aligned(needed)
            self.allocated += buffer.nbytes
        return Stack(buffer[:needed].view(np.float32).reshape(rows, length), buffer)

    def give(self, stack: Stack) -> None:
        """Hand a stack back; nobody may read it from now on."""
        self._free.append(stack.buffer)

    def _forget(self, buffer: np.ndarray) -> None:
        self._free = [other for other in self._free if other is not buffer]


def _aligned(size: int) -> np.ndarray:
    memory = np.empty(size + _PAGE, np.uint8)
    start = -memory.ctypes.data % _PAGE
    return memory[start : start + size]
