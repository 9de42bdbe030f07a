"""A rate limit that threads share."""

import threading
import time
from collections.abc import Callable


class Pace:
    """Turns that are at least `1 / rate` seconds apart, whoever takes them.

    Args:
        rate: turns per second, above 0; None for no limit.
        clock_fn: seconds, never going back.
        sleep_fn: waits as many seconds.

    >>> now, slept = [0.0], []
    >>> pace = Pace(4.0, clock_fn=lambda: now[0], sleep_fn=slept.append)
    >>> pace.turn(); pace.turn(); pace.turn()
    >>> slept
    [0.25, 0.5]
    """

    def __init__(
        self,
        rate: float | None,
        *,
        clock_fn: Callable[[], float] = time.monotonic,
        sleep_fn: Callable[[float], None] = time.sleep,
    ):
        self._interval = 0.0 if rate is None else 1 / rate
        self._clock_fn = clock_fn
        self._sleep_fn = sleep_fn
        self._lock = threading.Lock()
        self._next = clock_fn()

    def turn(self) -> None:
        """Waits for a turn."""
        with self._lock:
            now = self._clock_fn()
            mine = max(now, self._next)
            self._next = mine + self._interval
        self.wait(mine - now)

    def hold(self, seconds: float) -> None:
        """Gives no turn for so many seconds: the server asked everybody to wait."""
        with self._lock:
            self._next = max(self._next, self._clock_fn() + seconds)

    def wait(self, seconds: float) -> None:
        """Waits alone; others take their turns."""
        if seconds > 0:
            self._sleep_fn(seconds)
