"""A real HTTP server on this machine: a linear model, and every way in which it may fail to answer."""

import base64
import contextlib
import gzip
import http.server
import io
import json
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

SHAPE = (4, 4, 3)
CLASSES = 5
DROPS = 40
DRIPPING_SECONDS = 2.0
_WEIGHTS = np.random.default_rng(7).normal(size=(np.prod(SHAPE), CLASSES))

Fault = Callable[["Handler", list], None]


def images(count: int, seed: int = 0) -> np.ndarray:
    """Images `[count, 4, 4, 3]` float32 that PNG keeps as they are."""
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE)).astype(np.float32) / np.float32(255)


def scores_of(batch: np.ndarray) -> np.ndarray:
    return np.asarray(batch, np.float64).reshape(len(batch), -1) @ _WEIGHTS


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Server"

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = json.loads(body)
        decoded = self.server.decode(request)
        with self.server.lock:
            self.server.times.append(time.monotonic())
            self.server.requests.append(request)
            self.server.seen.append({name.lower(): value for name, value in self.headers.items()})
            self.server.sent += len(decoded)
            fault = self.server.faults.pop(0) if self.server.faults else None
        if fault is None:
            self.reply(200, self.server.encode(scores_of(decoded)))
        else:
            fault(self, scores_of(decoded).tolist())

    def reply(self, status: int, body: bytes | dict, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.faults: list[Fault | None] = []
        self.requests: list[dict] = []
        self.seen: list[dict[str, str]] = []
        self.times: list[float] = []
        self.sent = 0
        self.connections = 0
        self.blocks = 0
        self.decode: Callable[[dict], np.ndarray] = lambda request: np.array(request["instances"])
        self.encode: Callable[[np.ndarray], bytes | dict] = lambda scores: {"predictions": scores.tolist()}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/models/m:predict"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is what some tests are about."""


@contextlib.contextmanager
def running() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def decoded_png(request: dict) -> np.ndarray:
    files = [io.BytesIO(base64.b64decode(value["b64"])) for value in request["instances"]]
    return np.stack([np.asarray(Image.open(file)) for file in files]).astype(np.float64) / 255


def status(code: int, body: bytes | dict = b"busy", **headers: str) -> Fault:
    return lambda handler, _: handler.reply(code, body, **headers)


def answer(change: Callable[[list], object]) -> Fault:
    return lambda handler, scores: handler.reply(200, {"predictions": change(scores)})


def text(content: bytes, **headers: str) -> Fault:
    return status(200, content, **headers)


def late(seconds: float) -> Fault:
    def fault(handler: Handler, scores: list) -> None:
        time.sleep(seconds)
        handler.reply(200, {"predictions": scores})

    return fault


def truncated(handler: Handler, scores: list) -> None:
    content = json.dumps({"predictions": scores}).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[:20])
    handler.close_connection = True


def truncated_chunks(handler: Handler, scores: list) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b'10\r\n{"predictions": \r\nff\r\n[[1')
    handler.close_connection = True


def closed(handler: Handler, scores: list) -> None:
    handler.close_connection = True


def no_http(handler: Handler, scores: list) -> None:
    handler.wfile.write(b"\x00\x01 what is this?\r\n\r\n")
    handler.close_connection = True


def dripping(handler: Handler, scores: list) -> None:
    """A byte now and then: no single read is slow."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(DROPS):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(DRIPPING_SECONDS / DROPS)
    handler.close_connection = True


def dripping_headers(handler: Handler, scores: list) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for index in range(DROPS):
        handler.wfile.write(f"X-{index}: 1\r\n".encode())
        time.sleep(DRIPPING_SECONDS / DROPS)
    handler.close_connection = True


def dripping_chunks(handler: Handler, scores: list) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;")
    for _ in range(DROPS):
        handler.wfile.write(b"x")
        time.sleep(DRIPPING_SECONDS / DROPS)
    handler.close_connection = True


def endless(handler: Handler, scores: list) -> None:
    """A body without announced length that goes on until the client hangs up."""
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    for _ in range(1_000):
        handler.wfile.write(b" " * 2**16)
        handler.server.blocks += 1


def bomb(handler: Handler, scores: list) -> None:
    handler.reply(200, gzip.compress(b" " * 2**26), Content_Encoding="gzip")
