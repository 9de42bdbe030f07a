"""Zarr arrays: what TensorStore writes is read as TensorStore reads it, and everything else is left to TensorStore."""

import json
import pathlib
import time

import ml_dtypes
import numcodecs
import numpy as np
import pytest
import tensorstore
from ocdbt_bytes import crc32c

from jaxguard.checkpoints import DTYPES, mapping, zarr, zarr_metadata

V2 = {"zarr_format": 2, "order": "C", "shape": [6], "chunks": [4], "dtype": "<f4", "compressor": {"id": "zstd"}}
V3 = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [6],
    "data_type": "float32",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4]}},
    "chunk_key_encoding": {"name": "default"},
    "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}],
    "fill_value": 0,
}


def opened(directory: pathlib.Path, key: str, *, is_v3: bool) -> zarr.Array | None:
    return zarr.opened(lambda name: mapping.mapped(directory / name).data, key, is_v3=is_v3)


def kept(directory: pathlib.Path, *, is_v3: bool, **spec) -> tensorstore.TensorStore:
    kvstore = {"driver": "file", "path": f"{directory}/w/"}
    spec = {"driver": "zarr3" if is_v3 else "zarr", "kvstore": kvstore, **spec}
    return tensorstore.open(spec, create=True).result()


def values(dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    content = np.random.default_rng(0).integers(0, 2 if dtype.kind == "b" else 100, shape)
    return np.asarray(content).astype(dtype)


def assert_same(directory: pathlib.Path, array: tensorstore.TensorStore, content: np.ndarray, *, is_v3: bool) -> None:
    array.write(content).result()
    found = opened(directory, "w", is_v3=is_v3)
    assert found is not None
    assert (found.spec.shape, found.spec.dtype) == (content.shape, content.dtype)
    read = zarr.read({"w": found})["w"]
    np.testing.assert_array_equal(read, content, strict=True)
    np.testing.assert_array_equal(read, array.read().result(), strict=True)


SHAPES = [
    ((), ()),
    ((5,), (5,)),
    ((5,), (2,)),
    ((4, 6), (4, 6)),
    ((5, 7, 3), (2, 3, 3)),
    ((3, 4), (8, 8)),
    ((9,), (1,)),
]


@pytest.mark.parametrize(("shape", "chunks"), SHAPES)
@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("compressor", [{"id": "zstd", "level": 1}, None])
def test_version_2_in_chunks_of_any_shape(shape, chunks, separator, compressor, tmp_path):
    metadata = {"shape": shape, "chunks": chunks, "dtype": "<f4", "compressor": compressor}
    array = kept(tmp_path, is_v3=False, metadata={**metadata, "dimension_separator": separator})
    assert_same(tmp_path, array, values(np.dtype(np.float32), shape), is_v3=False)


@pytest.mark.parametrize(("shape", "chunks"), SHAPES)
@pytest.mark.parametrize("form", [("default", "/"), ("default", "."), ("v2", "."), ("v2", "/")])
@pytest.mark.parametrize("compression", [[{"name": "zstd", "configuration": {"level": 1}}], []])
def test_version_3_in_chunks_of_any_shape(shape, chunks, form, compression, tmp_path):
    metadata = {
        "shape": shape,
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": form[0], "configuration": {"separator": form[1]}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, *compression],
    }
    array = kept(tmp_path, is_v3=True, metadata=metadata)
    assert_same(tmp_path, array, values(np.dtype(np.float32), shape), is_v3=True)


def sharded(shape, shards, chunks, **options) -> dict:
    inner = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}]
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    packed = {"chunk_shape": chunks, "codecs": inner, "index_codecs": index, **options}
    return {
        "shape": shape,
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shards}},
        "codecs": [{"name": "sharding_indexed", "configuration": packed}],
    }


SHARDED = [((), (), ()), ((6,), (6,), (6,)), ((5,), (4,), (2,)), ((5, 9), (4, 8), (2, 4)), ((1, 9), (4, 8), (2, 4))]


@pytest.mark.parametrize(("shape", "shards", "chunks"), SHARDED)
def test_shards_of_any_shape(shape, shards, chunks, tmp_path):
    array = kept(tmp_path, is_v3=True, metadata=sharded(shape, shards, chunks))
    assert_same(tmp_path, array, 1 + values(np.dtype(np.float32), shape), is_v3=True)


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype(code, tmp_path):
    dtype = DTYPES[code]
    written = {
        "dtype": dtype.name if "float8" in dtype.name or dtype.name == "bfloat16" else dtype.str,
        "compressor": {"id": "zstd"},
        "shape": [3, 5],
    }
    (tmp_path / "2").mkdir()
    assert_same(tmp_path / "2", kept(tmp_path / "2", is_v3=False, metadata=written), values(dtype, (3, 5)), is_v3=False)
    (tmp_path / "3").mkdir()
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}] if dtype.itemsize > 1 else [{"name": "bytes"}]
    written = {"data_type": dtype.name, "codecs": codecs, "shape": [3, 5]}
    assert_same(tmp_path / "3", kept(tmp_path / "3", is_v3=True, metadata=written), values(dtype, (3, 5)), is_v3=True)


