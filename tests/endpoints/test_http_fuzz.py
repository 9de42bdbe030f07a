"""Broken HTTP and broken JSON, byte by byte: checked scores or one error, and nothing else."""

import faulty_server as faults
import numpy as np
from faulty_server import images

from jaxguard import endpoints
from jaxguard.errors import EndpointError

BODY = b'{"predictions": [[0.5, 1.25, -3e2], [1, 2, 3.5]]}'
ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n19\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n"
    % (BODY[:25], len(BODY) - 25, BODY[25:]),
    b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
    b"HTTP/1.1 429 Too Many\r\nRetry-After: 0\r\nContent-Length: 4\r\n\r\nbusy",
)
PIECES = (
    *(b"\r\n", b"\n", b"-1", b"99999999999999999999", b"NaN", b"null", b"1e999", b"[", b"]", b'"', b"{", b","),
    *(b"\r\nContent-Length: 5", b"\r\nContent-Length: 5, 6", b"\r\nContent-Encoding: gzip"),
    *(b"\r\nTransfer-Encoding: chunked", b"\r\nRetry-After: -5", b"\r\nLocation: http://[::1"),
)


def mutated(rng: np.random.Generator) -> bytes:
    content = bytearray(ANSWERS[rng.integers(len(ANSWERS))])
    for _ in range(rng.integers(1, 4)):
        position = int(rng.integers(max(1, len(content) - 1)))
        change = rng.integers(4)
        if change == 0:
            content[position] ^= 1 << rng.integers(7)
        elif change == 1:
            del content[position + 1 : position + rng.integers(2, 20)]
        elif change == 2:
            content[position:position] = PIECES[rng.integers(len(PIECES))]
        else:
            content = content[: position + 2]
    return bytes(content)


def test_mutated_answers(server):
    def raw(handler, _):
        handler.wfile.write(content)
        handler.close_connection = True

    rng = np.random.default_rng(0)
    endpoint = endpoints.http(server.url, retries=0, timeout=0.5, headers={"X-Key": "s3cr3t"})
    believed = 0
    for _ in range(250):
        content = mutated(rng)
        server.faults = [raw]
        try:
            scores = endpoint(images(2))
        except EndpointError as error:
            assert str(error).startswith(server.url)
            assert len(str(error)) < 700
        else:
            believed += 1
            assert scores.shape[0] == 2
            assert np.isfinite(scores).all()
    assert 0 < believed < 125
    # A connection of its own: the server may be about to close the one the last answer came by.
    server.faults = [faults.status(200, BODY)]
    assert endpoints.http(server.url, timeout=5)(images(2)).shape == (2, 3)
