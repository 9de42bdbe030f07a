"""An endpoint that does not answer, or lies, ends in one clear error and no scores; what may pass is tried again."""

import gzip
import json
import shutil
import socket
import ssl
import subprocess
import time

import faulty_server as faults
import numpy as np
import pytest
from faulty_server import images, scores_of

from jaxguard import endpoints
from jaxguard.errors import EndpointError

SECRET = "sk-1234567890"


def quick(server, **options):
    options = {"batch_size": 2, "timeout": 0.2, "retries": 2, "backoff": 0.001} | options
    return endpoints.http(server.url, headers={"Authorization": f"Bearer {SECRET}"}, **options)


PERMANENT = {
    "400": (faults.status(400, {"error": "no field image"}), "status 400, .*no field image.*check the format"),
    "401": (faults.status(401, b""), "status 401, ''; check the key in headers"),
    "404": (faults.status(404, b"<html>no</html>"), "status 404, .*check the path"),
    "413": (faults.status(413, Retry_After="1"), "status 413, .*smaller batch_size"),
    "501": (faults.status(501), "status 501"),
    "redirect": (
        faults.status(307, Location="http://other.example/steal?x=1"),
        r"status 307, a redirect to http://other.example/steal\?\.\.\., not followed",
    ),
    "redirect to nowhere": (faults.status(302), "a redirect to nowhere"),
    "redirect to no URL": (faults.status(302, Location="file:///etc/passwd"), "a redirect to another URL"),
    "few rows": (faults.answer(lambda scores: scores[1:]), r"expected scores of shape \[2, K\].*got 1 answers"),
    "many rows": (faults.answer(lambda scores: scores * 2), "got 4 answers"),
    "ragged": (
        faults.answer(lambda scores: [scores[0], scores[1][1:]]),
        r"got 5 in answers\[0\] and 4 in answers\[1\]",
    ),
    "NaN": (faults.answer(lambda scores: [scores[0], [float("nan")] * 5]), r"got nan in answers\[1\]\[0\]"),
    "Infinity": (faults.answer(lambda scores: [scores[0], [float("inf")] * 5]), r"got inf in answers\[1\]\[0\]"),
    "overflow": (faults.text(b'{"predictions": [[1e999, 2], [3, 4]]}'), "got inf"),
    "long integer": (faults.text(b'{"predictions": [[1' + b"0" * 5000 + b", 2], [3, 4]]}"), "expected JSON, got"),
    "null": (faults.answer(lambda scores: [scores[0], [None] * 5]), r"got null in answers\[1\]\[0\]"),
    "strings": (faults.answer(lambda scores: [[str(x) for x in row] for row in scores]), "got a string in"),
    "nulls for rows": (faults.answer(lambda scores: [None, None]), r"got null in answers\[0\]"),
    "an object": (faults.answer(lambda scores: {"0": scores[0]}), r"got shape \(\) of dict"),
    "one score": (faults.answer(lambda scores: [[0.5], [0.5]]), "a single probability"),
    "HTML": (faults.text(b"<html>Log in</html>", Content_Type="text/html"), "expected JSON, got '<html>Log in"),
    "empty": (faults.text(b""), "expected JSON, got ''"),
    "binary": (faults.text(b"\xff\xfe\x00\x81"), "expected JSON"),
    "deep": (faults.text(b"[" * 100_000), "expected JSON"),
    "no key": (faults.text(b'{"error": "overloaded"}'), "scores at 'predictions', got .*overloaded.*scores_path="),
    "a number": (faults.text(b"3"), "scores at 'predictions', got '3'"),
    "long body": (faults.text(b" " * 200_001), "at most 100000 bytes .*got 200001 announced"),
    "endless body": (faults.endless, "at most 100000 bytes .*got more"),
    "gzip bomb": (faults.bomb, "at most 100000 bytes .*got more"),
    "no gzip": (faults.text(b"{}", Content_Encoding="gzip"), "expected a compressed body as its header says"),
    "half a gzip": (faults.text(gzip.compress(b"{}" * 99)[:-9], Content_Encoding="gzip"), "one cut short"),
    "brotli": (faults.text(b"{}", Content_Encoding="br"), "without compression, or gzip"),
}


