"""One POST and its answer: rate-limited, retried, bounded in time and size; on httpx and tenacity."""

import asyncio
import email.utils
import functools
import os
import ssl
import threading
import time
import weakref
import zlib

import httpx
import tenacity

from jaxguard.endpoints.target import EXCERPT_BYTES, Target
from jaxguard.errors import EndpointError

RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504})
MAX_WAIT_SECONDS = 300.0
"""The longest `Retry-After` that is waited for; a longer one ends the run, which can be resumed."""

_MAX_BACKOFF_SECONDS = 60.0
_REMEDIES = {
    **dict.fromkeys((400, 415, 422), "check the format of the request: encoding, images_key, fields"),
    **dict.fromkeys((401, 403), "check the key in headers"),
    404: "check the path of the URL",
    405: "the path takes no POST; check the URL",
    413: "pass a smaller batch_size, or encoding='png'",
}


class _TemporaryError(Exception):
    """A failed attempt that is worth another one, after `wait` seconds if the server named a time."""

    def __init__(self, found: str, wait: float | None = None):
        super().__init__(found)
        self.wait = wait


class Pace:
    """A rate limit shared by threads: turns are at least `1 / rate` seconds apart.

    Args:
        rate: turns per second, above 0; None for no limit.
    """

    def __init__(self, rate: float | None):
        self._interval = 0.0 if rate is None else 1 / rate
        self._lock = threading.Lock()
        self._next = time.monotonic()

    def turn(self) -> None:
        """Waits for a turn."""
        with self._lock:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + self._interval
        time.sleep(mine - now)

    def hold(self, seconds: float) -> None:
        """Gives no turn to any thread for this many seconds."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class Client:
    """POSTs to one target. Redirects, cookies, proxies and credentials from the environment are not followed or used.

    Args:
        target: URL and headers.
        rate: see `jaxguard.endpoints.http`, as for all others.
        timeout: of one attempt.
        retries: after the first attempt.
        backoff: before the first retry.
        patience: of one request.
        max_bytes: also after decompression.
        connections: how many to keep open.
    """

    def __init__(
        self,
        target: Target,
        *,
        rate: float | None,
        timeout: float,
        retries: int,
        backoff: float,
        patience: float,
        max_bytes: int,
        connections: int,
    ):
        self.target = target
        self._pace = Pace(rate)
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._attempts = retries + 1
        backoff_fn = tenacity.wait_exponential(multiplier=backoff, max=_MAX_BACKOFF_SECONDS) + tenacity.wait_random(
            0, backoff
        )
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_TemporaryError),
            stop=tenacity.stop_after_attempt(self._attempts) | tenacity.stop_before_delay(patience),
            wait=lambda state: self._wait(state, backoff_fn),
        )
        # The transport alone, without httpx.Client, so that nothing is sent that the caller did not ask for.
        self._transport = httpx.AsyncHTTPTransport(
            verify=ssl.create_default_context(),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )
        weakref.finalize(self, _close, self._transport)

    def post(self, body: bytes) -> bytes:
        """Sends a request until it is answered or the attempts are used up.

        Args:
            body: JSON.

        Returns:
            The body of an answer with status 2xx, decompressed.

        Raises:
            EndpointError: no such answer; the message has an excerpt of what came instead.
        """
        try:
            return self._retrying.copy()(self._attempt, body)  # a copy: its statistics belong to one thread
        except tenacity.RetryError as error:
            last = error.last_attempt
            raise self._given_up(str(last.exception()), last.attempt_number) from None  # the cause has the whole URL

    def _attempt(self, body: bytes) -> bytes:
        self._pace.turn()
        future = asyncio.run_coroutine_threadsafe(self._answer(body), _loop())
        try:
            return future.result()
        except TimeoutError:
            raise _TemporaryError(f"no whole answer within {self._timeout:g} s") from None
        except httpx.TransportError as error:
            if any(isinstance(cause, ssl.SSLError) for cause in _causes(error)):  # a certificate does not get better
                raise self._given_up(f"a TLS failure ({self._excerpt(error)})", 1) from None
            raise _TemporaryError(self._described(error)) from None
        finally:
            future.cancel()  # where the wait was interrupted

    async def _answer(self, body: bytes) -> bytes:
        """The body of an answer; one deadline for all of it, since a server may send a byte now and then for ever."""
        async with asyncio.timeout(self._timeout):
            request = httpx.Request("POST", self.target.url, headers=self.target.headers, content=body)
            response = await self._transport.handle_async_request(request)
            try:
                if 200 <= response.status_code < 300:
                    return await self._content(response)
                found = await self._refusal(response)
            finally:
                await response.aclose()
        if response.status_code not in RETRIED_STATUSES:
            raise EndpointError(f"expected an answer with status 200, got {found}")
        wait = _retry_after(response.headers.get("Retry-After", ""))
        if wait is not None and wait > MAX_WAIT_SECONDS:
            raise EndpointError(
                f"expected to wait at most {MAX_WAIT_SECONDS:g} s, got Retry-After of {wait:.0f} s; run again then"
            )
        raise _TemporaryError(found, wait)

    async def _content(self, response: httpx.Response) -> bytes:
        limit = f"expected an answer of at most {self._max_bytes} bytes (a smaller batch_size or max_bytes=), got"
        announced = response.headers.get("Content-Length", "")[:20]
        if announced.isdecimal() and int(announced) > self._max_bytes:
            raise EndpointError(f"{limit} {announced} announced")
        content = await _read(response, self._max_bytes + 1)
        compression = response.headers.get("Content-Encoding", "identity").strip().lower()
        if compression in ("gzip", "x-gzip", "deflate"):
            content = self._decompressed(content)
        elif compression not in ("identity", ""):
            raise EndpointError("expected a body without compression, or gzip, got another; leave out Accept-Encoding")
        if len(content) > self._max_bytes:
            raise EndpointError(f"{limit} more")
        return content

    def _decompressed(self, content: bytes) -> bytes:
        """At most `max_bytes + 1` bytes, whereas httpx would inflate all of a bomb."""
        inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # header of gzip or zlib, whichever is there
        try:
            content = inflater.decompress(content, self._max_bytes + 1)
        except zlib.error:
            raise EndpointError("expected a compressed body as its header says, got another; ask its owner") from None
        if not inflater.eof and len(content) <= self._max_bytes:
            raise EndpointError("expected a whole compressed body, got one cut short; try again")
        return content

    async def _refusal(self, response: httpx.Response) -> str:
        """What a status other than 2xx means, with an excerpt of its body, and what to do."""
        name = f"status {response.status_code}"
        if 300 <= response.status_code < 400:
            where = self.target.destination(response.headers.get("Location", ""))
            return f"{name}, a redirect to {where}, not followed with your headers; pass that URL if you trust it"
        try:
            excerpt = self.target.excerpt(await _read(response, EXCERPT_BYTES))
        except httpx.TransportError:
            excerpt = "a body that breaks off"
        remedy = _REMEDIES.get(response.status_code)
        return f"{name}, {excerpt}" + (f"; {remedy}" if remedy else "")

    def _described(self, error: httpx.TransportError) -> str:
        if isinstance(error, httpx.ConnectError):
            numbers = [cause.errno for cause in _causes(error) if isinstance(cause, OSError) and cause.errno]
            return f"no connection ({os.strerror(numbers[-1]) if numbers else self._excerpt(error)})"
        return f"{type(error).__name__} {self._excerpt(error)}"

    def _excerpt(self, error: Exception) -> str:
        return self.target.excerpt(str(error).encode())

    def _given_up(self, found: str, attempt: int) -> EndpointError:
        return EndpointError(
            f"expected an answer with status 200, got {found} at attempt {attempt} of {self._attempts}; see that the "
            "endpoint is up, try again later, or pass a lower rate, a longer timeout or more retries"
        )

    def _wait(self, state: tenacity.RetryCallState, backoff_fn: tenacity.wait.wait_base) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        if not isinstance(error, _TemporaryError) or error.wait is None:
            return backoff_fn(state)
        self._pace.hold(error.wait)  # the server asked all workers to wait
        return error.wait


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all clients, in a thread of its own; the caller may have a running one, as in a notebook."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="jaxguard-http", daemon=True).start()
    return loop


def _close(transport: httpx.AsyncHTTPTransport) -> None:
    asyncio.run_coroutine_threadsafe(transport.aclose(), _loop())


async def _read(response: httpx.Response, limit: int) -> bytes:
    """The first bytes of a body as they are on the network."""
    content = b""
    async for block in response.aiter_raw():
        content += block
        if len(content) >= limit:
            break
    return content[:limit]


def _retry_after(value: str) -> float | None:
    """Seconds that `Retry-After` asks for, as a number or a date; None if it is neither."""
    if value.strip().isdecimal():
        return float(value[:20])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _causes(error: BaseException) -> list[BaseException]:
    """An error and everything that led to it."""
    found: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        if (one := pending.pop()) is not None and one not in found:
            found.append(one)
            pending += [one.__cause__, one.__context__]
            pending += one.exceptions if isinstance(one, BaseExceptionGroup) else ()
    return found
