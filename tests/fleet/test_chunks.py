"""Cutting a fleet into chunks, and what becomes of a chunk that is lost."""

import pytest

from jaxguard.errors import FleetError
from jaxguard.fleet import cluster
from jaxguard.fleet.chunks import LOSSES, Chunks, is_given_up
from jaxguard.fleet.local import Settings
from jaxguard.fleet.reading import Known, Stamp, stamp_of


def drained(chunks, node="a", nodes=("a",)):
    found = []
    while (chunk := chunks.take(node, nodes, is_idle=True)) is not None:
        found.append(chunk)
    return found


def test_every_checkpoint_is_handed_out_once_in_ever_smaller_chunks():
    uris = [str(k) for k in range(100)]
    found = drained(Chunks(uris), nodes=["a", "b"])
    assert [uri for chunk in found for uri in chunk.uris] == uris
    # half of what is left, divided by the workers, at most 16 at first: 100/4, 84/4, 68/4 are more
    sizes = [len(chunk.uris) for chunk in found]
    assert sizes[:6] == [16, 16, 16, 13, 10, 8]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1


def test_chunks_grow_where_they_are_quick_and_shrink_where_they_are_slow():
    chunks = Chunks(map(str, range(10**6)))
    for expected in (16, 32, 64, 128, 256, 512, 1024, 1024):
        chunk = chunks.take("a", ["a"], is_idle=True)
        assert len(chunk.uris) == expected
        chunks.finished(chunk, 0.1)
    for expected in (1024, 512, 256):
        chunk = chunks.take("a", ["a"], is_idle=True)
        assert len(chunk.uris) == expected
        chunks.finished(chunk, 60.0)
    chunk = chunks.take("a", ["a"], is_idle=True)
    chunks.finished(chunk, 4.0)
    assert len(chunks.take("a", ["a"], is_idle=True).uris) == len(chunk.uris) == 128


def test_a_lost_chunk_goes_to_another_node_and_to_an_idle_worker():
    chunks = Chunks(["x", "y", "z"])
    chunk = chunks.take("a", ["a", "b"], is_idle=True)
    assert chunk.uris == ("x",)
    assert chunks.lost(chunk, "a", "killed") is None
    assert chunks.take("a", ["a", "b"], is_idle=True).uris == ("y",)
    assert chunks.take("b", ["a", "b"], is_idle=False) is None
    again = chunks.take("b", ["a", "b"], is_idle=True)
    assert (again.uris, again.lost_on) == (("x",), ("a",))
    # nowhere else to go
    chunks.lost(again, "b", "killed")
    assert chunks.take("b", ["b"], is_idle=True).uris == ("x",)


def test_a_chunk_lost_twice_is_divided_and_only_the_culprit_is_given_up():
    uris = [str(k) for k in range(16)]
    chunks, failures, finished = Chunks(uris), [], []
    losses = 0
    while chunks:
        chunk = chunks.take("a", ["a"], is_idle=True)
        if "7" in chunk.uris:
            losses += 1
            failures.append(chunks.lost(chunk, "a", "a segmentation fault"))
        else:
            finished += chunk.uris
            chunks.finished(chunk, 0.1)
    (failure,) = filter(None, failures)
    assert losses == LOSSES + 1
    assert sorted(finished) == sorted(set(uris) - {"7"})
    assert (failure.uri, failure.stamp) == ("7", Stamp(0, 0))
    assert "a segmentation fault" in failure.error
    assert is_given_up(failure.error)
    assert not is_given_up("7: expected a checkpoint, got an empty file")


@pytest.mark.parametrize("is_remote", [False, True])
def test_what_took_workers_with_it_is_passed_over_while_it_is_as_it_was(tmp_path, is_remote):
    file = tmp_path / "deadly.npz"
    file.write_bytes(b"abc")
    uri = "gs://bucket/deadly.npz" if is_remote else str(file)
    chunks, failure = Chunks([uri]), None
    while chunks:
        failure = chunks.lost(chunks.take("a", ["a"], is_idle=True), "a", "a segmentation fault")
    assert failure.uri == uri
    assert failure.stamp == (Stamp(0, 0) if is_remote else stamp_of(file))
    # No cluster is asked; there is none.
    options = {"address": "127.0.0.1:1", "known": {uri: failure.stamp}}
    assert list(cluster.stream([uri], Settings(), **options)) == [Known(uri)]
    if not is_remote:
        pytest.importorskip("ray")
        file.write_bytes(b"abcd")
        with pytest.raises(FleetError, match="expected a Ray cluster"):
            list(cluster.stream([uri], Settings(), **options))
