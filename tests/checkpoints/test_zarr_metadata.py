"""Zarr metadata and chunks that lie: each directory is one CheckpointError, in bounded time and memory."""

import json
import pathlib
import re
import subprocess
import sys
import time
import zlib

import numpy as np
import pyarrow
import pytest
import tensorstore
from ocdbt_bytes import crc32c

from jaxguard import checkpoints
from jaxguard.checkpoints import DTYPES, zarr_metadata
from jaxguard.errors import CheckpointError

VALUES = np.arange(1.0, 7, dtype=np.float32)
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
ZSTD = {"name": "zstd", "configuration": {"level": 1}}
V2 = {"zarr_format": 2, "order": "C", "shape": [6], "chunks": [4], "dtype": "<f4", "filters": None, "fill_value": None}
V2 |= {"compressor": {"id": "zstd", "level": 1}}
V3 = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [6],
    "data_type": "float32",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4]}},
    "chunk_key_encoding": {"name": "default"},
    "codecs": [BYTES, ZSTD],
    "fill_value": 0,
}


def shards(chunk: int, codecs: list, **options) -> dict:
    index = {"index_codecs": [BYTES, {"name": "crc32c"}]}
    return {"name": "sharding_indexed", "configuration": {"chunk_shape": [chunk], "codecs": codecs, **index, **options}}


def sharded(shape: int, shard: int, chunk: int, **options) -> dict:
    grid = {"name": "regular", "configuration": {"chunk_shape": [shard]}}
    return V3 | {"shape": [shape], "chunk_grid": grid, "codecs": [shards(chunk, [BYTES, ZSTD], **options)]}


def directory(path: pathlib.Path, *, is_zarr3: bool = False, names=("sound", "damaged"), metadata=None) -> pathlib.Path:
    """An Orbax directory without a database, with arrays of VALUES."""
    for name in names:
        kvstore = {"driver": "file", "path": f"{path}/{name}/"}
        spec = {"driver": "zarr3" if is_zarr3 else "zarr", "kvstore": kvstore, "metadata": metadata or V2}
        tensorstore.open(spec, create=True).result().write(VALUES).result()
    step = {"value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False}}
    tree = {name: step | {"key_metadata": [{"key": name}]} for name in names}
    index = {"tree_metadata": tree, "use_zarr3": is_zarr3, "store_array_data_equal_to_fill_value": True}
    (path / "_METADATA").write_text(json.dumps(index))
    return path


def with_metadata(path: pathlib.Path, metadata: dict | bytes, *, is_zarr3: bool) -> pathlib.Path:
    directory(path, is_zarr3=is_zarr3, metadata=V3 if is_zarr3 else V2)
    content = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    (path / "damaged" / zarr_metadata.file_name(is_zarr3=is_zarr3)).write_bytes(content)
    return path


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype_passes(code):
    dtype = DTYPES[code]
    for order in "<>|":
        kind = f"{order}{dtype.str[1:]}" if dtype.isbuiltin == 1 else dtype.name
        zarr_metadata.check(json.dumps(V2 | {"dtype": kind}).encode(), is_zarr3=False)
    zarr_metadata.check(json.dumps(V3 | {"data_type": dtype.name}).encode(), is_zarr3=True)


def nested(depth: int) -> dict:
    codecs = [BYTES, ZSTD]
    for _ in range(depth):
        codecs = [shards(4, codecs)]
    return V3 | {"codecs": codecs}


def very_deep(depth: int) -> bytes:
    """Shards in shards; TensorStore overflows its stack and ends the process."""
    start = (
        b'[{"name":"sharding_indexed","configuration":{"chunk_shape":[4],"index_codecs":[{"name":"bytes"}],"codecs":'
    )
    return json.dumps(V3 | {"codecs": 0})[:-1].encode() + b',"x":' + start * depth + b"[]" + b"}}]" * depth + b"}"


BLOSC = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 0}
REFUSED = {
    "not JSON": (b"{", False, "not JSON"),
    "a list": (b"[]", False, "a JSON list"),
    "a key twice": (b'{"zarr_format": 2, "zarr_format": 2}', False, "twice"),
    "much": (json.dumps(V2 | {"attributes": "x" * 2**16}).encode(), False, "more than 65536 bytes"),
    "brackets": (b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}", False, "more than 256 brackets"),
    "version 3 instead of 2": (V3, False, "the element type None"),
    "version 2 instead of 3": (V2, True, "the element type None"),
    "filters": (V2 | {"filters": [{"id": "delta"}]}, False, "the codec 'delta'"),
    "many fields": (V2 | {"dtype": [[f"{i}", "<f4"] for i in range(4000)]}, False, "bytes of metadata|brackets"),
    "Blosc": (V2 | {"compressor": BLOSC}, False, "the codec 'blosc'"),
    "Blosc 3": (V3 | {"codecs": [BYTES, {"name": "blosc"}]}, True, "the codec 'blosc'"),
    "Blosc in shards": (V3 | {"codecs": [shards(2, [BYTES, {"name": "blosc"}])]}, True, "the codec 'blosc'"),
    "Blosc, escaped": (b'{"dtype":"<f4","compressor":{"id":"\\u0062losc"}}', False, "the codec 'blosc'"),
    "a codec that is a name": (V3 | {"codecs": ["blosc"]}, True, "the codec 'blosc'"),
    "shards nested 1000 deep": (nested(200), True, "bytes of metadata|brackets"),
    "shards nested 20,000 deep": (very_deep(20_000), True, "bytes of metadata"),
    "many codecs": (V3 | {"codecs": [BYTES, *[ZSTD] * 1000]}, True, "bytes of metadata|brackets"),
    "a codec whose name is a list": (V2 | {"compressor": {"id": ["zstd"]}}, False, "the codec"),
    "other separator": (V2 | {"dimension_separator": "-"}, False, ""),
    "empty chunks": (V2 | {"chunks": [0]}, False, ""),
    "sizes below zero": (V2 | {"shape": [-6]}, False, ""),
    "sizes that are words": (V2 | {"shape": ["six"]}, False, ""),
    "sizes that are no integers": (V2 | {"shape": [1.5]}, False, ""),
    "chunks of other dimensions": (V2 | {"chunks": [4, 4]}, False, ""),
    "40 axes": (V2 | {"shape": [1] * 40, "chunks": [1] * 40}, False, ""),
    "more than memory": (V2 | {"shape": [2**62, 4], "chunks": [1, 1]}, False, ""),
    "an address space of axes": (V2 | {"shape": [2**40] * 3, "chunks": [2**40] * 3}, False, ""),
    "a group": (V3 | {"node_type": "group"}, True, ""),
    "members that are not known": (V3 | {"storage_transformers": [{"name": "x"}]}, True, ""),
    "a grid of other chunks": (V3 | {"chunk_grid": {"name": "rectilinear"}}, True, ""),
    "keys of another form": (V3 | {"chunk_key_encoding": {"name": "x"}}, True, ""),
    "keys without form": (V3 | {"chunk_key_encoding": {"name": "default", "configuration": 3}}, True, ""),
    "codecs that are a word": (V3 | {"codecs": "bytes"}, True, ""),
    "shards that are no multiples": (V3 | {"codecs": [shards(3, [BYTES])]}, True, ""),
    "shards without chunks": (V3 | {"codecs": [shards(0, [BYTES])]}, True, ""),
}


