"""Answers are paid for once: a killed run resumes, and a damaged file is an error, never an answer."""

import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import textwrap

import faulty_server as faults
import numpy as np
import pytest
from faulty_server import images, scores_of

from jaxguard import endpoints
from jaxguard.endpoints.cache import Cache
from jaxguard.errors import EndpointError


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    return tmp_path / "answers"


def test_nothing_is_asked_twice(server, path):
    calls = []
    endpoint = endpoints.http(server.url, batch_size=3, cache=path)
    first = endpoint(images(7))
    assert server.sent == 7
    again = endpoints.http(server.url, batch_size=2, cache=path)
    np.testing.assert_array_equal(again(images(9), progress=lambda *call: calls.append(call))[:7], first)
    assert server.sent == 9
    assert calls == [(7, 9), (9, 9)]
    np.testing.assert_array_equal(again(images(9)[::-1])[2:], first[::-1])
    assert server.sent == 9


def test_an_error_is_resumed(server, path):
    server.faults = [None, None, faults.status(503)]
    endpoint = endpoints.http(server.url, batch_size=2, retries=0, cache=path)
    with pytest.raises(
        EndpointError, match=r"4 of 9 answers are kept in .*answers, the next run requests only the others"
    ):
        endpoint(images(9))
    before = server.sent
    np.testing.assert_allclose(endpoint(images(9)), scores_of(images(9)))
    assert server.sent - before == 5


def test_an_interrupted_run_is_resumed(server, path):
    def interrupt(done, _):
        if done == 6:
            raise KeyboardInterrupt

    for workers in (1, 3):
        kept = server.sent
        endpoint = endpoints.http(server.url, batch_size=2, workers=workers, cache=path, version=str(workers))
        with pytest.raises(KeyboardInterrupt):
            endpoint(images(40), progress=interrupt)
        assert server.sent - kept <= 6 + 2 * (workers - 1)
        before = server.sent
        np.testing.assert_allclose(endpoint(images(40)), scores_of(images(40)))
        assert server.sent - before == 34


def test_a_killed_run_is_resumed(server, path):
    program = f"""
        import os, signal, sys
        sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
        from faulty_server import images
        from jaxguard import endpoints

        def kill(done, total):
            if done == 6:
                os.kill(os.getpid(), signal.SIGKILL)

        endpoints.http({server.url!r}, batch_size=3, cache={str(path)!r})(images(12), progress=kill)
    """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False, timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert server.sent == 6
    np.testing.assert_allclose(endpoints.http(server.url, cache=path)(images(12)), scores_of(images(12)))
    assert server.sent == 12


def test_only_the_same_question_has_the_same_answer(server, path):
    server.encode = lambda scores: {"predictions": scores.tolist(), "p": (2 * scores).tolist()}
    endpoints.http(server.url, cache=path)(images(2))
    others = [
        {"scores_path": "p"},
        {"version": "2"},
        {"fields": {"model": "b"}},
        {"encoding": endpoints.Encoding("mine", lambda x: x, lambda x: x.tolist())},
    ]
    for sent, options in enumerate(others, start=2):
        scores = endpoints.http(server.url, cache=path, **options)(images(2))
        assert server.sent == 2 * sent
        np.testing.assert_allclose(scores, scores_of(images(2)) * (2 if "scores_path" in options else 1))
    for model in ("b", "c", "b"):
        endpoints.http(f"{server.url}?model={model}", cache=path)(images(2))
    assert server.sent == 2 * (sent + 2)
    endpoints.http(server.url, cache=path, headers={"X-Key": "another"}, rate=100, batch_size=1)(images(2))
    assert server.sent == 2 * (sent + 2)


def test_labels_and_scores_are_different_answers(server, path):
    endpoints.http(server.url, cache=path)(images(2))
    server.encode = lambda scores: {"predictions": scores.argmax(1).tolist()}
    for classes in (5, 6, 5):
        labels = endpoints.http(server.url, cache=path, kind="labels", num_classes=classes)(images(2))
        np.testing.assert_array_equal(labels, np.eye(classes)[scores_of(images(2)).argmax(1)])
    assert server.sent == 6


