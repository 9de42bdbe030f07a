"""Deadlines for whole answers: a socket's timeout starts anew with every byte, and drops could fall for ever."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.response import HTTPResponse


@contextlib.contextmanager
def hanging_up(shutdown_fn: Callable[[], None], seconds: float) -> Iterator[None]:
    """Runs a block that reads from a socket; once the time is over the socket is shut down, which wakes the reader.

    Args:
        shutdown_fn: shuts the socket down; called from another thread.
        seconds: how long the block may take.

    Raises:
        TimeoutError: it took longer, whatever it read or raised by then.
    """
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        with contextlib.suppress(OSError):
            shutdown_fn()

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception:
        if not expired.is_set():
            raise
    finally:
        timer.cancel()
    if expired.is_set():
        raise TimeoutError(f"no whole answer within {seconds:g} s")


class _Connection(HTTPConnection):
    """Waits for status and headers for as long as its timeout, not for as long per byte."""

    def getresponse(self) -> HTTPResponse:
        return _head(self, super().getresponse)


class _TlsConnection(HTTPSConnection):
    """The same over TLS."""

    def getresponse(self) -> HTTPResponse:
        return _head(self, super().getresponse)


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection  # pyright: ignore[reportAssignmentType]  # nor is urllib3's own


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection  # pyright: ignore[reportAssignmentType]


def pools(connections: int) -> urllib3.PoolManager:
    """A pool manager for one host whose connections keep their deadline for status and headers.

    Args:
        connections: how many to keep open.
    """
    manager = urllib3.PoolManager(num_pools=1, maxsize=connections)
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return manager


def _head(connection: HTTPConnection, read_fn: Callable[[], HTTPResponse]) -> HTTPResponse:
    sock, seconds = connection.sock, connection.timeout
    if seconds is None or sock is None:
        return read_fn()
    response = None
    with hanging_up(lambda: sock.shutdown(socket.SHUT_RDWR), seconds):
        response = read_fn()
    assert response is not None  # or `hanging_up` has raised
    return response