@pytest.mark.parametrize("name", PERMANENT)
def test_what_stays_wrong_is_told_at_once(server, name, tmp_path):
    fault, words = PERMANENT[name]
    server.faults = [None, fault]
    endpoint = quick(server, max_bytes=100_000, timeout=5, cache=tmp_path / "answers")
    with pytest.raises(EndpointError, match=words) as raised:
        endpoint(images(6))
    message = str(raised.value)
    assert message.startswith(f"{server.url}, batch 2 of 3 (images[2] to images[3]): expected")
    assert "2 of 6 answers are kept in" in message
    assert len(server.requests) == 2
    assert len(message) < 700
    np.testing.assert_allclose(endpoint(images(6)), scores_of(images(6)))  # no answer of the fault was kept
    assert server.sent == 2 + 2 + 4


PASSING = {
    "503": faults.status(503),
    "500": faults.status(500),
    "429": faults.status(429),
    "no date": faults.status(429, Retry_After="soon"),
    "late": faults.late(0.3),
    "truncated": faults.truncated,
    "truncated chunks": faults.truncated_chunks,
    "closed": faults.closed,
    "no HTTP": faults.no_http,
    "dripping": faults.dripping,
    "dripping headers": faults.dripping_headers,
    "dripping chunks": faults.dripping_chunks,
}


@pytest.mark.parametrize("name", PASSING)
def test_what_may_pass_is_tried_again(server, name):
    server.faults = [PASSING[name], PASSING[name], None]
    np.testing.assert_allclose(quick(server)(images(2)), scores_of(images(2)))
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("503", "status 503, 'busy'"),
        ("late", "no whole answer within 0.2 s"),
        ("closed", "Server disconnected"),
        ("truncated", "without sending complete message body"),
    ],
)
def test_attempts_end(server, name, words):
    server.faults = [PASSING[name]] * 3
    with pytest.raises(EndpointError, match=rf"(?s)got .*({words}).* at attempt 3 of 3; .*none is kept, pass cache="):
        quick(server)(images(2))
    assert len(server.requests) == 3


def test_an_endless_body_is_not_read_to_its_end(server):
    server.faults = [faults.endless]
    with pytest.raises(EndpointError, match="at most 100000 bytes"):
        quick(server, max_bytes=100_000, timeout=5)(images(2))
    time.sleep(0.1)
    assert server.blocks < 500  # what fits into the buffers of the network


@pytest.mark.parametrize("fault", [faults.dripping, faults.dripping_headers, faults.dripping_chunks])
def test_drops_are_not_waited_for(server, fault):
    server.faults = [fault]
    began = time.monotonic()
    with pytest.raises(EndpointError, match=r"no whole answer within 0.2 s at attempt 1 of 1"):
        quick(server, retries=0)(images(2))
    assert time.monotonic() - began < faults.DRIPPING_SECONDS / 2


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(server, code):
    with faults.running() as other:
        server.faults = [faults.status(code, Location=other.url)]
        with pytest.raises(EndpointError, match=rf"status {code}, a redirect to {other.url}, not followed"):
            quick(server)(images(2))
        server.faults = [faults.status(code, Location="/elsewhere")]
        with pytest.raises(EndpointError, match=r"a redirect to http://127.0.0.1:\d+/elsewhere, not followed"):
            quick(server)(images(2))
        assert len(server.requests) == 2
        assert other.connections == 0


def test_no_retries(server):
    server.faults = [faults.status(503)]
    with pytest.raises(EndpointError, match="at attempt 1 of 1"):
        quick(server, retries=0)(images(2))
    assert len(server.requests) == 1


def test_a_later_batch_with_another_number_of_classes(server):
    server.faults = [None, faults.answer(lambda scores: [row[:4] for row in scores])]
    with pytest.raises(
        EndpointError, match=r"batch 2 of 3 .*expected 5 scores per image as in the answers before, got 4"
    ):
        quick(server)(images(6))


def test_retry_after_is_waited_for(server):
    server.faults = [faults.status(429, Retry_After="1")]
    began = time.monotonic()
    np.testing.assert_allclose(quick(server)(images(2)), scores_of(images(2)))
    assert server.times[1] - server.times[0] >= 0.99
    assert time.monotonic() - began < 3


