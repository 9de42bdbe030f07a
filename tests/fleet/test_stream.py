"""Reading, transfer and compute at once: every checkpoint once, whatever the memory, the sizes and the files."""

import itertools
import json
import threading
import time

import numpy as np
import pytest
import stores
from stores import CNN

from jaxguard import checkpoints
from jaxguard.fleet import compiling, programs, reading, staging
from jaxguard.fleet.stream import Failure, Known, Scored, stream


def rows(results) -> dict[str, tuple]:
    """What came of every checkpoint, by its uri; each once."""
    found: dict[str, tuple] = {}
    for result in results:
        if isinstance(result, Scored):
            values = zip(
                result.files, result.content, result.scores.layers, result.scores.features, strict=True,
            )  # fmt: skip
            new = {
                file.uri: (sha256, layers.tobytes(), features.tobytes()) for file, sha256, layers, features in values
            }
        else:
            new = {result.uri: (type(result).__name__, getattr(result, "error", ""))}
        assert not new.keys() & found.keys()
        found |= new
    return found


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> list[str]:
    """Structures, formats and sizes in turn, and some that cannot be read."""
    folder = tmp_path_factory.mktemp("mixed")
    paths = []
    for k in range(4):
        paths += stores.store(folder, 3, first=3 * k)
        paths.append(stores.write(folder / f"{k}.npz", stores.leaves(20 + k, layout="torch")))
        paths.append(stores.write(folder / f"big-{k}.safetensors", stores.leaves(k, CNN)))
        paths.append(folder / f"absent-{k}.pt")
    return list(map(str, paths))


@pytest.fixture(scope="module")
def whole(mixed) -> dict[str, tuple]:
    return rows(stream(mixed))


def test_every_checkpoint_comes_once(mixed, whole):
    assert whole.keys() == set(mixed)
    assert sum(value[0] == "Failure" for value in whole.values()) == 4


@pytest.mark.parametrize("readers", [1, 5])
@pytest.mark.parametrize("rows_of_the_largest", [1, 2.5])
def test_the_smallest_memory_gives_the_same_rows(mixed, whole, readers, rows_of_the_largest, monkeypatch):
    """Stacks of one row, waiting for each other; the budget is never exceeded, and nothing waits for ever."""
    largest = reading.open_one(next(uri for uri in mixed if "big" in uri)).structure.nbytes
    memory, most = int(rows_of_the_largest * largest), []
    take = staging.Staging.take

    def told(self, *args):
        stack = take(self, *args)
        most.append(self.allocated)
        return stack

    monkeypatch.setattr(staging.Staging, "take", told)
    assert rows(stream(mixed, memory=memory, readers=readers)) == whole
    assert 0 < max(most) <= memory


def assert_close(value, expected):
    """The same hash or failure; parts are summed in another order than the whole, so scores agree up to rounding."""
    if value[0] == "Failure":
        assert value == expected
        return
    assert value[0] == expected[0]
    for part, other in zip(value[1:], expected[1:], strict=True):
        np.testing.assert_allclose(
            np.frombuffer(part, np.float32), np.frombuffer(other, np.float32), rtol=1e-4, atol=1e-5
        )


def test_what_does_not_fit_the_memory_is_scored_in_parts_or_says_how_much_it_takes(mixed, whole):
    small = reading.open_one(mixed[0]).structure.nbytes
    found = rows(stream(mixed, memory=small))
    for uri, value in found.items():
        if value[0] == "Failure" != whole[uri][0]:
            assert "big" in uri or uri.endswith(".npz")
            assert "raise --memory to" in value[1]
        else:
            assert_close(value, whole[uri])
    told = [value[1] for value in found.values() if value[0] == "Failure" and "raise --memory to" in value[1]]
    assert told
    needed = max(int(error.rpartition("raise --memory to ")[2]) for error in told)
    again = rows(stream(mixed, memory=needed))
    for uri, value in again.items():
        assert_close(value, whole[uri])


def test_what_is_known_is_not_scored(mixed, whole):
    known = set(mixed[:5])
    results = list(stream(mixed, is_known=lambda uri, _: uri in known))
    assert {result.uri for result in results if isinstance(result, Known)} == {
        uri for uri in known if not uri.endswith("absent-0.pt")
    }
    left = {uri: value for uri, value in rows(results).items() if value[0] != "Known"}
    assert left == {uri: whole[uri] for uri in left}


def test_nothing_gives_nothing():
    assert list(stream([])) == []


def test_programs_can_be_kept(mixed, whole, monkeypatch):
    scorers = {}
    assert rows(stream(mixed, scorers=scorers)) == whole
    assert len(scorers) == 3
    monkeypatch.setattr(compiling, "scorer", None)
    assert rows(stream(mixed, scorers=scorers)) == whole


def test_nobody_waits_for_a_program_of_others(mixed, whole, monkeypatch):
    """While one structure is being compiled, checkpoints of the others are scored."""
    compile_, slow, released = programs.Scorer.compile, [], threading.Event()

    def compile_fn(self, rows):
        if not slow:
            slow.append(self.structure)
            assert released.wait(60)
        return compile_(self, rows)

    monkeypatch.setattr(programs.Scorer, "compile", compile_fn)
    results = stream(mixed)
    first = list(itertools.islice(results, 6))  # four files that are absent, two batches of other structures
    structures = {
        reading.open_one(file.uri).structure for one in first if isinstance(one, Scored) for file in one.files
    }
    assert len(structures) == 2
    assert not structures & set(slow)
    released.set()
    assert rows([*first, *results]) == whole


