"""OCDBT databases: every key and value that TensorStore finds, and nodes that lie are one error in little memory."""

import contextlib
import pathlib
import subprocess
import sys
import tracemalloc

import numpy as np
import ocdbt_bytes as handmade
import pytest
import tensorstore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxguard.checkpoints import ocdbt, refusals
from jaxguard.checkpoints.ocdbt_nodes import crc32c


def store(directory: pathlib.Path, **config) -> tensorstore.KvStore:
    base = {"driver": "file", "path": f"{directory}/"}
    return tensorstore.KvStore.open({"driver": "ocdbt", "base": base, "config": config}).result()


def found(directory: pathlib.Path) -> dict[bytes, bytes]:
    database = ocdbt.opened(directory)
    return {key: bytes(database.value(key.decode())) for key in database.entries}


def assert_like_tensorstore(directory: pathlib.Path) -> dict[bytes, bytes]:
    kept = store(directory)
    expected = {key: kept.read(key).result().value for key in sorted(kept.list().result())}
    assert found(directory) == expected
    assert list(found(directory)) == list(expected)
    return expected


VALUES = st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=300), st.binary(max_size=300))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=VALUES.filter(bool), inline=st.sampled_from([0, 100]), compressed=st.booleans())
def test_whatever_is_written_is_found(values, inline, compressed, tmp_path_factory):
    directory = tmp_path_factory.mktemp("database")
    config = {"max_inline_value_bytes": inline, "compression": {"id": "zstd"} if compressed else None}
    with tensorstore.Transaction() as transaction:
        kept = store(directory, **config).with_transaction(transaction)
        for key, value in values.items():
            kept.write(key, value).result()
    assert assert_like_tensorstore(directory) == {key.encode(): value for key, value in values.items()}


def filled(directory: pathlib.Path, count: int, **config) -> pathlib.Path:
    with tensorstore.Transaction() as transaction:
        kept = store(directory, **config).with_transaction(transaction)
        for number in range(count):
            kept.write(f"layer.{number}.kernel/.zarray", b"%d" % number * 9).result()
    return directory


@pytest.mark.parametrize("size", [10**8, 4096, 512])
def test_trees_of_any_height(size, tmp_path):
    kept = assert_like_tensorstore(filled(tmp_path, 2000, max_decoded_node_bytes=size, max_inline_value_bytes=8))
    manifest = tensorstore.ocdbt.dump(store(tmp_path).base).result()
    assert manifest["versions"][-1]["root_height"] == {10**8: 0, 4096: 2, 512: 5}[size]
    assert len(kept) == 2000


def test_the_newest_of_many_versions(tmp_path):
    kept = store(tmp_path, max_inline_value_bytes=1)
    for number in range(40):
        kept.write(f"key{number % 7}", b"%d" % number).result()
        if number == 38:
            kept.delete_range(tensorstore.KvStore.KeyRange("key2", "key3"))
    newest = assert_like_tensorstore(tmp_path)
    assert newest == {b"key%d" % (number % 7): b"%d" % number for number in range(33, 40) if number % 7 != 2}


def test_manifests_in_numbered_parts(tmp_path):
    kept = store(tmp_path, manifest_kind="numbered")
    for number in range(20):
        kept.write(f"key{number}", b"%d" % number).result()
    assert len(list(tmp_path.glob("manifest.0*"))) > 1
    assert len(assert_like_tensorstore(tmp_path)) == 20


def test_databases_by_hand(tmp_path):
    node = handmade.leaf([b"a", b"b/c"], [b"here", (0, 2, 3)], [("", "outside")])
    handmade.write(tmp_path, node)
    (tmp_path / "outside").write_bytes(b"0123456")
    assert assert_like_tensorstore(tmp_path) == {b"a": b"here", b"b/c": b"234"}


def test_paths_and_keys_that_nodes_hand_on(tmp_path):
    """A child lies in `inner/`, and so do the files it refers to; its keys go on from what they share."""
    encoded = handmade.wrapped(handmade.NODE_MAGIC, handmade.leaf([b"x", b"y"], [(0, 0, 2), b"z"], [("", "data")]))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "data").write_bytes(b"ab")
    (tmp_path / "inner" / "child").write_bytes(b"..." + encoded)
    root = handmade.interior([b"keyx"], [3], [(0, 3, len(encoded))], [("inner/", "child")])
    handmade.write(tmp_path, root, height=1)
    assert assert_like_tensorstore(tmp_path) == {b"keyx": b"ab", b"keyy": b"z"}


def two_children(first: list[bytes], second: list[bytes], keys: list[bytes], tmp_path: pathlib.Path, **options) -> None:
    nodes = [
        handmade.wrapped(handmade.NODE_MAGIC, handmade.leaf(names, [b""] * len(names), **options))
        for names in (first, second)
    ]
    (tmp_path / "nodes").write_bytes(b"".join(nodes))
    places = [(0, 0, len(nodes[0])), (0, len(nodes[0]), len(nodes[1]))]
    handmade.write(tmp_path, handmade.interior(keys, [0, 0], places, [("", "nodes")]), height=1)


