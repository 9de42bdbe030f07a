"""How far a scan is: speeds that mean what was read, heartbeats that parse."""

import json
import math

from jaxguard.fleet import progress
from jaxguard.fleet.progress import Heartbeat, Progress


def test_speed_counts_what_was_read_and_the_rest_takes_as_long():
    state = Progress(done=60, total=100, failed=3, reused=40, bytes_read=5000, seconds=10.0)
    assert state.checkpoints_per_second == 2.0
    assert state.bytes_per_second == 500.0
    assert state.seconds_left == 20.0


def test_nothing_is_known_at_the_start():
    state = Progress(done=0, total=10, failed=0, reused=0, bytes_read=0, seconds=0.0)
    assert (state.checkpoints_per_second, state.bytes_per_second) == (0.0, 0.0)
    assert math.isinf(state.seconds_left)
    assert math.isinf(state._replace(done=4, reused=4, seconds=1.0).seconds_left)


def test_heartbeats_are_lines_of_json_now_and_then(monkeypatch):
    now, lines = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    beat = Heartbeat(lines.append, 10.0, 0.0)
    for second in range(1, 36):
        now[0] = float(second)
        beat(Progress(second, 36, 1, 0, 100 * second, now[0]))
    now[0] = 35.5
    beat(Progress(36, 36, 1, 0, 3600, 36.0))
    told = [json.loads(line) for line in lines]
    assert [one["done"] for one in told] == [10, 20, 30, 36]
    assert told[0] == {
        "done": 10, "total": 36, "failed": 1, "reused": 0, "seconds": 10.0, "checkpoints_per_second": 1.0,
        "bytes_per_second": 100, "seconds_left": 26.0,
    }  # fmt: skip
    assert told[-1]["seconds_left"] == 0.0
    assert all("\n" not in line for line in lines)


def test_an_unknown_end_is_null(monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    lines = []
    Heartbeat(lines.append, 0.0, 0.0)(Progress(2, 9, 0, 2, 0, 1.0))
    assert json.loads(lines[0])["seconds_left"] is None


def test_a_scan_that_reuses_everything_ends_in_a_line(monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    lines = []
    Heartbeat(lines.append)(Progress(2, 2, 0, 2, 0, 1.0))
    assert json.loads(lines[0])["seconds_left"] == 0.0
