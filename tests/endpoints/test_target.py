"""URLs and headers: what HTTP allows is sent, and nothing secret is shown."""

import pytest

from jaxguard.endpoints.target import EXCERPT_BYTES, Target
from jaxguard.errors import EndpointError


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.com", "https://example.com/"),
        ("http://[::1]:8501/v1/models/m:predict", "http://[::1]:8501/v1/models/m:predict"),
        ("HTTPS://Example.com/p?key=abcd#part", "https://example.com/p?..."),
    ],
)
def test_urls_are_shown_without_their_query(url, shown):
    assert Target(url).shown == shown


@pytest.mark.parametrize(
    "url",
    ["", "example.com/v1", "ftp://example.com/", "file:///etc/passwd", "http://", "http://a:99999999/", "http://[::1/"],
)
def test_other_urls_are_refused(url):
    with pytest.raises(EndpointError, match=r"url: expected http://HOST/PATH or https://HOST/PATH"):
        Target(url)


def test_a_password_in_the_url_is_refused_and_not_repeated():
    with pytest.raises(EndpointError, match=r"got some before @example.com") as raised:
        Target("https://user:hunter22@example.com/")
    assert "hunter22" not in str(raised.value)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Key": "hunter22\n"},
        {"X-Key": "hunter22\r\nHost: other"},
        {"X-Key": "hunter22\u2026"},
        {"X-Key": 12345678},
        {"hunter22 ": "X-Key"},
        {"hunter22\n": "X-Key"},
        {"Content-Length": "22"},
        {"host": "example.com"},
    ],
)
def test_headers_that_http_does_not_allow_are_refused_and_not_repeated(headers):
    with pytest.raises(EndpointError, match="headers: expected") as raised:
        Target("https://example.com/", headers)
    assert "hunter22" not in str(raised.value)


def test_excerpts_are_short_lines_without_control_characters_and_secrets():
    target = Target(
        "https://example.com/?a=q%2Fsecret&flag-secret", {"Cookie": "id=c1c2c3; b=d1d2d3", "Accept": "text"}
    )
    body = b"text \x1b[31m\n\n q/secret q%2Fsecret flag-secret c1c2c3 d1d2d3 id=c1c2c3; b=d1d2d3 " + b"x" * 500
    excerpt = target.excerpt(body)
    assert excerpt.startswith(r"'text \x1b[31m *** *** *** *** *** *** xxx")
    assert excerpt.endswith("x...'")
    assert len(excerpt) < 200


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_secret_cut_off_by_the_limit_is_not_shown_in_part(cut):
    body = b" " * (EXCERPT_BYTES - cut) + b"hunter22"
    assert "hu"[:cut] not in Target("https://a.example/", {"X-Key": "hunter22"}).excerpt(body[:EXCERPT_BYTES])