def test_a_program_that_cannot_be_compiled_is_told_by_its_checkpoints(tmp_path, monkeypatch):
    paths = [str(path) for path in stores.store(tmp_path, 2)]

    def compile_fn(self, rows):
        raise RuntimeError("INTERNAL: no such instruction")

    monkeypatch.setattr(programs.Scorer, "compile", compile_fn)
    found = list(stream(paths))
    assert len(found) == 2
    assert all(isinstance(one, Failure) and "INTERNAL: no such instruction" in one.error for one in found)


def test_reading_goes_on_while_a_stack_is_scored(tmp_path, monkeypatch):
    """The next stacks are being read while the first result is waited for."""
    paths = [str(path) for path in stores.store(tmp_path, 6)]
    read, begun, log = reading.fill, threading.Event(), []

    def told(opened, row, *given):
        log.append(opened.uri)
        if len(log) == len(paths):
            begun.set()
        return read(opened, row, *given)

    monkeypatch.setattr(reading, "fill", told)
    collect = programs.Scorer.collect

    def waiting(self, launched):
        assert begun.wait(30), f"only {len(log)} were read while the first was scored"
        return collect(self, launched)

    monkeypatch.setattr(programs.Scorer, "collect", waiting)
    size = reading.open_one(paths[0]).structure.nbytes
    from jaxguard.fleet import stream as module

    monkeypatch.setattr(module, "_MOST_ROWS", 1)
    assert len(rows(stream(paths, memory=10 * size))) == 6


def test_who_stops_early_does_not_wait_for_the_rest(tmp_path, monkeypatch):
    paths = [str(path) for path in stores.store(tmp_path, 40)]
    read, log = reading.open_one, []

    def slow(uri, **how):
        log.append(uri)
        time.sleep(0.05 if uri in paths[1:] else 0)
        return read(uri, **how)

    monkeypatch.setattr(reading, "open_one", slow)
    from jaxguard.fleet import stream as module

    monkeypatch.setattr(module, "_WINDOW", 1)
    monkeypatch.setattr(module, "_MOST_ROWS", 1)
    results = stream(paths, readers=1)
    next(results)
    results.close()
    assert len(log) < 30
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def described(**fields) -> bytes:
    """A good network that says strange things of itself."""
    content = stores.safetensors_bytes(list(stores.leaves().items()))
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size]) | {"__metadata__": {"jaxguard": json.dumps(fields)}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


STRANGE = {
    "architecture of another kind": described(architecture=5),
    "architecture in a list": described(architecture=["mlp"]),
    "no such architecture": described(architecture="nosuch:width=1"),
    "endless architecture": described(architecture="mlp:hidden=99999999999999999999"),
    "shape that is no shape": described(architecture="mlp:hidden=8", input_shape="abc"),
    "shape of text": described(architecture="mlp:hidden=8", input_shape=["a", "b", "c"]),
    "shape of nothing": described(input_shape=[0, 0, 0]),
    "shape that is a number": described(input_shape=7),
    "leaves without numbers": stores.safetensors_bytes(
        [("a.weight", np.zeros((0, 4), np.float32)), ("b.weight", np.zeros((4, 0), np.float32))]
    ),
    "one number": stores.safetensors_bytes([("w", np.float32(3.0).reshape(()))]),
    "one channel": stores.safetensors_bytes(
        [("a.weight", np.ones((1, 1), np.float32)), ("b.weight", np.ones((1, 1), np.float32))]
    ),
    "many axes": stores.safetensors_bytes(
        [("a.weight", np.ones((2,) * 9, np.float32)), ("b.weight", np.ones((2, 2), np.float32))]
    ),
    "halves of pairs": stores.safetensors_bytes(
        [(f"\ud800{name}", leaf) for name, leaf in stores.stranger().items()]
    ),
    "names of markup": stores.safetensors_bytes(
        [(f"[red]{name}\n\x1b[31m", leaf) for name, leaf in stores.stranger().items()]
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", STRANGE)
def test_a_strange_file_stops_nobody(tmp_path, kind):
    (tmp_path / "strange.safetensors").write_bytes(STRANGE[kind])
    (good,) = stores.store(tmp_path, 1)
    found = rows(stream([str(tmp_path / "strange.safetensors"), str(good)]))
    assert len(found) == 2
    assert found[str(good)][0] == checkpoints.load(good).sha256
    what = found[str(tmp_path / "strange.safetensors")]
    assert what[0] != "Failure" or any(word in what[1] for word in ("expected", "architecture")), what


def test_a_program_that_cannot_be_run_is_told_by_its_checkpoints(tmp_path, monkeypatch):
    """Such as one that the device has no memory for."""
    paths = [str(path) for path in stores.store(tmp_path, 2)]
    other = str(stores.write(tmp_path / "other.npz", stores.stranger()))

    launch = programs.Scorer.launch

    def launch_fn(self, rows, count):
        if self.scope.architecture != "unknown":
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return launch(self, rows, count)

    monkeypatch.setattr(programs.Scorer, "launch", launch_fn)
    found = {result.uri: result for result in stream([*paths, other]) if isinstance(result, Failure)}
    assert found.keys() == set(paths)
    assert all("RESOURCE_EXHAUSTED" in failure.error for failure in found.values())
    assert all(failure.content for failure in found.values())
