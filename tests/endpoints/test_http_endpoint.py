"""A model behind a real HTTP server answers as it would in this process, in every format of request and answer."""

import json

import numpy as np
import pytest
from faulty_server import CLASSES, SHAPE, decoded_png, images, scores_of

from jaxguard import endpoints
from jaxguard.errors import EndpointError, OptionError


def test_scores_are_the_models(server):
    endpoint = endpoints.http(server.url, batch_size=4)
    np.testing.assert_allclose(endpoints.query(endpoint, images(10)), scores_of(images(10)), atol=1e-12)
    assert [len(request["instances"]) for request in server.requests] == [4, 4, 2]
    assert server.connections == 1
    np.testing.assert_array_equal(np.array(server.requests[0]["instances"], np.float32), images(10)[:4])
    assert server.seen[0]["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("encoding", "decode"),
    [
        ("floats", lambda request: np.array(request["instances"])),
        ("floats-nchw", lambda request: np.array(request["instances"]).transpose(0, 2, 3, 1)),
        ("uint8", lambda request: np.array(request["instances"]) / 255),
        ("png", decoded_png),
        (
            endpoints.Encoding("halved", lambda x: x / 2, lambda x: {"flat": x.ravel().tolist()}),
            lambda request: 2 * np.array([value["flat"] for value in request["instances"]]),
        ),
    ],
)
def test_every_encoding_sends_the_same_images(server, encoding, decode):
    server.decode = decode
    scores = endpoints.http(server.url, encoding=encoding, batch_size=3)(images(5))
    np.testing.assert_allclose(scores, scores_of(images(5)), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_keeps_all_channels(server, channels):
    given = images(2 * channels).reshape(2, 4, 12, channels)
    server.decode = lambda request: decoded_png(request).reshape(len(given), -1)[:, : np.prod(SHAPE)]
    scores = endpoints.http(server.url, encoding="png")(given)
    np.testing.assert_allclose(decoded_png(server.requests[0]).reshape(given.shape), given, atol=1e-7)
    np.testing.assert_allclose(scores, scores_of(given.reshape(2, -1)[:, : np.prod(SHAPE)]), atol=1e-5)


def test_images_of_the_same_pixels_are_sent_once(server):
    server.decode = decoded_png
    nearly = np.concatenate([images(3), np.clip(images(3) + np.float32(1e-4), 0, 1)])
    scores = endpoints.http(server.url, encoding="png")(nearly)
    assert server.sent == 3
    np.testing.assert_array_equal(scores[:3], scores[3:])


@pytest.mark.parametrize(
    ("path", "encode"),
    [
        ("", lambda scores: scores.tolist()),
        ("outputs", lambda scores: {"outputs": scores.tolist()}),
        ("result.0.data", lambda scores: {"result": [{"data": scores.tolist()}]}),
        ("predictions.*.p", lambda scores: {"predictions": [{"p": row} for row in scores.tolist()]}),
    ],
)
def test_scores_are_found_at_their_path(server, path, encode):
    server.encode = lambda scores: json.dumps(encode(scores)).encode()
    np.testing.assert_allclose(endpoints.http(server.url, scores_path=path)(images(3)), scores_of(images(3)))


def test_one_image_per_request(server):
    server.decode = lambda request: np.array([request["image"]])
    server.encode = lambda scores: {"scores": scores[0].tolist()}
    endpoint = endpoints.http(
        server.url, single=True, images_key="image", scores_path="scores", fields={"model": "m-2", "top": None}
    )
    np.testing.assert_allclose(endpoint(images(3)), scores_of(images(3)))
    assert [(request["model"], request["top"]) for request in server.requests] == [("m-2", None)] * 3


def test_labels_only(server):
    server.encode = lambda scores: {"predictions": scores.argmax(1).tolist()}
    endpoint = endpoints.http(server.url, kind="labels", num_classes=CLASSES)
    np.testing.assert_array_equal(endpoint(images(9)), np.eye(CLASSES)[scores_of(images(9)).argmax(1)])
    with pytest.raises(EndpointError, match='pass kind="labels"'):
        endpoints.http(server.url)(images(2))


def test_headers_are_sent_and_replace_the_defaults(server):
    endpoints.http(server.url + "?v=1", headers={"X-Api-Key": "s3cr3t", "user-agent": "mine"})(images(1))
    assert server.seen[0]["x-api-key"] == "s3cr3t"
    assert server.seen[0]["user-agent"] == "mine"


def test_workers_ask_at_once_and_keep_the_order(server):
    calls = []
    endpoint = endpoints.http(server.url, batch_size=1, workers=4)
    scores = endpoint(images(12), progress=lambda *call: calls.append(call))
    np.testing.assert_allclose(scores, scores_of(images(12)))
    assert server.sent == 12
    assert 1 < server.connections <= 4
    assert calls == [(done, 12) for done in range(1, 13)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 0}, "expected a number > 0, or none for rate of http, got 0"),
        ({"timeout": -1}, "expected a number > 0 for timeout of http, got -1"),
        ({"timeout": float("nan")}, "timeout"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"retries": -1}, "retries"),
        ({"backoff": float("inf")}, "backoff"),
        ({"workers": 0}, "workers"),
        ({"encoding": "jpeg"}, "encoding: expected one of floats, floats-nchw, uint8, png"),
        ({"fields": {"a": object()}}, "fields: expected what JSON has"),
        ({"fields": {"instances": 1}}, "fields: expected none named"),
    ],
)
def test_arguments_are_checked(options, words):
    with pytest.raises((EndpointError, OptionError), match=words):
        endpoints.http("http://127.0.0.1:9/", **options)


def test_encodings_of_ones_own_are_checked(server):
    with pytest.raises(EndpointError, match="expected pixels of 2 images, got 1"):
        endpoints.http(server.url, encoding=endpoints.Encoding("a", lambda x: x[:1], lambda x: 0))(images(2))
    with pytest.raises(EndpointError, match=r"encoding 'b': expected values that JSON has"):
        endpoints.http(server.url, encoding=endpoints.Encoding("b", lambda x: x, lambda x: float("nan")))(images(2))
    assert server.requests == []
