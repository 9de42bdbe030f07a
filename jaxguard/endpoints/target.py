"""The URL and headers of an endpoint, and the text of its errors without anything secret in it."""

import re
import urllib.parse
from collections.abc import Mapping

import httpx

from jaxguard.errors import EndpointError

EXCERPT_BYTES = 4096
_EXCERPT_LENGTH = 160
_SHORTEST_SECRET = 4
_NO_SECRETS = {"accept", "accept-encoding", "content-type", "user-agent"}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class Target:
    """Where requests go, and with which headers.

    Args:
        url: http or https; no user name and password in it.
        headers: sent with every request; never shown, never stored.

    Raises:
        EndpointError: no such URL, or a header that HTTP does not allow.

    >>> target = Target("https://example.com/v1?key=abcdef", {"Authorization": "Bearer s3cr3t"})
    >>> target
    Target(https://example.com/v1?...)
    >>> target.excerpt(b"wrong key  s3cr3t for abcdef")
    "'wrong key *** for ***'"
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None):
        self.url = url
        self.shown = _shown(url, "url")
        self.headers = {"User-Agent": "jaxguard", "Content-Type": "application/json", "Accept": "application/json"}
        self.headers["Accept-Encoding"] = "identity"
        own = {name.lower() for name in self.headers}
        for name, value in (headers or {}).items():
            _check_header(name, value)
            if name.lower() in own:
                self.headers = {key: kept for key, kept in self.headers.items() if key.lower() != name.lower()}
            self.headers[name] = value
        self._secrets = _secrets(url, self.headers)

    def __repr__(self) -> str:
        return f"Target({self.shown})"

    def excerpt(self, content: bytes) -> str:
        """The beginning of a body as one short line, header values and values of the query blotted out.

        Args:
            content: the body, or its first `EXCERPT_BYTES`.
        """
        text = content[:EXCERPT_BYTES].decode("utf-8", "replace")
        if len(content) >= EXCERPT_BYTES and self._secrets:
            text = text[: -len(self._secrets[0])]  # the cut may go through one
        text = self._blotted(" ".join(text.split()))
        return repr(text if len(text) <= _EXCERPT_LENGTH else text[:_EXCERPT_LENGTH] + "...")

    def destination(self, location: str) -> str:
        """Where a redirect leads, for a message."""
        if not location:
            return "nowhere"
        try:
            return self._blotted(_shown(urllib.parse.urljoin(self.url, location), "Location"))[:_EXCERPT_LENGTH]
        except (EndpointError, ValueError):
            return "another URL"

    def _blotted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _secrets(url: str, headers: Mapping[str, str]) -> list[str]:
    """Longest first: a header's value, and its words, for a server may echo a token without its scheme."""
    values = [value for name, value in headers.items() if name.lower() not in _NO_SECRETS]
    query = urllib.parse.urlsplit(url).query
    values += [part.partition("=")[2] or part for part in query.split("&")]
    values += [value for _, value in urllib.parse.parse_qsl(query)]
    parts = {part for value in values for part in (" ".join(value.split()), *re.split(r"[\s,;=]+", value))}
    return sorted((part for part in parts if len(part) >= _SHORTEST_SECRET), key=lambda part: (-len(part), part))


def _shown(url: str, what: str) -> str:
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        parts = httpx.URL("")
    if parts.scheme not in ("http", "https") or not parts.host or not 0 <= (parts.port or 0) < 2**16:
        raise EndpointError(f"{what}: expected http://HOST/PATH or https://HOST/PATH, got another text; check it")
    if parts.userinfo:
        raise EndpointError(
            f"{what}: expected no user name and password in it, got some before @{parts.host}; "
            "pass headers={'Authorization': ...}"
        )
    path = parts.raw_path.partition(b"?")[0].decode("ascii")
    return f"{parts.scheme}://{parts.netloc.decode('ascii')}{path}{'?...' if parts.query else ''}"


def _check_header(name: str, value: str) -> None:
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
        raise EndpointError(
            "headers: expected names that HTTP allows, got another text; is a value where its name belongs?"
        )
    if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
        raise EndpointError(
            f"headers: expected a line of latin-1 text for {name}, got another value; look for a line break in it"
        )
    if name.lower() in ("content-length", "transfer-encoding", "host"):
        raise EndpointError(f"headers: expected none that say how a request is sent, got {name}; leave it out")