ODD = {
    "objects": (V2 | {"dtype": "|O"}, False),
    "strings": (V3 | {"data_type": "string"}, True),
    "half a byte": (V2 | {"dtype": "int4"}, False),
    "half a byte 3": (V3 | {"data_type": "int4"}, True),
    "elements of gigabytes": (V2 | {"dtype": "|V2147483647"}, False),
    "elements of gigabytes 3": (V3 | {"data_type": "r17179869176"}, True),
    "one field": (V2 | {"dtype": [["x", "<f4"]]}, False),
    "a field of terabytes": (V2 | {"dtype": [["x", "<f4", [2**40]]]}, False),
}


@pytest.mark.parametrize("case", ODD)
def test_elements_that_are_no_numbers_are_left_out_unopened(case, tmp_path):
    metadata, is_zarr3 = ODD[case]
    checkpoint = checkpoints.load(with_metadata(tmp_path, metadata, is_zarr3=is_zarr3))
    assert list(checkpoint.left_out) == ["damaged"] and "elements of type" in checkpoint.left_out["damaged"]
    assert list(checkpoint.read_all()) == ["sound"]


@pytest.mark.parametrize("case", REFUSED)
def test_metadata_that_lies_is_one_error(case, tmp_path):
    metadata, is_zarr3, reason = REFUSED[case]
    path = with_metadata(tmp_path, metadata, is_zarr3=is_zarr3)
    with pytest.raises(CheckpointError, match=r"leaf 'damaged': expected a readable array|announced") as caught:
        checkpoints.load(path)
    assert re.search(reason, str(caught.value))


ANNOUNCED = {
    "chunks without end": (V2 | {"shape": [2**28], "chunks": [1], "dtype": "|i1"}, False, "chunks .* announced"),
    "chunks of a terabyte": (V2 | {"chunks": [2**38]}, False, "bytes .* announced"),
    "terabytes": (V2 | {"shape": [2**38], "chunks": [2**38]}, False, "bytes .* announced"),
    "a shard of many chunks": (sharded(6, 2**26, 1), True, "chunks .* announced"),
    "many shards of many chunks": (sharded(2**26, 2**13, 1), True, "chunks .* announced"),
}


