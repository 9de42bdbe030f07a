"""One HTTP request and its answer: rate-limited, retried, bounded in time and size."""

import zlib

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    IncompleteRead,
    InvalidHeader,
    MaxRetryError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.response import BaseHTTPResponse

from jaxguard.endpoints import deadlines
from jaxguard.endpoints.pace import Pace
from jaxguard.endpoints.target import EXCERPT_BYTES, Target
from jaxguard.errors import EndpointError

RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504})
MAX_WAIT_SECONDS = 300.0
"""The longest `Retry-After` that is waited for; with a longer one the run ends, to be resumed."""

_BLOCK_BYTES = 2**16
_MAX_BACKOFF_SECONDS = 60.0
_REMEDIES = {
    400: "check the format of the request: encoding, images_key, fields",
    401: "check the key in headers",
    403: "check the key in headers",
    404: "check the path of the URL",
    405: "the path takes no POST; check the URL",
    413: "pass a smaller batch_size, or encoding='png'",
    415: "check the format of the request: encoding, images_key, fields",
    422: "check the format of the request: encoding, images_key, fields",
}


class Exchange:
    """POSTs to one target.

    What is tried again, how often and after how long is urllib3's `Retry`; it is driven from here, so that a body that
    breaks off counts as a failed attempt too, and every attempt keeps to the rate.

    Args:
        target: where to.
        pace: the rate limit.
        timeout: seconds to connect, until an answer begins, and for the rest of it; each.
        retries: further attempts after a status 429, 500, 502, 503 or 504, a timeout or a broken connection.
        backoff: before attempt `i` of 3 and more, seconds to wait are `backoff * 2**(i - 2)`, at most 60.
        max_bytes: largest body, also once it is decompressed.
        connections: how many to keep open.
    """

    def __init__(
        self,
        target: Target,
        pace: Pace,
        *,
        timeout: float,
        retries: int,
        backoff: float,
        max_bytes: int,
        connections: int,
    ):
        self.target = target
        self._pace = pace
        self._timeout = timeout
        self._retries = retries
        self._max_bytes = max_bytes
        self._pool = deadlines.pools(connections)
        self._policy = urllib3.Retry(
            total=retries,
            other=0,  # certificates and malformed answers do not get better
            allowed_methods=None,
            status_forcelist=RETRIED_STATUSES,
            backoff_factor=backoff,
            backoff_max=_MAX_BACKOFF_SECONDS,
        )

    def post(self, body: bytes) -> bytes:
        """Sends a request until it is answered or the attempts are used up. Redirects are not followed.

        Args:
            body: JSON.

        Returns:
            The body of an answer with status 2xx, decompressed.

        Raises:
            EndpointError: no such answer; the message has an excerpt of what came instead.
        """
        retry = self._policy
        while True:
            self._pace.turn()
            response = error = None
            try:
                response = self._sent(body)
                if 200 <= response.status < 300:
                    return self._content(response)
                found = self._refusal(response)
            except HTTPError as raised:
                error, found = raised, self._described(raised)
            finally:
                if response is not None:
                    response.close()  # nothing is left of a connection whose body was not read to its end
                    response.release_conn()
            if error is None and response is not None and not retry.is_retry("POST", response.status):
                raise EndpointError(f"expected an answer with status 200, found {found}")
            try:
                retry = retry.increment("POST", self.target.shown, response if error is None else None, error)
            except MaxRetryError:
                raise EndpointError(
                    f"expected an answer with status 200, found {found} at attempt {len(retry.history) + 1} of "
                    f"{self._retries + 1}; see that the endpoint is up, try again later, or pass a lower rate, a "
                    "longer timeout or more retries"
                ) from None  # its message has the whole URL
            self._wait(retry, response)

    def _sent(self, body: bytes) -> BaseHTTPResponse:
        return self._pool.urlopen(
            "POST",
            self.target.url,
            body=body,
            headers=self.target.headers,
            timeout=urllib3.Timeout(connect=self._timeout, read=self._timeout),
            retries=False,
            redirect=False,
            preload_content=False,
        )

    def _content(self, response: BaseHTTPResponse) -> bytes:
        announced = response.headers.get("Content-Length", "")[:20]
        if announced.isdecimal() and int(announced) > self._max_bytes:
            raise EndpointError(f"{self._too_large()} {announced} announced")
        content = self._read(response, self._max_bytes + 1)
        compression = response.headers.get("Content-Encoding", "identity").strip().lower()
        if compression in ("gzip", "x-gzip", "deflate"):
            content = self._decompressed(content)
        elif compression not in ("identity", ""):
            raise EndpointError(
                "expected a body without compression, or gzip, found another; leave out Accept-Encoding"
            )
        if len(content) > self._max_bytes:
            raise EndpointError(f"{self._too_large()} more")
        return content

    def _too_large(self) -> str:
        return f"expected an answer of at most {self._max_bytes} bytes (a smaller batch_size or max_bytes=), found"

    def _decompressed(self, content: bytes) -> bytes:
        inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # header of gzip or zlib, whichever is there
        try:
            content = inflater.decompress(content, self._max_bytes + 1)
        except zlib.error:
            raise EndpointError("expected a compressed body as its header says, found another; ask its owner") from None
        if not inflater.eof and len(content) <= self._max_bytes:
            raise EndpointError("expected a whole compressed body, found one cut short; try again")
        return content

    def _read(self, response: BaseHTTPResponse, limit: int) -> bytes:
        """Bytes as they come over the network, at most `limit` of them."""
        blocks, left = [], limit
        try:
            with deadlines.hanging_up(response.shutdown, self._timeout):
                while left > 0 and (block := response.read1(min(left, _BLOCK_BYTES), decode_content=False)):
                    blocks.append(block)
                    left -= len(block)
        except TimeoutError as error:
            raise ReadTimeoutError(self._pool.connection_from_url(self.target.url), None, str(error)) from None
        return b"".join(blocks)

    def _refusal(self, response: BaseHTTPResponse) -> str:
        """What a status other than 2xx means, with an excerpt of its body, and what to do."""
        name = f"status {response.status}"
        if 300 <= response.status < 400:
            where = self.target.destination(response.headers.get("Location", ""))
            return f"{name}, a redirect to {where}, not followed with your headers; pass that URL if you trust it"
        try:
            excerpt = self.target.excerpt(self._read(response, EXCERPT_BYTES))
        except HTTPError:
            excerpt = "a body that breaks off"
        remedy = _REMEDIES.get(response.status)
        return f"{name}, {excerpt}" + (f"; {remedy}" if remedy else "")

    def _described(self, error: HTTPError) -> str:
        if isinstance(error, ReadTimeoutError):
            return f"no whole answer within {self._timeout:g} s"
        if isinstance(error, NewConnectionError):
            return f"no connection ({error.__cause__ or 'refused'})"
        if isinstance(error, ConnectTimeoutError):
            return f"no connection within {self._timeout:g} s"
        if isinstance(error, IncompleteRead):
            return "a body cut short"
        if isinstance(error, SSLError):
            return f"a TLS failure ({self.target.excerpt(str(error).encode())})"
        return f"{type(error).__name__} {self.target.excerpt(str(error).encode())}"

    def _wait(self, retry: urllib3.Retry, response: BaseHTTPResponse | None) -> None:
        try:
            asked = retry.get_retry_after(response) if response is not None else None
        except (InvalidHeader, ValueError, OverflowError):
            asked = None
        if asked is not None and asked > MAX_WAIT_SECONDS:
            raise EndpointError(
                f"expected to wait at most {MAX_WAIT_SECONDS:g} s, found Retry-After of {asked:.0f} s; run again then"
            )
        if asked:
            self._pace.hold(asked)
        else:
            self._pace.wait(retry.get_backoff_time())