ORDINARY = {"version 2": (V2, False), "version 3": (V3, True)}
UNUSUAL = {
    "not JSON": (b"{", False),
    "a list": (b"[]", False),
    "a key twice": (b'{"zarr_format": 2, "zarr_format": 2}', False),
    "much": (json.dumps(V2 | {"attributes": "x" * 2**16}).encode(), False),
    "version 3 in place of 2": (V3, False),
    "version 2 in place of 3": (V2, True),
    "Fortran order": (V2 | {"order": "F"}, False),
    "filters": (V2 | {"filters": [{"id": "delta"}]}, False),
    "big-endian": (V2 | {"dtype": ">f4"}, False),
    "objects": (V2 | {"dtype": "|O"}, False),
    "fields": (V2 | {"dtype": [["x", "<f4"]]}, False),
    "other compression": (V2 | {"compressor": {"id": "zlib", "level": 1}}, False),
    "other separator": (V2 | {"dimension_separator": "-"}, False),
    "no elements": (V2 | {"shape": [0]}, False),
    "empty chunks": (V2 | {"chunks": [0]}, False),
    "sizes below zero": (V2 | {"shape": [-6]}, False),
    "sizes that are words": (V2 | {"shape": ["6"]}, False),
    "sizes that are no integers": (V2 | {"shape": [True]}, False),
    "chunks of other dimensions": (V2 | {"chunks": [4, 4]}, False),
    "more than memory": (V2 | {"shape": [2**62, 4], "chunks": [1, 1]}, False),
    "chunks without end": (V2 | {"shape": [2**40], "chunks": [1]}, False),
    "a group": (V3 | {"node_type": "group"}, True),
    "members that are not known": (V3 | {"storage_transformers": [{"name": "x"}]}, True),
    "a grid of other chunks": (V3 | {"chunk_grid": {"name": "rectilinear"}}, True),
    "keys of another form": (V3 | {"chunk_key_encoding": {"name": "x"}}, True),
    "keys without form": (V3 | {"chunk_key_encoding": {"name": "default", "configuration": 3}}, True),
    "no codecs": (V3 | {"codecs": []}, True),
    "codecs that are a word": (V3 | {"codecs": "bytes"}, True),
    "big-endian 3": (V3 | {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]}, True),
    "bytes without order": (V3 | {"codecs": [{"name": "bytes"}]}, True),
    "transposed": (V3 | {"codecs": [{"name": "transpose"}, *V3["codecs"]]}, True),
    "other compression 3": (V3 | {"codecs": [V3["codecs"][0], {"name": "gzip"}]}, True),
    "compressed twice": (V3 | {"codecs": [*V3["codecs"], {"name": "zstd"}]}, True),
    "shards and more": (V3 | {"codecs": [*sharded([6], [4], [2])["codecs"], {"name": "zstd"}]}, True),
    "shards with the index first": (V3 | {"codecs": sharded([6], [4], [2], index_location="start")["codecs"]}, True),
    "shards with another index": (V3 | {"codecs": sharded([6], [4], [2], index_codecs=[])["codecs"]}, True),
    "shards that are no multiples": (V3 | {"codecs": sharded([6], [4], [3])["codecs"]}, True),
    "shards without chunks": (V3 | {"codecs": sharded([6], [4], [0])["codecs"]}, True),
    "shards of other dimensions": (V3 | {"codecs": sharded([6], [4], [2, 2])["codecs"]}, True),
}


@pytest.mark.parametrize("case", [*ORDINARY, *UNUSUAL])
def test_what_is_out_of_the_ordinary_is_left_alone(case, tmp_path):
    metadata, is_v3 = (ORDINARY | UNUSUAL)[case]
    (tmp_path / "w").mkdir()
    content = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    (tmp_path / "w" / zarr_metadata.key(is_v3=is_v3)).write_bytes(content)
    assert (opened(tmp_path, "w", is_v3=is_v3) is not None) == (case in ORDINARY)


def test_no_metadata_no_array(tmp_path):
    assert opened(tmp_path, "w", is_v3=False) is None