@pytest.mark.parametrize("case", ANNOUNCED)
def test_a_grid_that_is_not_there_is_not_walked(case, tmp_path):
    metadata, is_zarr3, message = ANNOUNCED[case]
    path = with_metadata(tmp_path, metadata, is_zarr3=is_zarr3)
    start = time.process_time()
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(path)
    assert time.process_time() - start < 5


def test_missing_metadata_is_one_error(tmp_path):
    path = directory(tmp_path)
    (path / "damaged" / ".zarray").unlink()
    with pytest.raises(CheckpointError, match="leaf 'damaged': expected a readable array"):
        checkpoints.load(path)


def assert_damaged(checkpoint: checkpoints.Checkpoint) -> None:
    np.testing.assert_array_equal(checkpoint.read("sound"), VALUES)
    for read in (checkpoint.read_all, lambda: checkpoint.read("damaged")):
        with pytest.raises(CheckpointError, match="leaf 'damaged': expected a readable array"):
            read()


def frame(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


CHUNKS = {
    "missing": None,
    "empty": b"",
    "garbage": b"garbage instead of a frame",
    "too short": frame(bytes(12)),
    "too long": frame(bytes(20)),
    "cut short": frame(VALUES[:4].tobytes())[:-1],
    "with more behind": frame(VALUES[:4].tobytes()) + b"x",
    "of another codec": zlib.compress(VALUES[:4].tobytes()),
}


@pytest.mark.parametrize("case", CHUNKS)
@pytest.mark.parametrize("chunk", ["0", "1"])
def test_an_array_with_a_damaged_chunk_is_one_error(case, chunk, tmp_path):
    path = directory(tmp_path)
    (path / "damaged" / chunk).unlink()
    if (content := CHUNKS[case]) is not None:
        (path / "damaged" / chunk).write_bytes(content)
    assert_damaged(checkpoints.load(path))


@pytest.mark.parametrize("place", ["frame", "offset", "size", "checksum"])
def test_an_array_with_a_damaged_shard_is_one_error(place, tmp_path):
    path = directory(tmp_path, is_zarr3=True, metadata=sharded(6, 4, 2))
    np.testing.assert_array_equal(checkpoints.load(path).read("damaged"), VALUES)
    shard = path / "damaged" / "c" / "0"
    content = bytearray(shard.read_bytes())
    content[{"frame": 0, "offset": -36, "size": -28, "checksum": -1}[place]] ^= 0x41
    shard.write_bytes(content)
    assert_damaged(checkpoints.load(path))
    shard.write_bytes(content[-10:])
    assert_damaged(checkpoints.load(path))


def test_a_chunk_outside_of_its_shard_is_one_error(tmp_path):
    path = directory(tmp_path, is_zarr3=True, metadata=sharded(6, 4, 2))
    shard = path / "damaged" / "c" / "0"
    content = shard.read_bytes()
    index = np.frombuffer(content[-36:-4], "<u8").copy()
    for place, value in ((0, len(content)), (1, 2**63), (0, 2**64 - 2)):
        index[place] = value
        shard.write_bytes(content[:-36] + index.tobytes() + crc32c(index.tobytes()).to_bytes(4, "little"))
        assert_damaged(checkpoints.load(path))


BOMB = """
import resource, sys
from jaxguard import checkpoints
from jaxguard.errors import CheckpointError
checkpoint = checkpoints.load(sys.argv[1])
checkpoint.read("sound")
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    checkpoint.read("damaged")
except CheckpointError as error:
    print("refused", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 2**16, error)
"""
RUN_OF_MOST = (2**17 << 3 | 1 << 1).to_bytes(3, "little") + b"x"  # a zstd block of 128 KiB in four bytes
BOMBS = {
    "zstd of no announced size": ("zstd", b"\x28\xb5\x2f\xfd\x00\x50" + RUN_OF_MOST * 2**14 + b"\x01\x00\x00"),
    "zstd of 8 GiB": ("zstd", b"\x28\xb5\x2f\xfd\xe0" + (2**33).to_bytes(8, "little") + RUN_OF_MOST * 2**16),
    "zstd with a window of 2 GiB": ("zstd", b"\x28\xb5\x2f\xfd\x00\xa8" + RUN_OF_MOST * 2**14 + b"\x01\x00\x00"),
    "zlib": ("zlib", zlib.compress(bytes(2**28))),
}


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in KiB")
@pytest.mark.parametrize("case", BOMBS)
def test_bombs_take_no_memory(case, tmp_path):
    codec, content = BOMBS[case]
    path = with_metadata(tmp_path, V2 | {"compressor": {"id": codec, "level": 1}}, is_zarr3=False)
    (path / "damaged" / "0").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.startswith("refused True"), done