def test_children_keep_to_their_range(tmp_path):
    two_children([b"a", b"b"], [b"c", b"d"], [b"a", b"c"], tmp_path)
    assert list(assert_like_tensorstore(tmp_path)) == [b"a", b"b", b"c", b"d"]
    for first, second in (([b"a", b"c"], [b"c", b"d"]), ([b"a"], [b"b"]), ([b"0"], [b"c"]), ([b"a", b"x"], [b"c"])):
        two_children(first, second, [b"a", b"c"], tmp_path)
        with pytest.raises(ValueError, match="keys out of order"):
            ocdbt.opened(tmp_path)
    two_children([b"a"], [b"c"], [b"a", b"c"], tmp_path, height=1)
    with pytest.raises(ValueError, match="a node of height 1 in place of 0"):
        ocdbt.opened(tmp_path)


GIGABYTES = {"prefixes": [0, 0, *[60_000] * 200_000]}
LIES = {
    "no entry": (handmade.leaf([], []), "empty node"),
    "too many entries": (b"\0\0" + handmade.varint(2**20 + 1), "1048577 entries"),
    "more entries than bytes": (b"\0\0" + handmade.varint(2**20) + b"\0" * 100, "ends too early"),
    "too many files": (b"\0" + handmade.varint(2**63), "9223372036854775808 entries"),
    "an integer without end": (b"\0" + b"\xff" * 20, "more than 64 bits"),
    "keys that go down": (handmade.leaf([b"b", b"a"], [b"", b""]), "keys out of order"),
    "a key twice": (handmade.leaf([b"a", b"a"], [b"", b""]), "keys out of order"),
    "a key that shares too much": (handmade.leaf([b"a", b"b"], [b"", b""], prefixes=[0, 2]), "shares more"),
    "keys of gigabytes": (
        handmade.leaf([b"A", b"a" * 60_004, *[b"0000"] * 200_000], [b""] * 200_002, **GIGABYTES),
        "names of more than",
    ),
    "a value in no file": (handmade.leaf([b"a"], [(1, 0, 1)], [("", "root")]), "a value in no file"),
    "a value of another kind": (b"\0\0\1\1a\1\2", "neither here nor in a file"),
    "a value that is cut short": (handmade.leaf([b"a"], [b"abc"])[:-1], "ends too early"),
    "more behind the values": (handmade.leaf([b"a"], [b"abc"]) + b"d", "more behind"),
    "another height": (handmade.leaf([b"a"], [b""], height=1), "a node of height 1 in place of 0"),
}


@pytest.mark.parametrize("case", LIES)
def test_nodes_that_lie_are_one_error(case, tmp_path):
    node, message = LIES[case]
    with pytest.raises(ValueError, match=message):
        ocdbt.opened(handmade.write(tmp_path, node))


INTERIOR_LIES = {
    "itself": (handmade.interior([b"a"], [0], [(0, 0, 60)], [("", "root")]), "in place of|does not begin|that has"),
    "no file": (handmade.interior([b"a"], [0], [(1, 0, 60)], [("", "root")]), "a node in no file"),
    "shared keys": (handmade.interior([b"a"], [2], [(0, 0, 60)], [("", "root")]), "share more"),
}


