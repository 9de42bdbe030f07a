"""A suspect behind an API: judged as its weights would be, and not at all where it answers wrongly."""

import faulty_server
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard import endpoints, ownership, suspects
from jaxguard.errors import EndpointError
from jaxguard.types import Batch, Network

KEY = jax.random.key(0)
DATA = Batch(faulty_server.images(30), np.arange(30) % faulty_server.CLASSES)


def linear(variables, images):
    return images.reshape(len(images), -1) @ variables["w"]


def owner(seed: int | None = None):
    weights = faulty_server._WEIGHTS if seed is None else np.random.default_rng(seed).normal(size=(48, 5))
    return suspects.load(Network({"w": jnp.asarray(weights, jnp.float32)}, linear, faulty_server.SHAPE))


@pytest.fixture(scope="module")
def held():
    others = [owner(seed) for seed in range(100, 119)]
    options = {"variant": "normal", "num_probes": 30}
    return ownership.certify(owner(), "sac", KEY, data=DATA, independents=others, options=options)


def api(server, **options):
    return endpoints.http(server.url, batch_size=10, timeout=0.3, retries=0, **options)


def test_an_api_is_judged_as_its_weights_are(server, held, tmp_path):
    report = ownership.verify(held, [api(server, cache=tmp_path / "kept"), owner(9)])
    copy, stranger = report.verifications
    assert copy.verdict == "suspected"
    assert copy.score == pytest.approx(0, abs=1e-6)
    assert copy.suspect == server.url
    assert stranger.verdict == "no evidence"
    asked = server.sent
    again = ownership.verify(held, [api(server, cache=tmp_path / "kept")])
    assert again.verifications[0] == copy
    assert server.sent == asked == 30


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        (faulty_server.late(1.0), "."),
        (faulty_server.answer(lambda scores: scores[:-1]), "10"),
        (faulty_server.answer(lambda scores: [row[:3] for row in scores]), "."),
        (faulty_server.answer(lambda scores: [[None] * 5 for _ in scores]), "."),
        (faulty_server.text(b'{"predictions": [[NaN, 1, 2, 3, 4]]}'), "."),
        (faulty_server.status(500), "500"),
        (faulty_server.truncated, "."),
    ],
)
def test_a_wrong_answer_is_no_verdict(server, held, fault, match):
    server.faults = [None, fault]
    with pytest.raises(EndpointError, match=match) as caught:
        ownership.verify(held, [owner(7), api(server)])
    assert "batch 2 of 3" in str(caught.value)