def two_arrays(tmp_path: pathlib.Path, *, is_v3: bool = False) -> dict[str, zarr.Array]:
    """A sound one, and one that is about to be damaged."""
    metadata = sharded([6], [4], [2]) if is_v3 else {"shape": [6], "chunks": [4], "compressor": {"id": "zstd"}}
    for name in ("sound", "damaged"):
        (tmp_path / name).mkdir()
        array = kept(tmp_path / name, is_v3=is_v3, metadata=metadata, dtype="float32")
        array.write(np.arange(1.0, 7, dtype=np.float32)).result()
    found = {name: opened(tmp_path / name, "w", is_v3=is_v3) for name in ("sound", "damaged")}
    return {name: array for name, array in found.items() if array is not None}


FRAME = bytes(numcodecs.Zstd().encode(np.arange(4, dtype=np.float32)))
CHUNKS = {
    "missing": None,
    "empty": b"",
    "garbage": b"garbage in place of a frame",
    "too short": bytes(numcodecs.Zstd().encode(np.arange(3, dtype=np.float32))),
    "too long": bytes(numcodecs.Zstd().encode(np.arange(5, dtype=np.float32))),
    "cut short": FRAME[:-1],
    "with more behind": FRAME + b"x",
}


@pytest.mark.parametrize("case", CHUNKS)
@pytest.mark.parametrize("chunk", ["0", "1"])
def test_an_array_with_a_damaged_chunk_is_left_out(case, chunk, tmp_path):
    arrays = two_arrays(tmp_path)
    assert zarr.read(arrays).keys() == {"sound", "damaged"}
    path = tmp_path / "damaged" / "w" / chunk
    path.unlink()
    if (content := CHUNKS[case]) is not None:
        path.write_bytes(content)
    found = zarr.read(arrays)
    assert {name: array.tolist() for name, array in found.items()} == {"sound": [1, 2, 3, 4, 5, 6]}


@pytest.mark.parametrize("place", ["frame", "offset", "size", "checksum"])
def test_an_array_with_a_damaged_shard_is_left_out(place, tmp_path):
    arrays = two_arrays(tmp_path, is_v3=True)
    path = tmp_path / "damaged" / "w" / "c" / "0"
    content = bytearray(path.read_bytes())
    content[{"frame": 0, "offset": -36, "size": -28, "checksum": -1}[place]] ^= 0x41
    path.write_bytes(content)
    assert zarr.read(arrays).keys() == {"sound"}
    path.write_bytes(content[-10:])
    assert zarr.read(arrays).keys() == {"sound"}


def test_a_chunk_that_a_shard_lacks_is_left_to_tensorstore(tmp_path):
    array = kept(tmp_path, is_v3=True, metadata=sharded([8], [8], [2]))
    array[2:6].write(np.ones(4, np.float32)).result()
    found = opened(tmp_path, "w", is_v3=True)
    assert found is not None
    assert zarr.read({"w": found}) == {}


def test_a_chunk_outside_of_its_shard_is_left_out(tmp_path):
    arrays = two_arrays(tmp_path, is_v3=True)
    path = tmp_path / "damaged" / "w" / "c" / "0"
    content = path.read_bytes()
    index = np.frombuffer(content[-36:-4], "<u8").copy()
    for place, value in ((0, len(content)), (1, 2**63), (0, 2**64 - 1)):
        index[place] = value
        path.write_bytes(content[:-36] + index.tobytes() + crc32c(index.tobytes()).to_bytes(4, "little"))
        assert zarr.read(arrays).keys() == {"sound"}


def test_a_grid_that_is_not_there_is_not_walked(tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / ".zarray").write_text(json.dumps(V2 | {"shape": [2**20], "chunks": [1]}))
    found = opened(tmp_path, "w", is_v3=False)
    assert found is not None
    start = time.process_time()
    assert zarr.read({"w": found}) == {}
    assert time.process_time() - start < 5


def test_reading_takes_what_a_chunk_takes(tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / ".zarray").write_text(json.dumps(V2 | {"chunks": [1000]}))
    found = opened(tmp_path, "w", is_v3=False)
    assert found is not None
    assert (found.nbytes, found.spec.nbytes) == (4000, 24)


def test_many_threads_bring_all_of_many_arrays(tmp_path):
    content = np.random.default_rng(0).normal(size=(64, 2**14)).astype(ml_dtypes.bfloat16)
    metadata = {"shape": [64, 2**14], "chunks": [3, 5000], "compressor": {"id": "zstd"}, "dtype": "bfloat16"}
    kept(tmp_path, is_v3=False, metadata=metadata).write(content).result()
    found = opened(tmp_path, "w", is_v3=False)
    assert found is not None
    read = zarr.read({str(number): found for number in range(20)})
    assert len(read) == 20
    assert all(np.array_equal(found, content) for found in read.values())