def test_functions_are_told_apart_by_version(path):
    asked = []

    def model(batch):
        asked.append(len(batch))
        return scores_of(batch)

    for version in ("1", "1", "2"):
        endpoints.local(model, cache=path, version=version)(images(4))
    assert asked == [4, 4]


def test_a_model_whose_classes_changed_gets_no_verdict(server, path):
    endpoints.http(server.url, cache=path)(images(2))
    server.encode = lambda scores: {"predictions": scores[:, :4].tolist()}
    with pytest.raises(EndpointError, match=r"expected 5 scores per image as in the answers before, got 4"):
        endpoints.http(server.url, cache=path)(images(4))
    with pytest.raises(
        EndpointError, match=r"answers: expected 4 scores per image of .* got answers with 5; .*version="
    ):
        endpoints.http(server.url, cache=path, num_classes=4)(images(4))


def test_two_runs_share_a_file(path):
    with Cache(path) as one, Cache(path) as other:
        one.write({b"a": np.array([1.0, 2.0])})
        other.write({b"b": np.array([3.0, 4.0]), b"a": np.array([1.0, 2.0])})
        rows = one.read([b"a", b"b", b"c"])
    assert {key: row.tolist() for key, row in rows.items()} == {b"a": [1, 2], b"b": [3, 4]}


def test_rows_are_written_together_or_not_at_all(path, monkeypatch):
    with Cache(path) as cache:
        monkeypatch.setattr("jaxguard.endpoints.cache._checksum", lambda key, scores: None if key == b"b" else b"x")
        with pytest.raises(EndpointError, match="NOT NULL"):
            cache.write({b"a": np.ones(2), b"b": np.ones(2)})
        monkeypatch.undo()
        assert cache.read([b"a", b"b"]) == {}


def test_every_flipped_byte_is_an_error_or_a_missing_answer(path):
    rows = {bytes([key]) * 32: np.arange(4.0) + key for key in range(40)}
    with Cache(path) as cache:
        cache.write(rows)
    assert [file.name for file in path.parent.iterdir()] == ["answers"]  # nothing is left in a log
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    found = {"error": 0, "missing": 0, "same": 0}
    for position in (*range(0, 110, 4), *rng.integers(0, len(content), 120)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            with Cache(path) as cache:
                read = cache.read(rows)
        except EndpointError as error:
            assert str(path) in str(error)
            found["error"] += 1
        else:
            for key, row in read.items():
                np.testing.assert_array_equal(row, rows[key])
            found["missing" if len(read) < len(rows) else "same"] += 1
        for log in path.parent.glob("answers-*"):
            log.unlink()
    assert found["error"] > 20, found


def test_a_changed_answer_is_no_answer(server, path):
    endpoint = endpoints.http(server.url, cache=path)
    endpoint(images(2))
    with sqlite3.connect(path) as database:
        (scores,) = database.execute("SELECT scores FROM answers").fetchone()
        database.execute("UPDATE answers SET scores = ?", (scores[:8] + b"\1" + scores[9:],))
    database.close()
    with pytest.raises(EndpointError, match="got a row whose checksum is another; it is damaged"):
        endpoint(images(2))
    assert server.sent == 2


def test_other_files_are_left_alone(tmp_path, server):
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but a text of more than a few characters" * 20)
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE answers (key, scores, checksum)")
    database.close()
    before = (tmp_path / "other.db").read_bytes()
    for name, words in (
        ("notes.txt", "file is not a database"),
        ("other.db", "got another application's database"),
        ("missing/answers", "check its folder"),
        (".", "check its folder"),
    ):
        with pytest.raises(EndpointError, match=words):
            endpoints.http(server.url, cache=tmp_path / name)(images(2))
    assert (tmp_path / "other.db").read_bytes() == before
    assert text.read_text().startswith("not a database")
    assert server.requests == []
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "other.db"]