def test_a_long_retry_after_ends_the_run(server):
    server.faults = [faults.status(503, Retry_After="3600")]
    with pytest.raises(
        EndpointError, match="expected to wait at most 300 s, got Retry-After of 3600 s; run again then"
    ):
        quick(server)(images(2))


def test_a_compressed_answer_is_read(server):
    content = gzip.compress(json.dumps({"predictions": scores_of(images(2)).tolist()}).encode())
    server.faults = [faults.text(content, Content_Encoding="gzip")]
    np.testing.assert_allclose(quick(server)(images(2)), scores_of(images(2)))


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    endpoint = endpoints.http(f"http://127.0.0.1:{port}/", retries=1, backoff=0.001)
    with pytest.raises(EndpointError, match=r"no connection \(.*refused\) at attempt 2 of 2"):
        endpoint(images(1))


def test_a_tls_failure_is_final(server):
    endpoint = endpoints.http(server.url.replace("http:", "https:"), retries=5, timeout=2)
    with pytest.raises(EndpointError, match=r"a TLS failure .* at attempt 1 of 6"):
        endpoint(images(1))


def test_tls_with_a_certificate_that_is_trusted_and_no_other(server, tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    key, certificate = str(tmp_path / "key"), str(tmp_path / "certificate")
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*made, "-keyout", key, "-out", certificate, *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    with pytest.raises(EndpointError, match=r"a TLS failure .*certificate.* at attempt 1 of 3"):
        endpoints.http(url, retries=2, timeout=2)(images(1))
    assert server.requests == []
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    server.faults = [faults.dripping_headers, faults.dripping_chunks, faults.closed, None]
    scores = endpoints.http(url, retries=3, timeout=0.5, backoff=0.001)(images(2))
    np.testing.assert_allclose(scores, scores_of(images(2)))
    assert len(server.requests) == 4


def test_the_rate_is_kept_by_all_attempts_and_workers(server):
    server.faults = [faults.status(500)]
    quick(server, rate=20, batch_size=1, workers=3)(images(4))
    assert len(server.times) == 5
    assert max(server.times) - min(server.times) >= 4 / 20 - 0.02


def test_with_workers_an_error_keeps_the_answers_under_way(server, tmp_path):
    server.faults = [faults.late(0.2), faults.status(400), faults.late(0.2)]
    endpoint = quick(server, batch_size=1, workers=3, timeout=5, cache=tmp_path / "answers")
    with pytest.raises(EndpointError, match="status 400"):
        endpoint(images(30))
    asked = server.sent
    assert asked < 30
    endpoint(images(30))
    assert server.sent == 30 + 1  # only the refused one was sent twice


ECHOES = {
    "body": faults.status(403, f"no such key: {SECRET}".encode()),
    "far into the body": faults.status(500, b" " * (4096 - 8) + SECRET.encode()),
    "answer": faults.text(f'{{"error": "{SECRET} expired"}}'.encode()),
    "scores": faults.answer(lambda scores: [[SECRET] * 5] * 2),
    "location": faults.status(301, Location=f"/login/{SECRET}"),
    "status line": faults.no_http,
    "timeout": faults.late(0.3),
}


@pytest.mark.parametrize("name", ECHOES)
def test_secrets_stay_secret(server, name, tmp_path):
    server.faults = [None] + [ECHOES[name]] * 3
    endpoint = endpoints.http(
        server.url + "?key=quitesecret",
        headers={"Authorization": f"Bearer {SECRET}"},
        batch_size=2,
        retries=1,
        timeout=0.2,
        cache=tmp_path / "answers",
    )
    with pytest.raises(EndpointError) as raised:
        endpoint(images(4))
    assert server.seen[0]["authorization"] == f"Bearer {SECRET}"
    told = f"{raised.value} {raised.value!r} {endpoint!r} {endpoint.ask_fn!r} {raised.value.__cause__!r}"
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert kept
    for secret in (SECRET, SECRET[:8], "quitesecret"):
        assert secret not in told
        assert secret.encode() not in kept