@pytest.mark.parametrize("case", INTERIOR_LIES)
def test_interior_nodes_that_lie_are_one_error(case, tmp_path):
    node, message = INTERIOR_LIES[case]
    with pytest.raises(ValueError, match=message):
        ocdbt.opened(handmade.write(tmp_path, node, height=1))


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "", ".", "inner//x", "absent", "pipe", "\0"])
def test_values_lie_in_files_of_the_directory(path, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    directory = handmade.write(tmp_path / "database", handmade.leaf([b"a", b"b"], [(0, 0, 1), b"b"], [("", path)]))
    (directory / "inner").mkdir()
    (directory / "inner" / "x").write_bytes(b"x")
    kind, message = ValueError, "which is no file of the directory"
    if {"", ".", ".."} & set(path.split("/")):
        kind, message = refusals.Trick, "a path out of the directory"
    with pytest.raises(kind, match=message):
        ocdbt.opened(directory)


def test_a_key_that_is_not_there_is_a_key_error(tmp_path):
    database = ocdbt.opened(handmade.write(tmp_path, handmade.leaf([b"b"], [b"b"])))
    assert bytes(database.value("b")) == b"b"
    with pytest.raises(KeyError):
        database.value("c")


@pytest.mark.parametrize("place", [(0, 0, 7), (0, 7, 0), (0, 2**63, 1), (0, 6, 1)])
def test_values_do_not_reach_beyond_their_file(place, tmp_path):
    directory = handmade.write(tmp_path, handmade.leaf([b"a"], [place], [("", "x")]))
    (directory / "x").write_bytes(b"012345")
    with pytest.raises(ValueError, match="of a file that has 6"):
        ocdbt.opened(directory)


def test_one_node_in_many_places_is_not_read_for_each(tmp_path):
    """A tree of 3 nodes, each of which is in 50 places of the one above: 125,000 leaves of 5 MB of keys each."""
    content, place = b"", (0, 0, 0)
    names = [b"a", b"b" * 60_000, *(bytes([last]) for last in range(100, 180))]
    node = handmade.leaf(names, [b""] * 82, prefixes=[0, 0, *[59_999] * 80])
    for height in range(3):
        encoded = handmade.wrapped(handmade.NODE_MAGIC, node)
        place, content = (0, len(content), len(encoded)), content + encoded
        keys = [b"%03d" % number for number in range(50)]
        node = handmade.interior(keys, [3] * 50, [place] * 50, [("", "nodes")], height=height + 1)
    (tmp_path / "nodes").write_bytes(content)
    with pytest.raises(ValueError, match="a tree of more than"):
        ocdbt.opened(handmade.write(tmp_path, node, height=3))


ENVELOPES = {
    "magic": (handmade.wrapped(b"\x0c\xdb\x12\x34", b""), "does not begin like one"),
    "version": (handmade.wrapped(handmade.MANIFEST_MAGIC, b"", version=1), "version 1"),
    "compression": (handmade.wrapped(handmade.MANIFEST_MAGIC, b"", deflate=2), "compression 2"),  # pyright: ignore
    "cut short": (handmade.wrapped(handmade.MANIFEST_MAGIC, b"")[:-1], "does not begin like one"),
    "empty": (b"", "ends too early"),
    "checksum": (handmade.wrapped(handmade.MANIFEST_MAGIC, b"")[:-1] + b"\x77", "another checksum"),
    "numbered": (handmade.wrapped(handmade.MANIFEST_MAGIC, handmade.manifest(("", "x"), 1, kind=1)), "without a tree"),
    "no root": (handmade.wrapped(handmade.MANIFEST_MAGIC, handmade.manifest(("", "x"), 1, place=1)), "in no file"),
}


@pytest.mark.parametrize("case", ENVELOPES)
def test_manifests_that_lie_are_one_error(case, tmp_path):
    content, message = ENVELOPES[case]
    (tmp_path / "manifest.ocdbt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        ocdbt.opened(tmp_path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_below_the_checksum_is_one_error_or_what_tensorstore_finds(data, tmp_path):
    node = bytearray(handmade.leaf([b"a", b"b/c", b"d"], [b"here", (0, 2, 3), b"x" * 200], [("", "outside")]))
    for _ in range(data.draw(st.integers(1, 3))):
        node[data.draw(st.integers(0, len(node) - 1))] = data.draw(st.integers(0, 255))
    handmade.write(tmp_path, bytes(node))
    (tmp_path / "outside").write_bytes(b"0123456")
    try:
        ours = ocdbt.opened(tmp_path)
    except ValueError:
        return
    kept = store(tmp_path)
    try:
        keys = kept.list().result()
    except ValueError:
        return  # what both accept must be the same
    assert sorted(ours.entries) == sorted(keys)
    for key in keys:
        with contextlib.suppress(UnicodeDecodeError):  # no array has such a key
            assert bytes(ours.value(key.decode())) == kept.read(key).result().value


BOMB = """
import pathlib, resource, sys
from jaxguard import checkpoints
from jaxguard.errors import CheckpointError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.RLIM_INFINITY))
try:
    checkpoints.load(sys.argv[1])
except CheckpointError as error:
    print(error)
"""


def zstd_frame(num_blocks: int) -> bytes:
    """A frame of that many blocks of 128 KiB in four bytes each."""
    run = (2**17 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\x00\x50" + run * num_blocks + b"\x01\x00\x00"


FRAMES = {
    "a bomb of 2 GiB": (zstd_frame(2**14), "a node of more than 134217728 bytes"),
    "garbage": (b"garbage instead of a frame", "cannot be inflated"),
    "cut short": (zstd_frame(1)[:-2], "cannot be inflated"),
    "no content": (b"", "ends too early"),
}


@pytest.mark.parametrize("case", FRAMES)
def test_nodes_that_cannot_be_inflated_are_one_error(case, tmp_path):
    frame, message = FRAMES[case]
    content = handmade.MANIFEST_MAGIC + (len(frame) + 18).to_bytes(8, "little") + b"\0\1" + frame
    (tmp_path / "manifest.ocdbt").write_bytes(content + crc32c(content).to_bytes(4, "little"))
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        ocdbt.opened(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**28
    tracemalloc.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_AS")
def test_keys_of_gigabytes_do_not_reach_tensorstore(tmp_path):
    """TensorStore ends the process on this file of some kilobytes."""
    directory = handmade.write(tmp_path / "database", LIES["keys of gigabytes"][0])
    (directory / "_METADATA").write_text(
        '{"tree_metadata": {"a": {"key_metadata": [{"key": "a"}], '
        '"value_metadata": {"value_type": "np.ndarray", "skip_deserialize": false}}}}'
    )
    assert sum(path.stat().st_size for path in directory.iterdir()) < 100_000
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(directory)], capture_output=True, text=True, timeout=120, check=False
    )
    assert "expected a database of arrays, got 'names of more than" in done.stdout, done.stderr


def test_checksums():
    rng = np.random.default_rng(0)
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    content = rng.bytes(1000)
    assert crc32c(content) == handmade.crc32c(content)
